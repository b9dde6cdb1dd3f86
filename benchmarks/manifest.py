"""Which metric weights are the ones this project ships: only results measured with those enter a ranking.

`metrics/weights.toml` lists published weights. `benchmarks/micro/manifest.json` lists the sha256 of every file that
`benchmarks.micro.make` wrote: the weights of a folder count as shipped where the folder's digest follows from it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import read_json
from metrics.loaded import Scorer
from metrics.weights import READ, ManifestWeights, Weights

MANIFEST = Path(__file__).parent / "micro" / "manifest.json"


def not_shipped(metrics: Iterable[str], manifest: Path = MANIFEST) -> list[str]:
    """Return those metrics whose weights are in neither list; never metrics that learned nothing."""
    known = _folder_digests(manifest)

    def is_known(weights: Weights) -> bool:
        return not weights.synthetic() if isinstance(weights, ManifestWeights) else weights.digest() in known

    return [metric for metric in metrics if not all(map(is_known, Scorer([metric]).weights(metric)))]


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
