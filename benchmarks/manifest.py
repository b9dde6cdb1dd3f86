"""Which metric weights are the ones this project ships: only results measured with those enter a ranking.

`benchmarks/micro/manifest.json` lists the sha256 of every file that `benchmarks.micro.make` wrote. A metric's weights
count as shipped where the digest of each folder behind its features follows from that list.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import read_json
from metrics.base import make
from metrics.features import FeatureRunner
from metrics.weights import READ

MANIFEST = Path(__file__).parent / "micro" / "manifest.json"


def not_shipped(metrics: Iterable[str], manifest: Path = MANIFEST) -> list[str]:
    """Return those metrics whose weights are not the shipped ones; never metrics that learned nothing."""
    known = _folder_digests(manifest)
    found = []
    for metric in metrics:
        features = make(metric).features
        runner = FeatureRunner(features)
        if any((digest := runner.weights_digest(key)) and digest not in known for key in features):
            found.append(metric)
    return found


def _folder_digests(manifest: Path) -> set[str]:
    """Return the digests (`metrics.weights`) of the folders whose files the manifest lists."""
    if not manifest.is_file():
        return set()
    folders: dict[str, list[str]] = {}
    for path, digest in sorted(_files(read_json(manifest))):
        parent, _, name = path.rpartition("/")
        if Path(name).suffix in READ:
            folders.setdefault(parent, []).append(f"{name} {digest}\n")
    return {hashlib.sha256("".join(lines).encode()).hexdigest() for lines in folders.values()}


def _files(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (path from the repository's root, sha256) of every file."""
    for path, entry in table["files"].items():
        yield path, entry["sha256"]
