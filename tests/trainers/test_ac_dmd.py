import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError, build
from benchmarks.samplers import Level, cps
from tests.trainers.closed_form import gaussian_velocity
from trainers import ac_dmd, dmd
from trainers.ac_dmd import AcDmdConfig, consistency_loss, velocity_target
from trainers.draws import Draws
from trainers.flow import interpolate, subinterval
from trainers.rollout import Step

S, T = 0.5, 0.8
THETA = 0.9 * math.pi / 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Scripted(Draws):
    """Draws whose levels and noises are given in advance."""

    def __init__(self, level: float, noises: Sequence[Tensor]) -> None:
        super().__init__(0)
        self._level, self._noises = level, list(noises)

    def uniform(self, low: Level, high: Level, x: Tensor) -> Tensor:
        return torch.full((len(x), *[1] * (x.ndim - 1)), self._level, dtype=x.dtype)

    def normal_like(self, x: Tensor) -> Tensor:
        return self._noises.pop(0)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.8), (0.25, 0.3), (0.75, 0.95)])
def test_velocity_target_regresses_to_the_marginal_velocity(s: float, t: float) -> None:
    n, mu, tau = 400_000, 0.7, 0.5
    x0, eps, noise = draw(3, n)
    x_s = interpolate(mu + tau * x0, eps, s)
    a, sigma = subinterval(s, t)
    x_t, u = a * x_s + sigma * noise, velocity_target(x_s, noise, s, t, sigma)
    design = torch.stack([torch.ones_like(x_t), x_t], dim=1)
    found = torch.linalg.lstsq(design, u[:, None]).solution[:, 0]
    residual = u - design @ found
    errors = (torch.linalg.inv(design.T @ design).diagonal() * residual.var()).sqrt()
    exact = gaussian_velocity(mu, tau)
    intercept = exact(torch.zeros(1, dtype=torch.float64), t)[0]
    slope = exact(torch.ones(1, dtype=torch.float64), t)[0] - intercept
    assert ((found - torch.stack([intercept, slope])).abs() < 3 * errors).all()


def test_velocity_target_at_level_zero_is_noise_minus_data() -> None:
    x0, noise = draw(2, 6, 3)
    a, sigma = subinterval(0.0, T)
    assert (a, sigma) == pytest.approx((1 - T, T))
    assert torch.allclose(velocity_target(x0, noise, 0.0, T, sigma), noise - x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.51), (0.5, 0.8), (0.0, 0.2)])
def test_fake_score_loss_weighs_by_ten_sigma_squared_up_to_one(s: float, t: float) -> None:
    x_s, noise = draw(2, 5, 3)
    _, sigma = subinterval(s, t)
    loss = ac_dmd.fake_score_loss(
        lambda x_t, level: torch.zeros_like(x_t), x_s, s, 0.9, AcDmdConfig(gamma=0.0), Scripted(t, [noise])
    )
    weight = min(1.0, 10 * float(sigma) ** 2)
    assert loss.item() == pytest.approx((weight * velocity_target(x_s, noise, s, t, sigma) ** 2).mean().item())


