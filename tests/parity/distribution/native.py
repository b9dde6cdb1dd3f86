"""Compare this project's Inception and its distances with a recorded run of torch-fidelity's, picture by picture.

    tox -e parity-distribution -- --only whole             record (minutes)
    python -m tests.parity.distribution.native [FILE]      compare (minutes); exit code 1 where a stage is outside

Both sides make the same pictures and the same seeded weights; ours go through the encoder that scores real ones.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from metrics.base import Prompt
from metrics.encoders.inception import FILE, FidInception
from metrics.features import FeatureRunner
from metrics.frechet import frechet_distance_of_features
from metrics.kernels import kid_of_subsets
from metrics.manifolds import precision, recall
from metrics.vendi import inception_score
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.distribution import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "distribution" / "whole.npz"
Row = tuple[str, float, float]  # stage, difference, tolerance


def write_weights(folder: Path) -> str:
    """Write the seeded double of the published file where the loader looks for it; return the checksum."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in FidInception().state_dict().items()}
    weights = sizes.seeded_weights(shapes)
    (folder / "inception-2015-12-05").mkdir()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(tensors, folder / "inception-2015-12-05" / FILE)
    return common.checksum(weights)


def features(images: int, batch: int = 8) -> dict[str, np.ndarray]:
    """Return every output of the encoder for the first pictures."""
    runner = FeatureRunner([f"inception/tf1:{name}" for name in sizes.FEATURES])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sizes.FEATURES}
    for start in range(0, images, batch):
        pictures = [sizes.picture(index) for index in range(start, min(start + batch, images))]
        found = runner.run(pictures, [Prompt(text="")] * len(pictures))
        for name, values in parts.items():
            values.append(found[f"inception/tf1:{name}"].numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def compared(recorded: dict[str, np.ndarray], images: int) -> Iterator[Row]:
    """Yield stages: features of every picture, then the distances between the halves of the set."""
    ours = features(images)
    for name in sizes.FEATURES:
        wanted = recorded[f"{name}_some"]
        assert (
            wanted.std(axis=0).mean() > 0.01 * np.abs(wanted).mean()
        )  # else all pictures are one, and this is empty
        found = ours[name][:, :: sizes.EVERY]
        yield f"{name} of {images} pictures", float(np.abs(found - wanted).max() / np.abs(wanted).max()), 1e-5
    first, second = ours["pool"][::2], ours["pool"][1::2]
    for name, pair in (("fid", (first, second)), ("sfid", (ours["spatial"][::2], ours["spatial"][1::2]))):
        yield f"{name}, from the pictures", relative(frechet_distance_of_features(*pair), recorded[name]), 1e-4
    yield (
        "fid of 4,096 x 2,048",
        relative(frechet_distance_of_features(*sizes.large_sets()), recorded["fid_large"]),
        1e-6,
    )
    means = kid_of_subsets(first, second, 20, images // 4)
    for name, value in zip(("kid_mean", "kid_std"), means, strict=True):
        yield name, relative(value, recorded[name]), 1e-4
    for name, value in (("precision", precision(first, second)), ("recall", recall(first, second))):
        yield name, abs(value - float(recorded[name])), 1e-7  # the package divides in float32
    for name, value in zip(("isc_mean", "isc_std"), inception_score(ours["logits"]), strict=True):
        yield name, relative(value, recorded[name]), 1e-4


def relative(found: float, wanted: np.ndarray) -> float:
    """Return how far a number is off, as a share of the recorded one."""
    return abs(found / float(wanted) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=GOLDEN)
    file = parser.parse_args().file
    if not file.is_file():
        print(f"{file}: no recorded run; make it by: tox -e parity-distribution -- --only whole", file=sys.stderr)
        return 2
    recorded, about = common.load(file)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {FOLDER: folder, SYNTHETIC: "1"}):
        if write_weights(Path(folder)) != str(recorded["checksum"]):
            print(f"{file}: recorded with other weights; record it again", file=sys.stderr)
            return 2
        wrong = 0
        for stage, difference, tolerance in compared(recorded, int(about["images"])):
            within = difference <= tolerance  # never of NaN
            wrong += not within
            print(
                f"{stage:32}  {difference:.1e}  (at most {tolerance:g})  {'within' if within else 'OUTSIDE'}",
                flush=True,
            )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
