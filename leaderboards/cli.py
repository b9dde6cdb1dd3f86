"""Command lines of functions: tyro parses, a mistake becomes one line, and only then the command runs."""

import functools
import io
import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from typing import Any, TypeVar

from tyro.extras import SubcommandApp

from leaderboards.schema import ResultError

Command = TypeVar("Command", bound=Callable[..., Any])
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Commands:
    """Subcommands of one program, each a function that returns an exit code or nothing."""

    def __init__(self) -> None:
        self._app = SubcommandApp()

    def add(self, name: str) -> Callable[[Command], Command]:
        """Decorator: make a function the subcommand `name`; its docstring is the help."""

        def register(command: Command) -> Command:
            # tyro calls what it parses for: a call deferred keeps its mistakes apart from the command's own output.
            @functools.wraps(command)
            def deferred(*args: Any, **kwargs: Any) -> Callable[[], Any]:
                return functools.partial(command, *args, **kwargs)

            self._app.command(name=name)(deferred)
            return command

        return register

    def run(self, args: Sequence[str] | None, *, prog: str, description: str | None = None) -> int:
        """Run the command that the arguments (default: this process's) name; return its exit code.

        Raises ResultError for arguments that mean nothing, in one line; --help ends the process."""
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                command = self._app.cli(args=args, prog=prog, description=description)
        except SystemExit as end:
            if not end.code:
                raise
            raise ResultError(f"{complaint(said.getvalue())}; see {prog} --help") from end
        return command() or 0


def complaint(box: str) -> str:
    """Return what tyro says in the box it draws as one line, with the nearest flag where it names one.

    The frame is of line characters, or of blanks and hyphens where the output is not UTF-8."""
    _title, *lines = (line.strip("│ ") for line in COLOUR.sub("", box).splitlines())
    paragraph = itertools.takewhile(lambda line: not _is_rule(line), itertools.dropwhile(_is_rule, lines))
    text = " ".join(paragraph).rstrip(".").replace("Unrecognized options:", "unknown:")
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(lines).replace("─", ""))
    return f"{text}; did you mean {near[1]}?" if near else text


def _is_rule(line: str) -> bool:
    return not line.strip("─-")
