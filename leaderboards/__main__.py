"""Command line: python -m leaderboards build | validate | restate | compare | table | vote | publish | limits | …

Exit codes: 0 fine, 2 a user's mistake (one line on stderr), 1 ours.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from leaderboards.about import NOTES, read_about
from leaderboards.build import RESULTS, SITE, build
from leaderboards.cli import Commands
from leaderboards.comparison import compare_models
from leaderboards.formats import FORMATS
from leaderboards.hacking import reports_of
from leaderboards.hf_card import card_text, write_card
from leaderboards.methods import limits_markdown, read_methods
from leaderboards.page.compare import compare_page
from leaderboards.page.vote import KEY, write_ballot
from leaderboards.papers import is_paper_table, paper_json_schema, read_paper_table, read_paper_tables
from leaderboards.publish import check_site, publish_site
from leaderboards.recipe import find_recipe, paper_recipes
from leaderboards.recipe_table import grid
from leaderboards.schema import ResultError, json_schema
from leaderboards.screenshots import VIEWS, WIDTHS, photograph
from leaderboards.store import find_entry, read_board, read_entry, restate, write_atomically
from leaderboards.studies import study_json_schema
from leaderboards.terminal import show_comparison, show_outcomes
from leaderboards.vote import QUESTIONS, make_ballot, read_outcomes

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.json"
SCHEMAS = {
    SCHEMA: json_schema,
    HERE / "reported.schema.json": paper_json_schema,
    HERE / "studies.schema.json": study_json_schema,
}
app = Commands()


@app.add("build")
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


@app.add("validate")
def validate(paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), results: Path = RESULTS) -> int:
    """Recompute every value and interval of results from their evidence; check notes and the papers' tables.

    Args:
        paths: result files, notes on suites, papers' tables, or folders of them; none: the board and all papers
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


@app.add("restate")
def restate_command(results: Path = RESULTS) -> None:
    """Compute the intervals of all results anew from their evidence: after a change of the method.

    Args:
        results: folder of results, <suite>/<model>.json
    """
    for path in sorted(results.glob("*/*.json")):
        print(f"{path}: {'restated' if restate(path) else 'as it was'}")


@app.add("schema")
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


@app.add("table")
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


@app.add("compare")
def compare_command(
    models: Annotated[tuple[str, ...], tyro.conf.Positional], results: Path = RESULTS, page: Path | None = None
) -> None:
    """Compare the first result with every other, image by image: differences, intervals, p, the prompts that changed.

    Args:
        models: two or more of: a result file, <suite>/<model>, or a model's name where only one suite has it
        results: the board that names refer to
        page: also write an HTML file, with the pictures of the prompts that changed most
    """
    entries = [find_entry(name, results) for name in models]
    compared, rewards = compare_models(entries), reports_of(entries, read_board(results).entries)
    show_comparison(compared, rewards)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, compare_page(compared, rewards).encode())
        print(page)


@app.add("vote")
def vote_command(
    a: Annotated[str, tyro.conf.Positional],
    b: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    votes: tuple[Path, ...] = (),
    questions: tuple[str, ...] = QUESTIONS,
    results: Path = RESULTS,
) -> None:
    """Write a blind page of same-seed pairs of two models; or read what it saved into win rates.

    Args:
        a: a result, named as in `compare`
        b: the other one
        out: folder of the page (vote.html) and of the key that unblinds it (key.json); default vote-<a>-<b>
        votes: CSV files that voters saved: read them instead of writing a page
        questions: what is asked of every pair
        results: the board that names refer to
    """
    first, second = find_entry(a, results), find_entry(b, results)
    folder = out or Path(f"vote-{first.path.stem}-{second.path.stem}")
    if votes:
        show_outcomes(read_outcomes(folder / KEY, votes, first, second))
        return
    key, pairs = make_ballot(first, second, questions)
    page, secret = write_ballot(key, pairs, folder)
    print(f"{page}: {len(pairs)} pairs, for the voters; {secret}: who stands where, not for them")


@app.add("publish")
def publish_command(to: Path | None = None, results: Path = RESULTS, check: bool = False, hf_card: str = "") -> None:
    """Publish the board as a folder for any web server, such as GitHub Pages, or one result on a model's card.

    Args:
        to: an empty folder or an older publication; with --hf-card the model's folder, whose README.md is written
        results: the board to publish; every result is validated first
        check: only verify the checksums of a publication
        hf_card: a result, named as in `compare`: its values as `model-index` metadata; without --to on the terminal
    """
    if hf_card:
        entry = read_entry(find_entry(hf_card, results).path)
        found = reports_of([entry], read_board(results).entries).get(entry.result.model.name)
        print(card_text(entry.result, report=found) if to is None else write_card(entry.result, to, found))
    elif to is None:
        raise ResultError("publish: --to is missing: name a folder")
    elif check:
        print(f"{to}: ok, {check_site(to)} files")
    else:
        board = publish_site(results, to)
        print(f"{len(board.entries)} results published in {to}; {check_site(to)} files with checksums")


@app.add("limits")
def limits_command() -> None:
    """List every method the papers name: implemented, reported only, or not implemented, and why."""
    print(limits_markdown(read_methods()), end="")


@app.add("screenshots")
def screenshots_command(
    to: Path,
    site: Path = SITE,
    theme: Literal["light", "dark"] = "light",
    views: tuple[str, ...] = VIEWS,
    widths: tuple[int, ...] = WIDTHS,
) -> None:
    """Photograph the views of a page in a headless Chromium (needs the package playwright).

    Args:
        to: folder of the pictures, <view>-<width>.png
        site: folder of the page, as `build` makes it
        theme: the colours of the page
        views: which views
        widths: of the window, in pixels
    """
    for path in photograph(site, to, theme, views, widths):
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 after one line where the user can mend it, 130 after Ctrl-C, and
    141, as shells tell it, where the reader of its output has gone (`| head`)."""
    try:
        code = app.run(arguments, prog="python -m leaderboards", description=__doc__)
        sys.stdout.flush()  # where the reader has gone, that is told here and not when Python ends
        return code
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return 141


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
    """Check one file of any kind and say what it holds. Raises ResultError."""
    if is_paper_table(path):
        table = read_paper_table(path)
        return f"{len(table.rows)} rows reported by {table.paper.id}"
    if path.name.endswith(NOTES):
        about = read_about(path.with_name(path.name.removesuffix(NOTES)))
        return f"notes on {sum(map(len, about.prompts.values()))} prompts and {len(about.metrics)} metrics"
    evidence = read_entry(path).result.evidence
    return f"{evidence.rows if evidence else 0} rows of evidence"


if __name__ == "__main__":
    sys.exit(main())
