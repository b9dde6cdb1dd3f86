"""What a training run shows: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 15.0  # between two plain lines


class Progress:
    """Context manager around one stage."""

    def __init__(self, stage: str, enabled: bool = True) -> None:
        self._stage, self._enabled, self._last = stage, enabled, time.monotonic()
        self._bar: Bar | None = None
        if enabled and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(stage, total=1.0)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, fraction: float, iteration: int, logs: dict[str, float]) -> None:
        """Show how far the stage is and what its losses are."""
        losses = (f"{name} {value:.3g}" for name, value in logs.items() if name.endswith("_loss"))
        text = f"{self._stage} {iteration} " + " ".join(losses)
        if self._bar:
            self._bar.update(self._task, completed=fraction, description=text)
        elif self._enabled and time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            print(f"{fraction:4.0%} {text}", file=sys.stderr, flush=True)
