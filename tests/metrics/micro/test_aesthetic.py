from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from metrics.base import UserError
from metrics.images import to_tensor
from metrics.micro.aesthetic import STATISTICS, Aesthetic, aesthetic_score, log_statistics
from metrics.micro.world import Request, render, sample_scene
from metrics.weights import WeightFolder

CPU = torch.device("cpu")


@pytest.fixture
def renders() -> list[Image.Image]:
    request = Request(things=(("square", "red"), ("ring", "blue")))
    return [Image.fromarray(render(sample_scene(request, np.random.default_rng(seed)))) for seed in range(4)]


def statistic(name: str, images: list[Image.Image]) -> torch.Tensor:
    return log_statistics(to_tensor(images))[:, STATISTICS.index(name)]


def test_blur_lowers_sharpness_and_fading_lowers_contrast_and_saturation(renders: list[Image.Image]) -> None:
    blurred = [image.filter(ImageFilter.GaussianBlur(1.5)) for image in renders]
    faded = [Image.blend(image, Image.new("RGB", image.size, "grey"), 0.5) for image in renders]
    assert (statistic("sharpness", blurred) < statistic("sharpness", renders) - 0.3).all()
    assert (statistic("edges", blurred) < statistic("edges", renders)).all()
    for name in ("contrast", "saturation"):
        assert torch.allclose(statistic(name, faded), statistic(name, renders) + np.log(0.5), atol=0.05)


def test_statistics_of_a_known_picture() -> None:
    # Half black, half white: contrast 1/2, no colour; one column in 63 has a gradient of 1.
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., 32:] = 1
    expected = torch.tensor([[0.5, 1e-3, (1 / 63) ** 0.5, 1.0]]).log()
    assert torch.allclose(log_statistics(pixels), expected, atol=1e-3)


def test_gradient_matches_finite_differences_in_float64() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = {
        "weight": torch.randn(4, dtype=torch.float64),
        "mean": torch.randn(4, dtype=torch.float64),
        "std": torch.rand(4, dtype=torch.float64) + 0.5,
        "bias": torch.zeros((), dtype=torch.float64),
    }
    assert torch.autograd.gradcheck(lambda p: aesthetic_score(log_statistics(p), weights), (pixels,))


def test_a_blank_picture_has_a_finite_score_and_gradient() -> None:
    pixels = torch.full((1, 3, 64, 64), 0.7, requires_grad=True)
    statistics = log_statistics(pixels)
    (gradient,) = torch.autograd.grad(statistics.sum(), pixels)
    assert statistics.isfinite().all()
    assert gradient.isfinite().all()


def test_weights_of_another_head_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    head = Aesthetic(WeightFolder(path=tmp_path, mend="mend it"), CPU)
    with pytest.raises(UserError, match=r"model\.safetensors: tensors .*expected.*mend it"):
        head.score(torch.rand(1, 3, 64, 64))
