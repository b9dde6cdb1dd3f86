import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.clip import clip_score


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
