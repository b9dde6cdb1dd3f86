"""Where published weights lie on this machine: a folder of the user's, or the local hub cache. No network.

    FEWSTEP_BENCH_WEIGHTS   DIR/<id>/<file>, looked at first; a folder DIR/<id> stands alone, complete or not
    FEWSTEP_BENCH_SYNTHETIC 1 = weights that are not the manifest's may be used; results are then `synthetic`

Environment variables, so that every process of a run (workers, launchers) sees the same weights.
"""

import os
import re
from pathlib import Path

from metrics.base import UserError
from metrics.weights.entries import Entry
from metrics.weights.files import user_cache

FOLDER = "FEWSTEP_BENCH_WEIGHTS"
SYNTHETIC = "FEWSTEP_BENCH_SYNTHETIC"


def use_folder(folder: Path, *, synthetic: bool = False) -> None:
    """Look for weights in DIR/<id>/<file> first, in this process and those it starts (`--weights DIR`).

    synthetic: accept files that are not the manifest's. Raises UserError where the folder does not exist."""
    if not folder.is_dir():
        raise UserError(f"--weights {folder}: no such folder; it should hold one folder per id, with that id's files")
    os.environ[FOLDER] = str(folder.resolve())
    if synthetic:
        os.environ[SYNTHETIC] = "1"


def synthetic_allowed() -> bool:
    """Return whether files that are not the manifest's may be used."""
    return os.environ.get(SYNTHETIC, "") not in ("", "0")


def own_folder(entry: Entry) -> Path | None:
    """Return the folder that the user's variable names for these weights, None where it names none."""
    root = os.environ.get(FOLDER, "")
    return Path(root) / entry.id if root else None


def find_folder(entry: Entry) -> Path | None:
    """Return the folder in which files of these weights lie, None where none do."""
    own = own_folder(entry)
    if own and own.is_dir():
        return own
    if not entry.repo:
        folder = url_folder(entry)
        return folder if any((folder / file.name).is_file() for file in entry.files) else None
    return _snapshot(entry)


def url_folder(entry: Entry) -> Path:
    """Return where files from outside the hub are kept."""
    return user_cache("weights") / entry.id


def _snapshot(entry: Entry) -> Path | None:
    """Return the folder of the pinned revision in the hub cache, None where it holds none of the files."""
    from huggingface_hub import constants, try_to_load_from_cache

    for file in entry.files:
        found = try_to_load_from_cache(
            entry.repo, file.name, cache_dir=constants.HF_HUB_CACHE, revision=entry.revision or "main"
        )
        if isinstance(found, str):  # otherwise: not there, or known not to exist
            return Path(found).parents[len(Path(file.name).parts) - 1]
    return None


def hub_digest(path: Path) -> str:
    """Return the sha256 by which the hub cache names a large file's content, "" where it names none."""
    blob = path.resolve()
    named = path.is_symlink() and blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
    return blob.name if named else ""
