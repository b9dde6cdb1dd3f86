"""PickScore against recorded runs of transformers 4.57 (shrunken ViT-H/14, seeded: tests/parity/clip/official.py)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.encoders.clip_tokens import TransformersTokens
from metrics.encoders.transformers_clip import ClipFile
from metrics.loaded import LoadedMetric
from metrics.preprocessing import Resized
from metrics.weights import manifest
from tests.parity import clip_native, common
from tests.parity.clip import sizes

STAGES, ABOUT = common.load(clip_native.GOLDEN / "pick.npz")
PIL = Resized(size=(24, 24), crop_offset="floor")


def native(config: dict[str, Any] = sizes.PICK) -> ClipFile:
    return ClipFile(manifest("pick-score-v1"), "model.safetensors", torch.device("cpu"), config)


def test_the_seeded_weights_are_those_of_the_official_run() -> None:
    layout = clip_native.transformers_layout(sizes.PICK)
    assert common.checksum(common.seeded_weights(layout)) == ABOUT["weights"]


@pytest.mark.parametrize(
    ("identity", "stage", "divisor"), [("pick_score", "logit", 1), ("pick_score.rtdmd", "logit_bilinear", 26)]
)
def test_scores_equal_the_official_ones_end_to_end(
    identity: str, stage: str, divisor: float, clip_family: Path
) -> None:
    assert len(STAGES[stage]) >= 64
    assert np.abs(clip_native.scores(identity) - STAGES[stage] / divisor).max() <= 1e-4 / divisor


@torch.no_grad()
def test_features_equal_the_official_ones(clip_family: Path) -> None:
    clip, pairs = native(), list(common.pairs(common.SHOWN))
    normalise = torch.nn.functional.normalize
    image = clip.image(torch.cat([PIL.from_pil([picture]) for picture, _ in pairs]))["embedding"]
    text = torch.cat([clip.text(TransformersTokens().ids([prompt])) for _, prompt in pairs])
    assert np.abs(normalise(image).numpy() - STAGES["image"]).max() <= 1e-6
    assert np.abs(normalise(text).numpy() - STAGES["text"]).max() <= 1e-6


def test_gradients_equal_the_official_ones(clip_family: Path) -> None:
    clip = native()
    for index, (picture, prompt) in enumerate(common.pairs(common.SHOWN)):
        pixels = PIL.from_pil([picture]).requires_grad_()
        text = clip.text(TransformersTokens().ids([prompt]))
        (found,) = torch.autograd.grad(clip.logits(clip.image(pixels)["embedding"], text).sum(), pixels)
        official = STAGES["gradient"][index]
        assert np.abs(found[0].numpy() - official).max() <= 1e-5 * np.abs(official).max()


@pytest.mark.parametrize("tower", ["vision", "text"])
@torch.no_grad()
def test_quick_gelu_breaks_the_golden(tower: str, clip_family: Path) -> None:
    swapped = {**sizes.PICK[f"{tower}_config"], "hidden_act": "quick_gelu"}
    differences = []
    for config in (sizes.PICK, {**sizes.PICK, f"{tower}_config": swapped}):
        clip = native(config)
        found = [
            clip.logits(
                clip.image(PIL.from_pil([picture]))["embedding"], clip.text(TransformersTokens().ids([prompt]))
            )
            for picture, prompt in common.pairs(8)
        ]
        differences.append(np.abs(torch.cat(found).numpy() - STAGES["logit"][:8]).max())
    assert differences[0] <= 1e-4 < 1e-3 < differences[1]


def test_the_score_is_the_cosine_times_the_models_own_scale(clip_family: Path) -> None:
    pictures, prompts = zip(*common.pairs(8), strict=True)
    scale = np.exp(common.seeded_tensor("logit_scale", ()))
    found = LoadedMetric("pick_score")(pictures, list(prompts)).numpy()
    assert np.abs(found - scale * STAGES["cosine"][:8]).max() <= 1e-4
    assert np.abs(found - STAGES["cosine"][:8]).max() > 0.1  # the scale left out
