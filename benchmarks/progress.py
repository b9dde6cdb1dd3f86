"""Progress on the screen: a bar with rate and time left, or plain lines where nobody watches a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show progress over `total` images while the context lasts; call the yielded function after every few."""
    if total == 0:
        yield lambda count: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(what, total).advance


class _Lines:
    """One line every few seconds, and one at the end."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.count = what, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES and self.count < self.total:
            return
        self.last = now
        rate = self.count / max(now - self.start, 1e-9)
        left = (self.total - self.count) / rate
        print(
            f"{self.what}: {self.count}/{self.total} images, {rate:.1f} images/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
