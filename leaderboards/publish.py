"""Publish a board: the page, its data, the results with their evidence, and a checksum of every file.

    <folder>/index.html, data/, page.sha256, <suite>.md    what `build` makes
    <folder>/results/<suite>/<model>.*                     what anybody needs to compute it again
    <folder>/results/<suite>.about.json                    what the suite's prompts say and its metrics mean
    <folder>/SHA256SUMS                                    of every other file, as sha256sum(1) writes and checks it

The folder is meant for this alone: files of an older publication that are not part of this one are removed, and a
folder that holds anything else is refused.
"""

import hashlib
import shutil
from pathlib import Path

from leaderboards.about import about_path
from leaderboards.build import SUMS as PAGE_SUMS
from leaderboards.build import build
from leaderboards.schema import ResultError
from leaderboards.store import Board, file_stem, read_board, write_atomically

SUMS = "SHA256SUMS"


def publish_site(results: Path, to: Path) -> Board:
    """Write a publication into `to` and return its board.

    Raises ResultError for a result that is not valid, and for a folder that holds something else."""
    board = read_board(results, intervals=True)
    if board.errors:
        raise ResultError(f"not published: {board.errors[0]}; mend or remove it, then publish again")
    old = _of_older_publication(to)
    build(results, to)
    (to / "results").mkdir(exist_ok=True)
    for notes in _notes(results, board):
        shutil.copy2(notes, to / "results" / notes.name)
    for entry in board.entries:
        folder = to / "results" / entry.path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(entry.path.parent.glob(f"{entry.path.stem}.*")):
            if source.is_dir():
                shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
            else:
                shutil.copy2(source, folder / source.name)
    present = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()} - {SUMS}
    wanted = _wanted(to, results, board)
    for name in sorted((present - wanted) & old):
        (to / name).unlink()
    lines = [f"{_digest(to / name)}  {name}\n" for name in sorted(present & wanted)]
    write_atomically(to / SUMS, "".join(lines).encode())
    return board


def check_site(folder: Path) -> int:
    """Check every file of a publication against its checksum; return their number. Raises ResultError."""
    names = _of_older_publication(folder)
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            raise ResultError(f"{path}: {'changed' if path.is_file() else 'missing'} since it was published")
    return len(names)


def _of_older_publication(folder: Path) -> set[str]:
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    if not (folder / SUMS).is_file():
        raise ResultError(
            f"{folder}: holds files but no {SUMS}; publish into an empty folder or an older publication"
        )
    names = [line.partition("  ")[2] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise ResultError(f"{folder / SUMS}: names a file outside the folder")
    return set(names)


def _wanted(to: Path, results: Path, board: Board) -> set[str]:
    """The files of this publication: the page's, and those that stand beside a result of the board."""
    site = {path.relative_to(to).as_posix() for path in (to / "data").rglob("*.js")}
    site |= {"index.html", PAGE_SUMS, *(path.name for path in to.glob("*.md"))}
    kept = {
        f"results/{path.relative_to(results).as_posix()}"
        for entry in board.entries
        for source in entry.path.parent.glob(f"{entry.path.stem}.*")
        for path in (source.rglob("*") if source.is_dir() else (source,))
        if path.is_file()
    }
    return site | kept | {f"results/{notes.name}" for notes in _notes(results, board)}


def _notes(results: Path, board: Board) -> list[Path]:
    """The files that tell about the suites of a board."""
    paths = [about_path(results / file_stem(suite)) for suite in board.suites]
    return [path for path in paths if path.is_file()]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
