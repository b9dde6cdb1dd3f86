"""Command lines: flags into a frozen dataclass; a mistake is one line that names the nearest flag."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from benchmarks.config import UserError
from leaderboards.cli import complaint

T = TypeVar("T")


def parse(
    arguments: type[T] | Any, *, prog: str, description: str | None = None, args: Sequence[str] | None = None
) -> T:
    """Return the command line (default: this process's) as an instance of a dataclass, or of one of a union's.

    Raises UserError for unknown flags, missing values and values of the wrong type; --help ends the process."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                arguments, args=args, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{complaint(said.getvalue())}; see {prog} --help") from end