@pytest.mark.parametrize(("s", "t", "eta", "factor"), [(S, T, 0.9, 0.38436), (S, T, 0.0, 0.3), (0.0, T, 0.9, T)])
def test_projections_differ_by_the_velocities_times_a_known_factor(
    s: float, t: float, eta: float, factor: float
) -> None:
    x_t, v_teacher, v_fake, noise = draw(4, 7, 3)
    back = [cps(x_t, v, t, s, eta).sample(noise) for v in (v_fake, v_teacher)]
    assert t * (1 - s) - s * (1 - t) * math.cos(eta * math.pi / 2) == pytest.approx(factor, abs=1e-5)
    assert torch.allclose(
        back[0] - back[1], -(t * (1 - s) - s * (1 - t) * math.cos(eta * math.pi / 2)) * (v_fake - v_teacher)
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
def test_ac_dmd_of_the_last_step_is_plain_dmd(eta: float) -> None:
    teacher, fake = gaussian_velocity(-0.2, 0.5), gaussian_velocity(1.0, 0.7)
    eps, back = draw(2, 9, 2, seed=1)
    t = torch.full((9, 1), T, dtype=torch.float64)
    gradients = []
    for plain in (True, False):
        x0 = draw(9, 2).requires_grad_()
        if plain:
            loss = dmd.student_loss(x0, teacher, fake, t, eps)
        else:
            loss = ac_dmd.student_loss(x0, 0.0, teacher, fake, eta, AcDmdConfig(), Scripted(T, [eps, back]))
        gradients.append(torch.autograd.grad(loss, x0)[0])
    assert torch.allclose(*gradients, atol=1e-6, rtol=0) and gradients[0].any()


def test_student_loss_at_level_s_has_the_normalised_projection_difference_as_gradient() -> None:
    teacher, fake = gaussian_velocity(-0.2, 0.5), gaussian_velocity(1.0, 0.7)
    x_s, noise, back = draw(9, 2).requires_grad_(), draw(9, 2, seed=1), draw(9, 2, seed=2)
    loss = ac_dmd.student_loss(x_s, S, teacher, fake, 0.9, AcDmdConfig(), Scripted(T, [noise, back]))
    (found,) = torch.autograd.grad(loss, x_s)
    a, sigma = subinterval(S, T)
    x_t = (a * x_s + sigma * noise).detach()
    xs_teacher, xs_fake = (cps(x_t, net(x_t, T), T, S, 0.9).sample(back) for net in (teacher, fake))
    scale = (x_s.detach() - xs_teacher).abs().mean(dim=1, keepdim=True)
    assert torch.allclose(found * x_s.numel(), (xs_fake - xs_teacher) / scale, rtol=0, atol=1e-9)


def test_gradient_through_the_noisy_sample_is_that_of_its_mean() -> None:
    t, s = 0.75, 0.5
    v = torch.ones((), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(cps(draw(1), v, t, s, 0.9).sample(draw(1, seed=3)).sum(), v)
    assert found.item() == pytest.approx(-t * (1 - s) + (1 - t) * s * math.cos(THETA))


CONSISTENCY = 0.4, 0.8, 0.7, 0.5  # mu, tau, t, t''


def mean_consistency(
    kind: Literal["cps", "ancestral"],
    eta: float,
    samples: Literal[1, 2] = 2,
    n: int = 400_000,
    between: Sequence[float] = (),
) -> tuple[float, float]:
    """Return the mean of the product of errors, and its standard error, for the exact Gaussian model.

    between: levels that the moves stop at on their way."""
    mu, tau, t, near = CONSISTENCY
    levels = [t, *between, near]
    velocity = gaussian_velocity(mu, tau)
    x0, eps = draw(2, n, 1, seed=5)
    x_t = interpolate(mu + tau * x0, eps, t)
    settings = AcDmdConfig(consistency_transition=kind, consistency_samples=samples)
    blocks = torch.stack([
        consistency_loss(velocity, part, velocity(part, t), levels, eta, settings, Draws(k))
        for k, part in enumerate(x_t.split(n // 100))
    ])  # fmt: skip
    return blocks.mean().item(), blocks.std().item() / math.sqrt(len(blocks))


def test_consistency_loss_of_the_exact_model_vanishes_with_ancestral_moves() -> None:
    mean, error = mean_consistency("ancestral", 0.9)
    assert abs(mean) < 3 * error and error < 5e-4


def test_consistency_loss_of_the_exact_model_has_the_known_bias_with_cps_moves() -> None:
    mean, error = mean_consistency("cps", 0.9)
    assert mean == pytest.approx(0.010092, abs=3 * error) and error < 3e-4


def test_two_reverse_samples_remove_the_variance_that_one_leaves() -> None:
    two, one = mean_consistency("ancestral", 0.9), mean_consistency("ancestral", 0.9, samples=1)
    assert one[0] > 10 * (abs(two[0]) + two[1])


def test_deterministic_moves_make_the_loss_a_mean_square() -> None:
    x_t = draw(64, 3)
    velocity = lambda x, t: torch.sin(3 * x)  # noqa: E731
    values = [
        consistency_loss(
            velocity, x_t, velocity(x_t, 0.7), [0.7, 0.5], 0.0, AcDmdConfig(consistency_samples=k), Draws(0)
        )
        for k in (1, 2)
    ]
    assert torch.equal(*values) and values[0] > 0


def test_ancestral_moves_are_the_posterior_of_the_path() -> None:
    n, mu, tau, s, t = 300_000, 0.4, 0.8, 0.5, 0.7
    x0, eps, noise = draw(3, n, 1, seed=7)
    clean = mu + tau * x0
    x_s = interpolate(clean, eps, s)
    a, sigma = subinterval(s, t)
    x_t = a * x_s + sigma * noise
    move = ac_dmd.ancestral(x_t, (x_t - clean) / t, t, s)  # a model that knows x0
    errors = (x_s - move.mean) / move.std
    assert abs(errors.mean()) < 4 / math.sqrt(n) and errors.var() == pytest.approx(1, rel=4 * math.sqrt(2 / n))
    assert abs((errors * x_t).mean()) < 4 / math.sqrt(n)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Level) -> Tensor:
        return self.weight * x_t


def fake_gradient(gamma: float) -> Tensor:
    network, x_s = Linear(), draw(16, 3)
    ac_dmd.fake_score_loss(network, x_s, S, 0.9, AcDmdConfig(gamma=gamma), Draws(3)).backward()
    assert network.weight.grad is not None
    return network.weight.grad


def test_without_gamma_the_fake_gradient_is_that_of_a_dmd_bit_for_bit() -> None:
    network, x_s, draws = Linear(), draw(16, 3), Draws(3)
    t = draws.uniform(S + 0.01, 1.0, x_s).clamp(0.02, 0.98)
    noise = draws.normal_like(x_s)
    a, sigma = subinterval(S, t)
    error = network(a * x_s + sigma * noise, t) - velocity_target(x_s, noise, S, t, sigma)
    ((10 * sigma**2).clamp(max=1) * error**2).mean().backward()
    assert network.weight.grad is not None
    assert torch.equal(fake_gradient(0.0), network.weight.grad)
    assert not torch.equal(fake_gradient(0.01), network.weight.grad)


def test_consistency_gradient_flows_through_all_three_predictions_and_not_through_the_moves() -> None:
    network, x_t, t, near = Linear(), draw(16, 3), 0.7, 0.5
    loss = consistency_loss(network, x_t, network(x_t, t), [t, near], 0.9, AcDmdConfig(), Draws(1))
    (found,) = torch.autograd.grad(loss, network.weight)
    draws, w = Draws(1), network.weight.detach()
    move = cps(x_t, w * x_t, t, near, 0.9)
    points = [move.sample(draws.normal_like(x_t)) for _ in range(2)]
    errors = [(1 - near * w) * x - (1 - t * w) * x_t for x in points]
    slopes = [-near * x + t * x_t for x in points]  # d errors / d w with the points held fixed
    expected = (slopes[0] * errors[1] + errors[0] * slopes[1]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_level_is_drawn_above_the_samples_own_within_the_bounds() -> None:
    x = torch.zeros(20_000, 1)
    for s in (0.0, 0.5, 0.9):
        t = ac_dmd.renoise_level(s, x, AcDmdConfig(), Draws(0))
        assert t.min() >= max(s + 0.01, 0.02) - 1e-6 and t.max() <= 0.98
        # [s + .01, 1] is clamped: the mass above .98 sits exactly there
        assert (t == 0.98).float().mean() == pytest.approx(0.02 / (0.99 - s), abs=0.01)


def test_the_consistency_loss_joins_with_gamma_at_a_level_just_below() -> None:
    network, x_s = Linear(), draw(16, 3)
    plain, joined = (
        ac_dmd.fake_score_loss(network, x_s, S, 0.9, AcDmdConfig(gamma=gamma), Draws(3)) for gamma in (0.0, 0.5)
    )
    draws = Draws(3)
    t, noise = ac_dmd.renoise_level(S, x_s, AcDmdConfig(), draws), draws.normal_like(x_s)
    a, sigma = subinterval(S, t)
    x_t = a * x_s + sigma * noise
    near = (t - draws.uniform(0.001, 0.2, x_t)).clamp(min=0)
    expected = consistency_loss(network, x_t, network(x_t, t), [t, near], 0.9, AcDmdConfig(), draws)
    assert ((joined - plain) / 0.5).item() == pytest.approx(expected.item(), rel=1e-9) and expected != 0


GRID = [1.0, 0.9, 0.75, 0.5, 0.0]  # SD3's four steps


def step_at(k: int, noise: Tensor, x_t: Tensor, v: Tensor) -> Step:
    move = cps(x_t, v, GRID[k - 1], GRID[k], 0.9)
    return Step(k, GRID[k - 1], GRID[k], x_t, v, move, move.sample(noise))


def test_the_anchor_is_the_steps_noisy_end_or_its_prediction() -> None:
    step = step_at(3, *draw(3, 4, 2))
    no_draws = Scripted(0.0, [])
    x_s, s = ac_dmd.anchor_sample(step, GRID, 0.9, AcDmdConfig(), no_draws)
    assert torch.equal(x_s, step.x_next) and s == 0.5
    x_s, s = ac_dmd.anchor_sample(step, GRID, 0.9, AcDmdConfig(anchor="x0_full"), no_draws)
    assert torch.equal(x_s, step.x_t - 0.75 * step.v) and s == 0


@pytest.mark.parametrize(("k", "level"), [(1, 0.75), (2, 0.75), (3, 0.75), (4, 0.5)])
def test_a_fixed_boundary_is_reached_by_one_move_or_noised_where_the_step_begins(k: int, level: float) -> None:
    """s = min(t_{k-1}, grid[2]); the gradient is that of the move's mean: -t (1 - s) + (1 - t) s cos theta."""
    first, x_t, v, noise = draw(4, 6, 2)
    step = step_at(k, first, x_t, v.requires_grad_())
    found, s = ac_dmd.anchor_sample(step, GRID, 0.9, AcDmdConfig(anchor="fixed_boundary"), Scripted(0.0, [noise]))
    assert s == level
    t = GRID[k - 1]
    x0, eps = x_t - t * v, x_t + (1 - t) * v
    assert torch.allclose(found, (1 - s) * x0 + s * math.cos(THETA) * eps + s * math.sin(THETA) * noise)
    (slope,) = torch.autograd.grad(found.sum(), v)
    assert torch.allclose(slope, torch.full_like(slope, -t * (1 - s) + (1 - t) * s * math.cos(THETA)))
    assert slope.all()  # a step that stays where it begins learns too, as long as there is noise


def test_another_boundary_is_another_level() -> None:
    step, settings = step_at(1, *draw(3, 4, 2)), AcDmdConfig(anchor="fixed_boundary", boundary=1)
    assert ac_dmd.anchor_sample(step, GRID, 0.9, settings, Draws(0))[1] == 0.9


def test_the_defaults_are_the_loss_of_the_authors_configs_bit_for_bit() -> None:
    network, x_s = Linear(), draw(16, 3)
    loss = ac_dmd.fake_score_loss(network, x_s, S, 0.9, AcDmdConfig(), Draws(3))
    (found,) = torch.autograd.grad(loss, network.weight)
    draws = Draws(3)
    t, noise = draws.uniform(S + 0.01, 1.0, x_s).clamp(0.02, 0.98), draws.normal_like(x_s)
    a, sigma = subinterval(S, t)
    x_t = a * x_s + sigma * noise
    v = network(x_t, t)
    u = -x_s / (1 - S) + (t - sigma**2) / (sigma * (1 - t)) * noise
    expected = ((10 * sigma**2).clamp(max=1) * (v - u) ** 2).mean()
    near = (t - draws.uniform(0.001, 0.2, x_t)).clamp(min=0)
    with torch.no_grad():
        move = cps(x_t, v, t, near, 0.9)
        points = [move.sample(draws.normal_like(x_t)) for _ in range(2)]
    errors = [x - near * network(x, near) - (x_t - t * v) for x in points]
    expected = expected + 0.01 * (errors[0] * errors[1]).mean()
    assert torch.equal(loss, expected) and torch.equal(found, torch.autograd.grad(expected, network.weight)[0])


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.51), (0.5, 0.8), (0.0, 0.2)])
def test_without_weighting_the_error_of_the_velocity_is_plain(s: float, t: float) -> None:
    x_s, noise = draw(2, 5, 3)
    _, sigma = subinterval(s, t)
    settings = AcDmdConfig(gamma=0.0, weighting="none")
    loss = ac_dmd.fake_score_loss(lambda x_t, at: 0.3 * x_t, x_s, s, 0.9, settings, Scripted(t, [noise]))
    x_t = (1 - t) / (1 - s) * x_s + sigma * noise
    assert loss.item() == pytest.approx((0.3 * x_t - velocity_target(x_s, noise, s, t, sigma)).square().mean().item())


@pytest.mark.parametrize(("t", "levels"), [(0.8, [0.8, 0.7, 0.6, 0.5]), (0.15, [0.15, 0.05, 1e-6, 0.0])])
def test_moves_lead_from_level_to_level_and_end_at_data_at_the_latest(t: float, levels: list[float]) -> None:
    start = torch.full((2, 1), t, dtype=torch.float64)
    found = ac_dmd.levels_below(start, AcDmdConfig(consistency_num_steps=3), Scripted(0.1, []))
    assert torch.cat(found, dim=1).tolist() == [pytest.approx(levels, abs=1e-12)] * 2
    one, two = ac_dmd.levels_below(torch.full((20_000, 1), t), AcDmdConfig(), Draws(0))
    assert (one - two).max() <= 0.2 and (t < 0.2 or (one - two).min() >= 0.001 - 1e-6)


@pytest.mark.parametrize("between", [(0.6,), (0.65, 0.55)])
def test_consistency_loss_of_the_exact_model_vanishes_over_ancestral_moves_too(
    between: tuple[float, ...],
) -> None:
    mean, error = mean_consistency("ancestral", 0.9, n=100_000, between=between)
    assert abs(mean) < 3 * error and error < 1e-3
    two, one = mean, mean_consistency("ancestral", 0.9, samples=1, n=100_000, between=between)[0]
    assert one > 10 * (abs(two) + error)


def test_each_move_starts_where_the_one_before_has_led_with_a_prediction_of_its_own() -> None:
    network, x_t, levels = Linear(), draw(16, 3), [0.8, 0.6, 0.5]
    draws = Draws(1)
    found = ac_dmd.moved(network, x_t, network(x_t, 0.8), levels, 0.9, AcDmdConfig(), draws)
    draws = Draws(1)
    between = cps(x_t, 0.3 * x_t, 0.8, 0.6, 0.9).sample(draws.normal_like(x_t))
    expected = cps(between, 0.3 * between, 0.6, 0.5, 0.9).sample(draws.normal_like(x_t))
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", ["cps", "ancestral"])
def test_a_chain_of_moves_that_has_come_to_data_stays_there(kind: Literal["cps", "ancestral"]) -> None:
    """A model that knows x0: wherever the chain has come to, its prediction is that, and the loss 0."""
    clean, eps = draw(2, 8, 3)
    t = torch.full((8, 1), 0.05, dtype=torch.float64)
    knows = lambda x, level: (x - clean) / torch.as_tensor(level).clamp(min=1e-12)  # noqa: E731
    settings = AcDmdConfig(consistency_num_steps=4, consistency_transition=kind)
    levels = ac_dmd.levels_below(t, settings, Scripted(0.04, []))
    assert levels[-1].eq(0).all()
    x_t = interpolate(clean, eps, t)
    assert torch.allclose(
        ac_dmd.moved(knows, x_t, knows(x_t, t), levels, 0.9, settings, Draws(0)), clean, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("moves", [1, 3])
def test_moves_carry_the_gradient_of_their_predictions_where_it_is_not_stopped(moves: int) -> None:
    x_t, levels = draw(16, 3), [0.8, 0.7, 0.6, 0.5][: moves + 1]

    def value(weight: float, stopgrad: bool = False) -> tuple[float, float]:
        network = Linear()
        with torch.no_grad():
            network.weight.fill_(weight)
        settings = AcDmdConfig(consistency_stopgrad=stopgrad)
        loss = consistency_loss(network, x_t, network(x_t, 0.8), levels, 0.9, settings, Draws(1))
        return loss.item(), torch.autograd.grad(loss, network.weight)[0].item()

    step = 1e-5
    numeric = (value(0.3 + step)[0] - value(0.3 - step)[0]) / (2 * step)
    assert value(0.3)[1] == pytest.approx(numeric, rel=1e-6)
    assert value(0.3, stopgrad=True)[0] == value(0.3)[0]
    assert abs(value(0.3, stopgrad=True)[1] - numeric) > 1e-3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"consistency_num_steps": 0}, "consistency_num_steps and boundary must be at least 1"),
        ({"anchor": "fixed_boundary", "boundary": 0}, "consistency_num_steps and boundary must be at least 1"),
        ({"boundary": 1}, 'boundary is of anchor = "fixed_boundary": anchor = "next_sigma" has none'),
        ({"anchor": "x0_full", "boundary": 3}, 'anchor = "x0_full" has none'),
        ({"weighting": "snr"}, "weighting"),
        ({"start_mode": "fixed_boundary"}, "unknown key 'start_mode'"),
    ],
)
def test_contradictory_settings_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(AcDmdConfig, table, "x.toml")


