"""Weights: what may be read, from where, and whether it is what the manifest says.

    WeightFolder(path=…, mend=…)     a folder with one model, such as the micro world's
    manifest("pick-score-v1")        published weights, listed and pinned in metrics/weights.toml

Both are `Weights`: cheap to make, and nothing is read before `check`, `json`, `tensors` or `digest` is called. Files
are looked for in this order; nothing is downloaded but by `python -m metrics.weights fetch`:

    1. FEWSTEP_BENCH_WEIGHTS/<id>/<file>      (`use_folder`, `--weights DIR`)
    2. the local hub cache, at the pinned revision

A file whose size or sha256 is not the manifest's is refused, unless FEWSTEP_BENCH_SYNTHETIC=1 says that the weights
are one's own: results are then `synthetic`, as they are while the manifest does not know a file's sha256. A pickle is
read only where the manifest lists that very file, and then by torch.load(weights_only=True), which runs no code.
"""

from metrics.weights.entries import Entry, WeightFile, entries, find_entry
from metrics.weights.files import PICKLES, READ
from metrics.weights.folder import WeightFolder, Weights
from metrics.weights.missing import missing_table, what_to_do
from metrics.weights.pinned import ManifestWeights, manifest
from metrics.weights.places import use_folder

__all__ = [
    "PICKLES",
    "READ",
    "Entry",
    "ManifestWeights",
    "WeightFile",
    "WeightFolder",
    "Weights",
    "entries",
    "find_entry",
    "manifest",
    "missing_table",
    "use_folder",
    "what_to_do",
]
