"""The toys' own pieces: exact scores, known fixed points, and layouts that are told apart."""

import numpy as np
import pytest
import torch

from metrics.micro.shapes import Detection, detect
from metrics.micro.world import Request, render, sample_scene
from tests.studies.toys import branches, mixtures
from tests.trainers.closed_form import gaussian_velocity

LOW = mixtures.LEVELS["low levels"]


def test_a_mixture_of_one_is_a_gaussian() -> None:
    x, t = torch.randn(16, 2, dtype=torch.float64), torch.rand(16, 1, dtype=torch.float64) * 0.9 + 0.05
    one = mixtures.mixture_velocity(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    torch.testing.assert_close(one(x, t), gaussian_velocity(0.0, 0.5)(x, t))
    twice = mixtures.mixture_velocity(torch.zeros(2, 2, dtype=torch.float64), 0.5)
    torch.testing.assert_close(twice(x, t), one(x, t))


def test_a_mixtures_velocity_is_that_of_its_density() -> None:
    means, tau, t = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64), 0.3, 0.4
    x = torch.linspace(-2, 3, 21, dtype=torch.float64)[:, None].requires_grad_()
    variance = (1 - t) ** 2 * tau**2 + t**2
    log_p = torch.logsumexp(-((x - (1 - t) * means[:, 0]) ** 2) / (2 * variance), dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    expected = -(x.detach() + t * score) / (1 - t)
    torch.testing.assert_close(mixtures.mixture_velocity(means, tau)(x.detach(), t), expected)


def test_low_noise_takes_one_mode_and_all_levels_span_both() -> None:
    mean, deviation = mixtures.fit_gaussian(3.0, LOW, updates=500)
    assert (mean, deviation) == (pytest.approx(1.5, abs=0.05), pytest.approx(0.25, abs=0.05))
    mean, deviation = mixtures.fit_gaussian(0.0, LOW, updates=300)
    assert (mean, deviation) == (pytest.approx(0.0, abs=0.05), pytest.approx(0.25, abs=0.03))


def test_the_gradient_points_at_the_support_where_noise_is_low() -> None:
    means, points = mixtures.ring(32, 1.0), torch.tensor([[1.6, 0.0], [0.0, -1.5], [0.3, 0.2], [-0.4, 0.0]])
    gradient = mixtures.gradient_field(points, means, 0.05, 1.0, 0.1, draws=64)
    way = mixtures.towards(points, means)
    assert torch.cosine_similarity(gradient, way).min() > 0.95
    on_support = mixtures.gradient_field(means[:4], means, 0.05, 1.0, 0.1, draws=64)
    assert on_support.norm(dim=1).max() < 0.1 * gradient.norm(dim=1).min()


def test_coverage_counts_modes_and_what_lies_beside_them() -> None:
    means = mixtures.ring(4, 1.0)
    drawn = torch.cat([means[:2].repeat(30, 1), torch.tensor([[3.0, 3.0]]).repeat(40, 1)])
    found = mixtures.coverage(drawn, means, 0.1)
    assert (found["modes"], found["largest_share"], found["off_support"]) == (
        2.0,
        pytest.approx(0.3),
        pytest.approx(0.4),
    )


def test_branches_share_the_trunk_and_part_at_their_step() -> None:
    seen: list[tuple[float, torch.Tensor]] = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((t, x.clone()))
        return gaussian_velocity(0.0, 1.0)(x, t)

    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).expand(4, 3)
    branches.branch(velocity, z, [1.0, 0.75, 0.5, 0.25, 0.0], 2, torch.Generator().manual_seed(1))
    alike = {t: bool((x == x[0]).all()) for t, x in seen}
    assert alike == {1.0: True, 0.75: True, 0.5: False, 0.25: False}
    last = branches.branch(velocity, z, [1.0, 0.5, 0.0], 2, torch.Generator())
    assert (last == last[0]).all()  # the last step has no noise to draw


def test_layouts_differ_by_place_and_content_by_objects() -> None:
    def picture(seed: int, shape: str = "circle") -> list[Detection]:
        scene = sample_scene(Request(((shape, "red"),)), np.random.default_rng(seed))
        return detect(render(scene))

    one, same, other = picture(0), picture(0), picture(0, "square")
    assert branches.layout(one, 64) == branches.layout(same, 64)
    assert branches.content(one) != branches.content(other)
    places = {str(branches.layout(picture(seed), 64)) for seed in range(20)}
    assert len(places) > 3 and len({str(branches.content(picture(seed))) for seed in range(20)}) == 1
