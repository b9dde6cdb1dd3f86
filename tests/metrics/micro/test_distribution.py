"""The micro world's set metrics tell renders from what no render looks like."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, ImageFilter

from metrics.base import Batch, Prompt, make
from metrics.loaded import Scorer
from metrics.micro import distribution
from metrics.micro.prompts import Combination, prompt_sets
from metrics.micro.world import render, sample_scene

SETS = ("micro_fid", "micro_kid", "micro_precision", "micro_recall")


@pytest.fixture
def small_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reference of some of the renders, encoded anew into a cache of this test's own."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    pictures = list(few_renders(240, seed=5))
    monkeypatch.setattr(distribution, "reference_pictures", lambda: pictures)


def few_renders(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    records = prompt_sets()["test"]
    chosen = [records[index] for index in rng.integers(0, len(records), count)]
    return [Image.fromarray(render(sample_scene(distribution.as_request(record), rng))) for record in chosen]


def values(pictures: list[Image.Image]) -> dict[str, float]:
    prompts = [Prompt(text=str(index)) for index in range(len(pictures))]
    rows = Scorer(SETS).score(pictures, Batch(prompts=prompts, seeds=[0] * len(pictures)))
    found = {name: make(name).summarise(rows[name], prompts).value for name in SETS}
    return {name: value for name, value in found.items() if value is not None}


def test_renders_are_near_renders_and_blurred_ones_far(small_reference: None) -> None:
    clean = few_renders(200, seed=6)
    near, far = values(clean), values([picture.filter(ImageFilter.GaussianBlur(3)) for picture in clean])
    assert near["micro_fid"] < far["micro_fid"] / 2
    assert near["micro_kid"] < far["micro_kid"] / 2
    assert abs(near["micro_kid"]) < 0.1 * far["micro_kid"]
    assert near["micro_precision"] > 0.6


def test_the_reference_itself_has_every_best_value(small_reference: None) -> None:
    found = values(list(distribution.reference_pictures()))
    assert found["micro_precision"] == found["micro_recall"] == 1
    assert abs(found["micro_fid"]) < 1e-3
    assert found["micro_kid"] < 0  # unbiased: the diagonal, where both sets are equal, is left out of one part only


def test_the_reference_asks_for_what_the_prompts_ask_for() -> None:
    scene = Combination("position", (("circle", "red"), ("ring", "")), "above")
    assert distribution.as_request(scene.record("{}")) == scene.request
    count = Combination("counting", (("cross", ""),) * 3)
    assert distribution.as_request(count.record("{}")) == count.request


def test_perceptual_diversity_is_zero_for_equal_pictures_and_per_prompt() -> None:
    pictures = few_renders(3, seed=1)
    prompts = [Prompt(text=text) for text in "aabb"]
    batch = Batch(prompts=prompts, seeds=[0, 1, 0, 1])
    scorer = Scorer(["micro_perceptual_diversity"])
    rows = scorer.score([pictures[0], pictures[0], pictures[1], pictures[2]], batch)["micro_perceptual_diversity"]
    score = rows["score"]
    assert isinstance(score, torch.Tensor)
    assert score[:2].tolist() == [0, 0]
    assert score[2] == score[3] > 0.1
