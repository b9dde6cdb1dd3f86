"""Command line: python -m leaderboards build | validate | schema | compare | table | publish.

Exit codes: 0 fine, 2 a user's mistake (one line on stderr), 1 ours.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from leaderboards.build import RESULTS, SITE, build
from leaderboards.columns import Column, number, trained_on
from leaderboards.formats import FORMATS
from leaderboards.papers import is_paper_table, paper_json_schema, read_paper_table, read_paper_tables
from leaderboards.publish import check_site, publish_site
from leaderboards.recipe import find_recipe, paper_recipes
from leaderboards.recipe_table import grid
from leaderboards.schema import ResultError, json_schema
from leaderboards.statistics import compare, holm
from leaderboards.store import Entry, file_stem, read_board, read_entry

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.json"
SCHEMAS = {SCHEMA: json_schema, HERE / "reported.schema.json": paper_json_schema}
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
    """Recompute every value and interval of results from their evidence, and check the papers' tables.

    Args:
        paths: result files, papers' tables, or folders of them; without any, the whole board and all papers
        results: the board, from which paths may also be given
    """
    faults = []
    for file in [file for path in paths or (results,) for file in _json_files(path, results)]:
        try:
            print(f"{file}: ok, {_checked(file)}")
        except ResultError as error:
            faults.append(str(error))
    if not paths:
        if not any(results.glob("*/*.json")):
            print("no results yet")
        tables = read_paper_tables()
        rows = sum(len(table.rows) for table in tables.values())
        print(f"{len(paper_recipes(tables=tables))} tables of papers: ok, {rows} rows")
    for line in faults:
        print(line, file=sys.stderr)
    return 2 if faults else 0


@app.command
def schema(check: bool = False) -> None:
    """Write the JSON Schemas of a result and of a paper's table.

    Args:
        check: only verify that the files are up to date
    """
    for path, text in SCHEMAS.items():
        if not check:
            path.write_text(text(), encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text():
            raise ResultError(f"{path} is out of date: run python -m leaderboards schema")
        print(f"{path} is up to date")


@app.command(name="table")
def table_command(
    recipe: Annotated[str, tyro.conf.Positional] = "",
    format: Literal["md", "latex", "csv", "json", "html"] = "md",
    results: Path = RESULTS,
) -> None:
    """Rebuild a paper's table with our rows beside the reported ones, or a table of your own recipe.

    Args:
        recipe: a table such as dmdr-v2-table2, or your own recipe.toml; without one, all tables are listed
        format: how to write it
        results: the board to take measured rows from
    """
    if not recipe:
        for name, paper in read_paper_tables().items():
            print(f"{name:16}  {paper.caption}")
        return
    chosen = find_recipe(recipe)
    board = read_board(results)
    for line in board.errors:
        print(f"left out: {line}", file=sys.stderr)
    if not chosen.reported and chosen.suite not in board.suites:
        known = ", ".join(board.suites) or "none"
        raise ResultError(f"recipe {chosen.name}: no results of suite {chosen.suite!r}; known: {known}")
    print(FORMATS[format](grid(chosen, read_paper_tables(), board.suites.get(chosen.suite, []))), end="")


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


@app.command
def publish(to: Path, results: Path = RESULTS, check: bool = False) -> None:
    """Write page, data, results and checksums into a folder for any web server, such as GitHub Pages.

    Args:
        to: an empty folder, or an older publication
        results: the board to publish; every result is validated first
        check: only verify the checksums of a publication
    """
    if check:
        print(f"{to}: ok, {check_site(to)} files")
    else:
        board = publish_site(results, to)
        print(f"{len(board.entries)} results published in {to}; {check_site(to)} files with checksums")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return app.cli(args=arguments, prog="python -m leaderboards", description=__doc__) or 0
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2


def _json_files(path: Path, board: Path) -> list[Path]:
    """Return the files of results or papers' tables that a path means. Raises ResultError where it means none."""
    for candidate in (path, board / path):
        if candidate.is_dir():
            found = (*candidate.glob("*.json"), *candidate.glob("*/*.json"))
            return sorted(file for file in found if file.parent.suffix != ".gallery")
        if candidate.is_file():
            return [candidate]
    raise ResultError(f"{path}: no such result file or folder")


def _checked(path: Path) -> str:
    """Check one file of either kind and say what it holds. Raises ResultError."""
    if is_paper_table(path):
        table = read_paper_table(path)
        return f"{len(table.rows)} rows reported by {table.paper.id}"
    evidence = read_entry(path).result.evidence
    return f"{evidence.rows if evidence else 0} rows of evidence"


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
