"""Build what readers see from a folder of results: the page with its data, and one Markdown table per suite.

index.html, data/    the page; large, so a repository keeps `page.sha256`, the digests of its files, instead
page.sha256          as sha256sum(1) writes and checks it, without data/plots.js, which is a library's
<suite>.md           the tables
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from leaderboards.about import About, read_about
from leaderboards.methods import read_methods
from leaderboards.papers import read_paper_tables
from leaderboards.recipe import paper_recipes
from leaderboards.schema import ResultError
from leaderboards.store import Board, file_stem, read_board, write_atomically
from leaderboards.studies import read_studies
from leaderboards.table import suite_table, to_markdown

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
SITE = ROOT / "site"
SUMS = "page.sha256"
LIBRARY = "data/plots.js"  # its bytes are those of the installed version of vl-convert-python


def build(results: Path = RESULTS, out: Path = SITE) -> tuple[Board, list[Path]]:
    """Write index.html, data/, page.sha256 and <suite>.md into `out`; return the board and the files a reader opens.

    Results that are not valid are named in `board.errors` and on the page, and hide nothing else.
    Raises ResultError where the folder of results is missing."""
    from leaderboards import page  # brings jinja2, which validate and compare do without

    if results == RESULTS:
        results.mkdir(exist_ok=True)  # a fresh clone has an empty board, not a missing one
    board, about = _with_notes(read_board(results), results)
    tables = [suite_table(suite, entries, about[suite]) for suite, entries in board.suites.items()]
    papers = read_paper_tables()
    written = set()
    sums = {}
    for name, content in page.files(
        tables, papers, paper_recipes(tables=papers), board.suites, read_studies(), read_methods()
    ):
        path = out / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, durable=False)
        written.add(path)
        sums[f"data/{name}"] = hashlib.sha256(content).hexdigest()
    for path in sorted((out / "data").rglob("*.js")):  # of results that are gone
        if path not in written:
            path.unlink()
    texts = {"index.html": page.index(tables, board.errors)}  # last: what it names is there
    texts |= {f"{file_stem(table.suite)}.md": to_markdown(table) for table in tables}
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    sums["index.html"] = hashlib.sha256(texts["index.html"].encode()).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if name != LIBRARY]
    write_atomically(out / SUMS, "".join(lines).encode())
    return board, [out / name for name in texts]


def _with_notes(board: Board, results: Path) -> tuple[Board, dict[str, About]]:
    """Return the board, and what is told of each of its suites; a fault is one more line of the board's."""
    about, errors = {}, list(board.errors)
    for suite in board.suites:
        try:
            about[suite] = read_about(results / file_stem(suite))
        except ResultError as error:
            about[suite] = About()
            errors.append(str(error).removeprefix(f"{results}/"))
    return replace(board, errors=tuple(errors)), about
