"""The table of parity: how far each metric is from the official code, stage by stage: `python -m metrics.parity`.

    python -m metrics.parity                   every metric that has recorded official runs
    python -m metrics.parity image_reward      some of them

Nothing in the table is stored: each number is computed now, from official runs recorded in tests/golden (with seeded
weights, which are made again here) and from this project's own loaders, preprocessing and formulas. The tolerances
are those of the tests, which also show for each metric that a known mistake exceeds them.
Exit codes: 0 all within, 1 one is not, 2 no recorded runs here or an unknown metric.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from metrics.base import UserError, nearest
from metrics.commands import deferred, guarded, parsed, print_table

TESTS = Path(__file__).resolve().parents[1] / "tests"


def run(metrics: Sequence[str] = ()) -> int:
    """Print the table of some metrics (default: all); return the exit code."""
    from rich.table import Table

    if not (TESTS / "golden").is_dir():
        raise UserError(f"no recorded official runs in {TESTS / 'golden'}; run this in a clone of the repository")
    if str(TESTS.parent) not in sys.path:
        sys.path.insert(0, str(TESTS.parent))
    known = importlib.import_module("tests.parity.table").RUNS
    for metric in metrics:
        if metric not in known:
            raise UserError(f"no recorded official run of {metric!r}; {nearest(metric, known)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("metric", "official", "ours", "stage", "largest difference", "tolerance", ""):
        table.add_column(column, overflow="fold")
    wrong = 0
    for metric in metrics or known:
        official, ours, stages = known[metric]()
        for stage in stages:
            wrong += not stage.within
            verdict = "within" if stage.within else "OUTSIDE"
            cells = stage.name, f"{stage.difference:.2g}", f"{stage.tolerance:g}", verdict
            table.add_row(metric, official, ours, *cells)
            official = ours = metric = ""
    print_table(table)
    print(f"{wrong} stages outside their tolerance" if wrong else "every stage within its tolerance")
    return int(wrong > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from typing import Annotated

    import tyro

    @deferred
    def command(metrics: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> int:
        return run(metrics)

    cli = partial(tyro.cli, command)
    return guarded(lambda: parsed(cli, arguments, prog="python -m metrics.parity", description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
