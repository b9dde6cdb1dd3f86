"""When a training pauses after an iteration: at a set moment, or asked to (Ctrl-C; SIGTERM, as schedulers send it).

The iteration is finished and a checkpoint written before the process ends, so that the same command continues there.
"""

import math
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Paused(Exception):
    """The run's time is up: its checkpoint is written, and the same call continues it."""


class Pause:
    """Context manager around the iterations of a training: within it the first signal ends nothing at once."""

    def __init__(self, until: float = math.inf) -> None:
        """until: a moment of time.monotonic()."""
        self._until, self._signal = until, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Pause":
        if threading.current_thread() is threading.main_thread():  # others get no signals
            heard = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]  # as nohup and & leave some
            self._before = {one: signal.signal(one, self._ask) for one in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def due(self) -> int:
        """The signal that asked for a pause, -1 where the time is up, 0 where training goes on."""
        return self._signal or (-1 if time.monotonic() >= self._until else 0)

    def leave(self, due: int) -> NoReturn:
        """Raise what `due` stands for: Paused, or what its signal would have raised at once.

        That is KeyboardInterrupt of Ctrl-C, and SystemExit with the exit code 143 of SIGTERM."""
        if due < 0:
            raise Paused
        if due == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + due)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        told = f"\n{signal.Signals(number).name}: a checkpoint after this iteration, then the end; again to end now\n"
        os.write(2, told.encode())  # print() may have been at work when the signal came

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
