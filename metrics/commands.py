"""What this package's commands share: faults as one line, tables that a pipe does not cut."""

import sys
from collections.abc import Callable

from metrics.base import UserError

WIDTH = 160  # columns of a table that goes into a file or a pipe


def guarded(command: Callable[[], int]) -> int:
    """Run a command; return its exit code: 2 after one line where the user can mend it, 130 after Ctrl-C."""
    try:
        return command()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def print_table(table: object) -> None:
    """Print a rich table."""
    from rich.console import Console

    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH).print(table)
