"""PickScore: its scale. Against the official code: test_clip_parity."""

from pathlib import Path

import numpy as np

from metrics.loaded import LoadedMetric
from tests.parity import clip_native, common


def test_the_score_is_the_cosine_times_the_models_own_scale(clip_family: Path) -> None:
    pictures, prompts = zip(*common.pairs(common.SHOWN), strict=True)
    stages, _ = clip_native.golden("pick_score")
    cosine = (stages["image"] * stages["text"]).sum(axis=1)
    scale = np.exp(common.seeded_tensor("logit_scale", ()))
    found = LoadedMetric("pick_score")(pictures, list(prompts)).numpy()
    assert np.abs(found - scale * cosine).max() <= 1e-4
    assert np.abs(found - cosine).max() > 0.1  # the scale left out
