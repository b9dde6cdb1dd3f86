"""Metrics: python -m metrics list | card ID | selfcheck

Exit codes: 0 fine, 2 something for you to mend (one line), 1 our mistake.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

from metrics.base import available, make
from metrics.cards import page
from metrics.commands import deferred, guarded, parsed, print_table
from metrics.loaded import Scorer
from metrics.selfcheck import run

Ids = Annotated[tuple[str, ...], tyro.conf.Positional]
app = SubcommandApp()


@app.command(name="list")
@deferred
def list_command() -> None:
    """List all metrics: unit, direction, range, and whether their weights are here."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("metric", "title", "unit", "better", "range of one image", "reward", "weights"):
        table.add_column(column, overflow="fold")
    scorer = Scorer(available())
    for identity in scorer.metrics:
        card = scorer.card(identity)
        better = "higher" if card.higher_is_better else "lower"
        low, high = card.range
        reward = "differentiable" if card.differentiable else "no gradient"
        state = scorer.missing(identity) or "here"
        table.add_row(identity, card.title, card.unit, better, f"{low:g} to {high:g}", reward, state)
    print_table(table)


@app.command(name="card")
@deferred
def card_command(ids: Ids = (), out: Path | None = None) -> None:
    """Show metrics' pages: meaning, what may be compared, what fools it, weights, preprocessing, sources.

    Args:
        ids: metrics; default: all
        out: folder to write <id>.md into, instead of showing them
    """
    for identity in ids or tuple(available()):
        text = page(make(identity).card.id)
        if out is None:
            print(text)
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{identity}.md"
        path.write_text(text, encoding="utf-8")
        print(path)


@app.command(name="selfcheck")
@deferred
def selfcheck_command(ids: Ids = ()) -> int:
    """Compute published numbers again, with the weights that are here.

    Args:
        ids: metrics; default: all
    """
    return run(ids)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda: parsed(app.cli, arguments, prog="python -m metrics", description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
