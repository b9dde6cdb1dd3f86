"""Build what readers see from a folder of results: the page with its data, and one Markdown table per suite."""

from pathlib import Path

from leaderboards.methods import read_methods
from leaderboards.papers import read_paper_tables
from leaderboards.recipe import paper_recipes
from leaderboards.store import Board, file_stem, read_board, write_atomically
from leaderboards.studies import read_studies
from leaderboards.table import suite_table, to_markdown

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
SITE = ROOT / "site"


def build(results: Path = RESULTS, out: Path = SITE) -> tuple[Board, list[Path]]:
    """Write index.html, data/ and <suite>.md into `out`; return the board and the files a reader opens.

    Results that are not valid are named in `board.errors` and on the page, and hide nothing else.
    Raises ResultError where the folder of results is missing."""
    from leaderboards import page  # brings jinja2, which validate and compare do without

    if results == RESULTS:
        results.mkdir(exist_ok=True)  # a fresh clone has an empty board, not a missing one
    board = read_board(results)
    tables = [suite_table(suite, entries) for suite, entries in board.suites.items()]
    papers = read_paper_tables()
    written = set()
    for name, content in page.files(
        tables, papers, paper_recipes(tables=papers), board.suites, read_studies(), read_methods()
    ):
        path = out / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        written.add(path)
    for path in sorted((out / "data").rglob("*.js")):  # of results that are gone
        if path not in written:
            path.unlink()
    texts = {"index.html": page.index(tables, board.errors)}  # last: what it names is there
    texts |= {f"{file_stem(table.suite)}.md": to_markdown(table) for table in tables}
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return board, [out / name for name in texts]
