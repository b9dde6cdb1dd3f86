"""The first-step loss: anchors on the teacher's path, targets that land on them, and who gets a gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import vp
from benchmarks.config import UserError, build
from benchmarks.protocol import Protocol
from benchmarks.samplers import Level, euler
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone, gaussian_velocity
from trainers.base import Networks, Roles, World
from trainers.first_step import FirstStepConfig, first_step_loss, teacher_anchor
from trainers.flow import eps_from_v, x0_from_v
from trainers.learner import EmaConfig, OptimiserConfig

TEACHER, UNGUIDED = gaussian_velocity(0.4, 0.8), gaussian_velocity(-0.9, 1.1)
FOUR_STEPS = Protocol(sampler="euler", num_inference_steps=4)


def noise() -> Tensor:
    return torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def networks(student: Callable[[Tensor, Level], Tensor]) -> Networks:
    return Networks(student=student, fake_score=TEACHER, teacher=TEACHER, unguided_teacher=UNGUIDED)


@pytest.mark.parametrize(("k_anchor", "level"), [(1, 0.988), (3, 0.963), (5, 0.935), (10, 0.851), (30, 0.0)])
def test_anchor_levels_of_thirty_steps_at_shift_3(k_anchor: int, level: float) -> None:
    levels = FirstStepConfig(k_anchor=k_anchor, shift=3.0).levels(1.0)
    assert levels[0] == 1 and len(levels) == k_anchor + 1 and levels[-1] == pytest.approx(level, abs=5e-4)


@pytest.mark.parametrize("k_anchor", [1, 5, 30])
def test_one_step_of_a_student_at_the_optimum_lands_on_the_anchor(k_anchor: int) -> None:
    z, c = noise(), FirstStepConfig(weight=1.0, k_anchor=k_anchor, shift=3.0)
    v = torch.zeros_like(z, requires_grad=True)
    first_step_loss(networks(lambda x, t: v), z, FOUR_STEPS, c).backward()
    assert v.grad is not None
    optimum = -v.grad * z.numel() / 2  # L is quadratic in v
    levels = c.levels(1.0)
    z_a = teacher_anchor(TEACHER, z, levels)
    assert (euler(z, optimum, 1.0, levels[-1]).mean - z_a).abs().max() < 1e-6
    assert first_step_loss(networks(lambda x, t: optimum), z, FOUR_STEPS, c).item() < 1e-12
    if k_anchor == 30:
        assert torch.allclose(optimum, z - z_a, rtol=0, atol=1e-9)


def test_a_full_trajectory_ends_in_the_teachers_distribution() -> None:
    z = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = teacher_anchor(TEACHER, z, FirstStepConfig(k_anchor=60, teacher_steps=60).levels(1.0))
    assert x0.mean().item() == pytest.approx(0.4, abs=0.03) and x0.std().item() == pytest.approx(0.8, abs=0.04)


def test_the_rollouts_own_call_is_not_made_again() -> None:
    z, calls = noise(), []
    student: Callable[[Tensor, Level], Tensor] = lambda x, t: calls.append(t) or 0.3 * x  # type: ignore[func-returns-value] # noqa: E731
    c = FirstStepConfig(weight=1.0)
    once = first_step_loss(networks(student), z, FOUR_STEPS, c)
    given = first_step_loss(networks(student), z, FOUR_STEPS, c, v=0.3 * z)
    assert calls == [1.0] and torch.equal(once, given)


def test_x0_form_is_the_diffusion_formula_through_the_bridge() -> None:
    """eps models: x0_hat = (x - b eps) / a; the VP numbers are made here from scratch."""
    c = FirstStepConfig(weight=1.0, k_anchor=2, teacher_steps=3, sigmas=(0.7, 0.4), form="x0")
    z, t_0 = noise(), 0.93
    protocol = Protocol(sampler="euler", num_inference_steps=2, sigmas=(t_0, 0.5))
    student = gaussian_velocity(-0.5, 0.3)
    found = first_step_loss(networks(student), z, protocol, c)

    def as_vp(t: float) -> tuple[float, float]:  # t = b / (a + b), a^2 + b^2 = 1
        length = ((1 - t) ** 2 + t**2) ** 0.5
        return (1 - t) / length, t / length

    def x0_hat(velocity: Callable[[Tensor, Level], Tensor], x_vp: Tensor, t: float) -> Tensor:
        a, b = as_vp(t)
        x, level = vp.to_flow(x_vp, a, b)
        eps = eps_from_v(x, velocity(x, level), level)
        return vp.x0_from_eps(x_vp, eps, a, b)

    a, b = as_vp(t_0)
    x = (a + b) * z  # the same noise as a VP sample
    for t, t_next in ((0.93, 0.7), (0.7, 0.4)):  # DDIM with eta = 0
        (a, b), (a_next, b_next) = as_vp(t), as_vp(t_next)
        x0 = x0_hat(TEACHER, x, t)
        x = a_next * x0 + b_next * vp.eps_from_x0(x, x0, a, b)
    start = as_vp(t_0)
    wanted = ((x0_hat(student, sum(start) * z, t_0) - x0_hat(TEACHER, x, 0.4)) ** 2).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9)
    scaled = FirstStepConfig(**{**c.__dict__, "scale": start[1] / start[0]})
    assert first_step_loss(networks(student), z, protocol, scaled).item() == pytest.approx(
        wanted.item() * (start[0] / start[1]) ** 2, rel=1e-9
    )


def test_x0_form_over_its_scale_is_a_mean_square_of_eps() -> None:
    z, t, (a, b) = noise(), 0.93, (0.07 / 0.9326, 0.93 / 0.9326)
    one, two = 0.3 * z, -0.1 * z
    difference = (x0_from_v(z, one, t) - x0_from_v(z, two, t)).square().mean() / (b / a) ** 2
    eps_mse = (eps_from_v(z, one, t) - eps_from_v(z, two, t)).square().mean()
    assert difference.item() == pytest.approx(eps_mse.item(), rel=1e-6)


@pytest.mark.parametrize("anchor_guided", [True, False])
def test_the_x0_form_asks_the_guided_teacher_at_the_anchor_or_the_unguided_one(anchor_guided: bool) -> None:
    """The way to the anchor is guided in either case."""
    c = FirstStepConfig(weight=1.0, k_anchor=2, sigmas=(0.7, 0.4), form="x0", anchor_guided=anchor_guided)
    z, student = noise(), gaussian_velocity(-0.5, 0.3)
    found = first_step_loss(networks(student), z, FOUR_STEPS, c)
    z_a = z - 0.3 * TEACHER(z, 1.0)
    z_a = z_a - 0.3 * TEACHER(z_a, 0.7)
    x0 = z_a - 0.4 * (TEACHER if anchor_guided else UNGUIDED)(z_a, 0.4)
    assert found.item() == pytest.approx((z - student(z, 1.0) - x0).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize("lean", [None, 0.5])
def test_roles_bind_the_teacher_with_guidance_and_without(lean: float | None) -> None:
    backbone = PointBackbone((0, 0), 1)
    asked: list[tuple[str, dict[str, object]]] = []
    backbone.velocity = lambda role, *_, **bound: asked.append((role, bound))  # type: ignore[method-assign,assignment]
    roles = Roles(backbone, OptimiserConfig(), OptimiserConfig(), EmaConfig(), World())
    bound = roles.networks([Prompt(text="a")], guidance_scale=5.0, lean=lean)
    for velocity in (bound.teacher, bound.unguided_teacher):
        velocity(noise(), 0.5)
    settings = {"prompts": 1, "fake_scale": lean}
    assert asked == [("teacher", settings | {"guidance_scale": scale}) for scale in (5.0, 1.0)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"anchor_guided": False}, 'anchor_guided is of form = "x0"'),
        ({"k_anchor": 31}, r"k_anchor must lie in 1 \.\. teacher_steps"),
        ({"k_anchor": 0}, "k_anchor"),
        ({"weight": -0.1}, "weight must be at least 0"),
        ({"sigmas": [1.0, 0.5]}, "sigmas must hold k_anchor values"),
        ({"k_anchor": 2, "sigmas": [0.5, 0.7]}, r"sigmas must fall strictly within \[0, 1\)"),
        ({"k_anchor": 1, "sigmas": [1.0]}, "sigmas must fall strictly"),
        ({"form": "x0", "k_anchor": 30}, "k_anchor must be below teacher_steps"),
        ({"k_ancor": 3}, "unknown key 'k_ancor'; did you mean 'k_anchor'"),
    ],
)
def test_contradictory_settings_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(FirstStepConfig, table, "x.toml")


def test_a_teacher_that_would_have_to_step_upwards_is_refused() -> None:
    protocol = Protocol(sampler="euler", num_inference_steps=2, sigmas=(0.9, 0.5))
    FirstStepConfig(weight=0.1, k_anchor=1, sigmas=(0.8,)).check(protocol)
    FirstStepConfig(weight=0.0, k_anchor=1, sigmas=(0.9,)).check(protocol)
    with pytest.raises(UserError, match=r"the teacher's first step ends at 0.9, the student starts at 0.9"):
        FirstStepConfig(weight=0.1, k_anchor=1, sigmas=(0.9,)).check(protocol)