def test_a_boundary_needs_a_level_of_the_students_and_a_sampler_with_noise() -> None:
    fixed = AcDmdConfig(anchor="fixed_boundary", boundary=3)
    fixed.check(GRID, 0.9)
    AcDmdConfig().check([1.0, 0.0], 0.0)
    with pytest.raises(UserError, match=r"of the 3 steps of the student none begins at level 3, counted from 0"):
        fixed.check([1.0, 0.75, 0.5, 0.0], 0.9)
    with pytest.raises(UserError, match="needs a stochastic sampler"):
        fixed.check(GRID, 0.0)


@pytest.mark.parametrize(
    ("settings", "levels", "refused"),
    [
        (AcDmdConfig(), [1.0, 0.985, 0.5, 0.0], True),
        (AcDmdConfig(), [1.0, 0.971, 0.5, 0.0], True),  # every draw would be clamped to one level
        (AcDmdConfig(), [1.0, 0.97, 0.5, 0.0], False),
        (AcDmdConfig(high=0.999), [1.0, 0.985, 0.5, 0.0], False),
        (AcDmdConfig(anchor="x0_full"), [1.0, 0.985, 0.5, 0.0], False),
        (AcDmdConfig(anchor="fixed_boundary"), [1.0, 0.985, 0.5, 0.0], False),  # the boundary is the third level
        (AcDmdConfig(anchor="fixed_boundary"), [1.0, 0.99, 0.985, 0.0], True),
        (AcDmdConfig(), [1.0, 0.0], False),
    ],
)
def test_a_step_that_ends_too_high_for_its_samples_to_be_noised_is_refused(
    settings: AcDmdConfig, levels: list[float], refused: bool
) -> None:
    """Noised to the bound below its own level, a sample would have a negative variance: every loss not a number."""
    with pytest.raises(UserError, match=r"steps end as high as level 0\.9") if refused else nullcontext():
        settings.check(levels, 0.9)
