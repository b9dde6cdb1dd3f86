"""DINOv3, DINOv2 and CMMD's CLIP against a recorded run of the library they were published with."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import feature_distance
from metrics.base import Prompt
from metrics.encoders import dino
from metrics.features import FeatureRunner
from metrics.kernels import cmmd
from metrics.vendi import unit_rows
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.dino import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "dino" / "shrunken.npz"
KEYS = {
    "dinov3": "facebook/dinov3-vitl16:image",
    "dinov2": "facebook/dinov2-large:image",
    "squash": "dinov2l/squash:image",
    "clip336": "clip-l-14-336/square:image",
}
FOLDERS = {"dinov3": "dinov3-vitl16", "dinov2": "dinov2-large", "clip336": "clip-vit-large-patch14-336"}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return common.load(GOLDEN)[0]


def seeded(layout: np.ndarray) -> Mapping[str, torch.Tensor]:
    shapes = {name: tuple(shape) for name, shape in json.loads(str(layout)).items()}
    return {name: torch.from_numpy(value) for name, value in common.seeded_weights(shapes).items()}


@pytest.fixture(scope="module")
def found(recorded: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """Our features of the same pictures, from files with the published keys."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("weights")
    for name, folder in FOLDERS.items():
        (root / folder).mkdir()
        state = dict(seeded(recorded[f"{name}_layout"]))
        if name == "clip336":
            torch.save(state, root / folder / "pytorch_model.bin")
        else:
            save_file(state, root / folder / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(root))
        patch.setenv(SYNTHETIC, "1")
        patch.setattr(dino, "DINOV3_L", sizes.DINOV3)
        patch.setattr(dino, "DINOV2_L", sizes.DINOV2)
        patch.setattr(feature_distance, "CLIP_L14_336", sizes.CLIP)
        pictures = sizes.pictures()
        features = FeatureRunner(list(KEYS.values())).run(pictures, [Prompt(text="")] * len(pictures))
    return {name: features[key].numpy() for name, key in KEYS.items()}


@pytest.mark.parametrize("name", list(KEYS))
def test_features_are_those_of_the_published_code(
    name: str, recorded: dict[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> None:
    wanted = recorded[name]
    assert wanted.std(axis=0).mean() > 0.01 * np.abs(wanted).mean()  # else every picture has one feature
    assert np.abs(found[name] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_cmmd_is_that_of_the_plain_sums(recorded: dict[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    unit, half = unit_rows(found["clip336"]), sizes.PICTURES // 2
    assert float(recorded["cmmd"]) > 1e-2
    assert cmmd(unit[:half], unit[half:]) == pytest.approx(float(recorded["cmmd"]), rel=1e-5)


def test_the_two_ways_of_reading_pictures_for_dinov2_differ(recorded: dict[str, np.ndarray]) -> None:
    assert np.abs(recorded["squash"] - recorded["dinov2"]).max() > 0.01 * np.abs(recorded["dinov2"]).max()
