"""CLIPScore: its formula, and how its variants differ. Against the official code: test_clip_parity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.clip import clip_score
from metrics.encoders.clip_tokens import END
from metrics.encoders.transformers_clip import ClipFile
from metrics.preprocessing import Resized
from metrics.weights import manifest
from tests.parity import clip_native, common
from tests.parity.clip import sizes


def rows(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return image.to(dtype), text.to(dtype)


def test_equal_embeddings_score_one_opposite_ones_minus_one() -> None:
    image, _ = rows(0)
    assert torch.allclose(clip_score(image, image), torch.ones(5))
    assert torch.allclose(clip_score(image, -3 * image), -torch.ones(5))


def test_orthogonal_embeddings_score_zero() -> None:
    assert clip_score(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item() == 0


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_score_ignores_lengths_and_lies_in_its_range(seed: int, scale: float) -> None:
    image, text = rows(seed)
    score = clip_score(image, text)
    assert torch.allclose(clip_score(scale * image, text), score, atol=1e-6)
    assert score.abs().max() <= 1 + 1e-6


def test_known_value() -> None:
    assert clip_score(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])).item() == pytest.approx(24 / 25)


def test_half_precision_embeddings_are_scored_in_float32() -> None:
    image, text = rows(3, torch.bfloat16)
    score = clip_score(image, text)
    assert score.dtype == torch.float32
    assert torch.equal(score, clip_score(image.float(), text.float()))


def test_gradient_matches_finite_differences_in_float64() -> None:
    image, text = (tensor.requires_grad_() for tensor in rows(1, torch.float64))
    assert torch.autograd.gradcheck(clip_score, (image, text))


def test_the_two_kinds_of_tokens_differ_where_they_should() -> None:
    ids, openai = (clip_native.golden(name)[0]["ids"] for name in ("clip_score", "clip_score.imagereward"))
    different = (ids != np.where(openai == 0, END, openai)).any(axis=1)
    prompts = [prompt for _, prompt in common.pairs()]
    assert {prompts[index] for index in np.flatnonzero(different)} >= {common.PROMPTS[2], common.PROMPTS[3]}
    assert not different[prompts.index("a red circle")]


@torch.no_grad()
def test_the_state_before_the_last_norm_is_transformers_own(clip_family: Path) -> None:
    clip = ClipFile(manifest("clip-vit-large-patch14"), "model.safetensors", torch.device("cpu"), sizes.CLIP)
    official = clip_native.golden("clip_score")[0]["hidden"]
    pictures = Resized(size=(common.SIDE, common.SIDE), crop_offset="floor")
    seen = clip.image(torch.cat([pictures.from_pil([picture]) for picture, _ in common.pairs(len(official))]))
    assert np.abs(seen["hidden"].numpy() - official).max() <= 1e-6 * np.abs(official).max()
    assert np.abs(seen["post"].numpy() - official).max() > 1e-2  # after the norm


def test_the_published_clip_score_is_clamped_and_ours_is_not(clip_family: Path) -> None:
    hessel, raw = clip_native.scores("clip_score.hessel"), clip_native.scores("clip_score")
    assert hessel.min() == 0 < hessel.max()
    assert raw.min() < 0
    assert 0 < (hessel == 0).sum() < len(hessel)


def test_unirls_score_is_rtdmds_on_another_scale(clip_family: Path) -> None:
    rtdmd, unirl = (clip_native.scores(f"clip_score.{name}", 8) for name in ("rtdmd", "unirl"))
    assert unirl == pytest.approx(rtdmd * (100 / 30), rel=1e-6)
