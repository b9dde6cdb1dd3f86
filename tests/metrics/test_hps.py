"""HPS against recorded runs of the package hpsv2 (shrunken, seeded ViT-H/14: tests/parity/hpsv2/official.py)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.encoders.clip_tokens import END, OpenAiTokens
from metrics.encoders.open_clip import OpenClipFile
from metrics.encoders.published import padded
from metrics.loaded import LoadedMetric
from metrics.preprocessing import Preprocessing, Resized
from metrics.weights import manifest
from tests.parity import clip_native, common
from tests.parity.clip import sizes

STAGES, ABOUT = common.load(clip_native.GOLDEN / "hps.npz")
CPU = torch.device("cpu")


def native(config: dict[str, Any] = sizes.HPS) -> OpenClipFile:
    return OpenClipFile(manifest("hps-v2"), "HPS_v2_compressed.pt", CPU, lambda: config)


def test_the_seeded_weights_are_those_of_the_official_run() -> None:
    assert common.checksum(common.seeded_weights(clip_native.open_clip_layout(sizes.HPS))) == ABOUT["weights"]


def test_every_stage_equals_the_official_one(clip_family: Path) -> None:
    assert len(STAGES["score"]) >= 64
    for stage, (difference, tolerance) in clip_native.compare(STAGES, native()).items():
        assert difference <= tolerance, stage


@pytest.mark.parametrize(("identity", "golden"), [("hps_v2", "hps"), ("hps_v21", "hps_v21")])
def test_scores_equal_the_official_ones_end_to_end(identity: str, golden: str, clip_family: Path) -> None:
    official = common.load(clip_native.GOLDEN / f"{golden}.npz")[0]["score"]
    assert np.isfinite(official).all()
    assert len(official) >= 64
    assert np.abs(clip_native.scores(identity) - official).max() <= 1e-6


def test_the_versions_do_not_share_weights() -> None:
    v21, about = common.load(clip_native.GOLDEN / "hps_v21.npz")
    assert about["weights"] != ABOUT["weights"]
    assert np.abs(v21["score"] - STAGES["score"]).max() > 1e-2


def test_gradients_equal_the_official_ones(clip_family: Path) -> None:
    clip = native()
    for pixels, ids, official in zip(STAGES["pixels"], STAGES["ids"], STAGES["gradient"], strict=False):
        pixels_1CHW = torch.from_numpy(pixels)[None].requires_grad_()
        image, text = clip.image(pixels_1CHW), clip.text(torch.from_numpy(ids.astype(np.int64))[None])
        (found,) = torch.autograd.grad(torch.cosine_similarity(image, text).sum(), pixels_1CHW)
        assert np.abs(found[0].numpy() - official).max() <= 1e-5 * np.abs(official).max()


def test_what_the_package_fails_on_is_scored(clip_family: Path) -> None:
    from PIL import Image

    assert set(ABOUT["raised"]) == {"RGBA", "oblong, longer side fits"}
    pictures = [Image.new("RGBA", (24, 24), "red"), Image.new("RGB", (24, 12), "red")]
    assert LoadedMetric("hps_v2")(pictures, ["a", "a"]).isfinite().all()


@dataclass(frozen=True)
class BlackMean:
    """Negative control: normalised first, so that the border is the mean colour."""

    then: Resized

    def from_pil(self, images: Any) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.then.mean, self.then.std))
        plain = replace(self.then, mean=(0.0,) * 3, std=(1.0,) * 3).from_pil(images)
        return torch.where(plain == 0, torch.zeros(()), (plain - mean) / std)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("config", "preprocessing", "end"),
    [
        (clip_native.QUICK_HPS, padded(24), END),
        ({**sizes.HPS, "vision_cfg": {**sizes.HPS["vision_cfg"], "head_width": 40}}, padded(24), END),
        ({**sizes.HPS, "text_cfg": {**sizes.HPS["text_cfg"], "heads": 2}}, padded(24), END),
        (sizes.HPS, Resized(size=(24, 24)), END),
        (sizes.HPS, replace(padded(24), antialias=False), END),
        (sizes.HPS, replace(padded(24), interpolation="bilinear"), END),
        (sizes.HPS, BlackMean(padded(24)), END),
        (sizes.HPS, padded(24), 0),
    ],
    ids=[
        "quick-gelu",
        "image-heads",
        "text-heads",
        "centre-crop",
        "no-antialias",
        "bilinear",
        "norm-first",
        "no-end",
    ],
)
@torch.no_grad()
def test_a_mistake_breaks_the_golden(
    config: dict[str, Any], preprocessing: Preprocessing, end: int, clip_family: Path
) -> None:
    clip, pairs = native(config), list(common.pairs(12))
    ids = OpenAiTokens().ids([text for _, text in pairs])
    ids[ids == END] = end
    pixels = torch.cat([preprocessing.from_pil([picture]) for picture, _ in pairs])
    score = torch.cosine_similarity(clip.image(pixels), clip.text(ids)).numpy()
    assert np.abs(score - STAGES["score"][:12]).max() > 1e-4


def test_the_unbroken_path_passes_the_same_measure(clip_family: Path) -> None:
    assert np.abs(clip_native.scores("hps_v2", 12) - STAGES["score"][:12]).max() <= 1e-6
