"""Command lines: flags into a frozen dataclass; a mistake is one line that names the nearest flag."""

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from typing import Any, TypeVar

import tyro

from benchmarks.config import UserError, nearest

T = TypeVar("T")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def parse(arguments: type[T], *, prog: str, description: str | None = None, args: Sequence[str] | None = None) -> T:
    """Return the command line (default: this process's) as an instance of a dataclass.

    Raises UserError for unknown flags, missing values and values of the wrong type; --help ends the process."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed, unknown = tyro.cli(
                arguments,
                args=args,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_first_paragraph(said.getvalue())}; see {prog} --help") from end
    if unknown:
        raise UserError(_unknown(unknown, arguments))
    return parsed


def _first_paragraph(box: str) -> str:
    """Return what tyro says in the box it draws, without title and frame, and the advice below the first rule.

    The frame is of line characters, or of blanks and hyphens where the output is not UTF-8."""
    _title, *lines = (line.strip("│ ") for line in COLOUR.sub("", box).splitlines())
    paragraph = itertools.takewhile(lambda line: not _is_rule(line), itertools.dropwhile(_is_rule, lines))
    return " ".join(paragraph).rstrip(".")


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


def _unknown(unknown: Iterable[str], arguments: Any) -> str:
    flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if not flags:
        return f"unexpected argument {next(iter(unknown))!r}"
    known = [f"--{'no-' if f.default is True else ''}{f.name.replace('_', '-')}" for f in fields(arguments)]
    return f"unknown flag {flags[0]}; {nearest(flags[0], known)}"
