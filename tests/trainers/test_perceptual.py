import pytest
import torch

from trainers.perceptual import load_perceptual, reduced


def test_pictures_are_reduced_only_where_they_are_larger() -> None:
    small = torch.rand(1, 3, 48, 64)
    assert reduced(small, 48) is small
    assert reduced(small, 24).shape == (1, 3, 24, 32)
    assert reduced(torch.full((1, 3, 48, 64), 0.3), 12).flatten().tolist() == pytest.approx([0.3] * 576)


def test_the_micro_distance_grows_with_the_change_and_has_a_gradient() -> None:
    distance = load_perceptual("micro_perceptual", torch.device("cpu"))
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 16:40, 16:40] = 1
    near, far = picture.clone(), picture.clone()
    near[:, 0, 16:20, 16:40] = 0
    far[:, 0] = 0
    far[:, 2, 30:60, 30:60] = 1
    changed = torch.cat([picture, near, far]).requires_grad_()
    values = distance(changed, picture.expand(3, -1, -1, -1))
    assert abs(values[0].item()) < 1e-6 and 0.001 < values[1].item() < values[2].item()
    values[2].backward()
    assert changed.grad is not None and changed.grad[2].any() and not changed.grad[0].any()
