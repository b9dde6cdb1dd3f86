"""Build what readers see from a folder of results: one page and one Markdown table per suite."""

from pathlib import Path

from leaderboards.store import Board, file_stem, read_board, write_atomically
from leaderboards.table import suite_table, to_markdown

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
SITE = ROOT / "site"


def build(results: Path = RESULTS, out: Path = SITE) -> tuple[Board, list[Path]]:
    """Write index.html and <suite>.md into `out`; return the board and the files written.

    Results that are not valid are named in `board.errors` and on the page, and hide nothing else.
    Raises ResultError where the folder of results is missing."""
    from leaderboards import page  # brings matplotlib, which validate and compare do without

    if results == RESULTS:
        results.mkdir(exist_ok=True)  # a fresh clone has an empty board, not a missing one
    board = read_board(results)
    tables = [suite_table(suite, entries) for suite, entries in board.suites.items()]
    texts = {"index.html": page.render(tables, board.errors)}
    texts |= {f"{file_stem(table.suite)}.md": to_markdown(table) for table in tables}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return board, [out / name for name in texts]
