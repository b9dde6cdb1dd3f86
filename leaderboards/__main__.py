"""Command line: python -m leaderboards build | validate | schema | compare.

Exit codes: 0 fine, 2 a user's mistake (one line on stderr), 1 ours.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from leaderboards.build import RESULTS, SITE, build
from leaderboards.schema import ResultError, json_schema
from leaderboards.statistics import compare, holm
from leaderboards.store import Entry, file_stem, read_entry
from leaderboards.table import Column, number, trained_on

SCHEMA = Path(__file__).parent / "schema.json"
app = SubcommandApp()


@app.command(name="build")
def build_command(results: Path = RESULTS, out: Path = SITE) -> None:
    """Build the page and the Markdown tables.

    Args:
        results: folder of results, <suite>/<model>.json
        out: folder for index.html and <suite>.md
    """
    board, written = build(results, out)
    for line in board.errors:
        print(f"left out: {line}", file=sys.stderr)
    count = "; ".join(f"{suite}: {len(entries)} results" for suite, entries in board.suites.items())
    print(f"{count or 'no results yet'} → {', '.join(str(path) for path in written)}")


@app.command
def validate(paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), results: Path = RESULTS) -> int:
    """Recompute every value and interval of results from their evidence.

    Args:
        paths: result files or folders of them; without any, the whole board
        results: the board, from which paths may also be given
    """
    faults = []
    files = [file for path in paths or (results,) for file in _result_files(path, results)]
    for path in files:
        try:
            entry = read_entry(path)
        except ResultError as error:
            faults.append(str(error))
            continue
        rows = entry.result.evidence.rows if entry.result.evidence else 0
        print(f"{path}: ok, {rows} rows of evidence")
    if not files:
        print("no results yet")
    for line in faults:
        print(line, file=sys.stderr)
    return 2 if faults else 0


@app.command
def schema(check: bool = False) -> None:
    """Write leaderboards/schema.json, the JSON Schema of a result.

    Args:
        check: only verify that the file is up to date
    """
    if not check:
        SCHEMA.write_text(json_schema(), encoding="utf-8")
    elif not SCHEMA.is_file() or SCHEMA.read_text(encoding="utf-8") != json_schema():
        raise ResultError(f"{SCHEMA} is out of date: run python -m leaderboards schema")
    print(f"{SCHEMA} is up to date")


@app.command(name="compare")
def compare_command(
    a: Annotated[str, tyro.conf.Positional], b: Annotated[str, tyro.conf.Positional], results: Path = RESULTS
) -> None:
    """Compare two results image by image: paired differences, intervals, p after Holm over the metrics shown.

    Args:
        a: a result file, <suite>/<model>, or a model's name where only one suite has it
        b: the other one
        results: the board that names refer to
    """
    first, second = _find(a, results), _find(b, results)
    columns = _shared_columns(first, second)
    if not columns:
        raise ResultError(f"nothing to compare: {a} and {b} have no metric in common on the same prompts")
    found = []
    for column in columns:
        ours, theirs = (entry.scores(column.task, column.metric) for entry in (first, second))
        found.append(compare(ours, theirs, column.mean_over))
    adjusted = holm([one.p for one in found])
    table = Table(title=Text(f"{first.result.model.name} − {second.result.model.name}"))
    for heading in ("metric", "difference", "95 % interval", "p (Holm)", "prompts", "pairs"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=heading != "metric")
    for column, one, p in zip(columns, found, adjusted, strict=True):
        rewarded = any(trained_on(entry.result, column.metric) for entry in (first, second))
        interval = "–" if one.low is None else f"{number(one.low)} to {number(one.high)}"
        table.add_row(
            Text(f"{column.title} {column.arrow}{' † trained on' if rewarded else ''}"),
            f"{one.difference:+.3f}",
            interval,
            f"{p:.4f}",
            str(one.n_prompts),
            str(one.n_pairs),
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return app.cli(args=arguments, prog="python -m leaderboards", description=__doc__) or 0
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2


def _result_files(path: Path, board: Path) -> list[Path]:
    """Return the result files a path means. Raises ResultError where it means none."""
    for candidate in (path, board / path):
        if candidate.is_dir():
            found = (*candidate.glob("*.json"), *candidate.glob("*/*.json"))
            return sorted(file for file in found if file.parent.suffix != ".gallery")
        if candidate.is_file():
            return [candidate]
    raise ResultError(f"{path}: no such result file or folder")


def _find(name: str, board: Path) -> Entry:
    """Return the result that a path, "suite/model" or a model's name means."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return read_entry(path, intervals=False)
    if not board.is_dir():
        raise ResultError(f"{board}: no such folder of results")
    suite, slash, model = name.rpartition("/")
    found = sorted(board.glob(f"{file_stem(suite) if slash else '*'}/{file_stem(model)}.json"))
    if not found:
        known = sorted(f"{path.parent.name}/{path.stem}" for path in board.glob("*/*.json"))
        raise ResultError(f"{name}: no such result; known: {', '.join(known) or 'none'}")
    if len(found) > 1:
        choices = ", ".join(f"{path.parent.name}/{path.stem}" for path in found)
        raise ResultError(f"{name}: in several suites; say which: {choices}")
    return read_entry(found[0], intervals=False)


def _shared_columns(a: Entry, b: Entry) -> list[Column]:
    """Return the columns in which both have evidence, in the order of the first."""

    def columns(entry: Entry) -> list[Column]:
        return [
            Column.of(task, name, metric)
            for task in entry.result.tasks
            for name, metric in task.metrics.items()
            if metric.status == "ok" and metric.aggregate != "set"
        ]

    others = set(columns(b))
    return [column for column in columns(a) if column in others]


if __name__ == "__main__":
    sys.exit(main())
