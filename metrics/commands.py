"""What this package's commands share: faults as one line, tables that a pipe does not cut."""

import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from typing import ParamSpec, TypeVar

from metrics.base import UserError

WIDTH = 160  # columns of a table that goes into a file or a pipe
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
P = ParamSpec("P")
R = TypeVar("R")


def deferred(command: Callable[P, R]) -> Callable[P, Callable[[], R]]:
    """Decorator: give the call back instead of making it; tyro, which calls what it parses for, then only parses."""

    @functools.wraps(command)
    def later(*args: P.args, **kwargs: P.kwargs) -> Callable[[], R]:
        return functools.partial(command, *args, **kwargs)

    return later


def parsed(
    cli: Callable[..., Callable[[], int | None]],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
) -> int:
    """Let tyro (a SubcommandApp's `cli`, or `tyro.cli` of a function) find a deferred command; return its exit code.

    Raises UserError for arguments that mean nothing, in one line; --help ends the process."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            command = cli(args=arguments, prog=prog, description=description)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_complaint(said.getvalue())}; see {prog} --help") from end
    return command() or 0


def _complaint(box: str) -> str:
    """Return the first paragraph in tyro's box, and the flag that it thinks was meant."""
    _title, *lines = (line.strip("│ ") for line in COLOUR.sub("", box).splitlines())
    rules = [not line.strip("─-") for line in lines]  # the frame: of hyphens where the output is not UTF-8
    start = rules.index(False)
    text = " ".join(lines[start : rules.index(True, start)]).rstrip(".")
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(lines).replace("─", ""))
    return f"{text}; did you mean {near[1]}?" if near else text


def guarded(command: Callable[[], int], mendable: tuple[type[Exception], ...] = (UserError,)) -> int:
    """Run a command; return its exit code: 2 after one line where the user can mend it, 130 after Ctrl-C, and 141, as
    shells tell it, where the reader of its output has gone (`| head`)."""
    try:
        code = command()
        sys.stdout.flush()  # where the reader has gone, that is told here and not when Python ends
        return code
    except mendable as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return 141


def print_table(table: object) -> None:
    """Print a rich table."""
    from rich.console import Console

    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH).print(table)
