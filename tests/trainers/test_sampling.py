"""Schedules and samplers as the trainers rely on them."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.samplers import cps, euler, renoise, sigma_grid
from tests.trainers.closed_form import gaussian_velocity
from trainers.base import SamplerConfig
from trainers.flow import Velocity
from trainers.rollout import replay, rollout, rollout_in_parts


@pytest.mark.parametrize(
    ("shift", "levels"), [(1.0, [1, 0.75, 0.5, 0.25]), (3.0, [1, 0.9, 0.75, 0.5]), (5.0, [1, 0.9375, 0.8333, 0.625])]
)
def test_grid_is_shifted_once(shift: float, levels: list[float]) -> None:
    grid = sigma_grid(SamplerConfig(shift=shift).protocol(Protocol()))
    assert grid == pytest.approx([*levels, 0], abs=1e-4)
    assert grid[0] == 1 and all(a > b for a, b in pairwise(grid))


def test_the_stock_scheduler_shifts_twice_so_students_carry_their_own_grid() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert scheduler.sigmas.tolist() == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=1e-4)


def test_cps_spans_euler_and_renoising() -> None:
    x_t, v, noise = torch.randn(3, 6, 4, dtype=torch.float64)
    assert torch.allclose(cps(x_t, v, 0.8, 0.5, 0.0).sample(noise), euler(x_t, v, 0.8, 0.5).mean, rtol=0, atol=1e-6)
    assert torch.allclose(cps(x_t, v, 0.8, 0.5, 1.0).sample(noise), renoise(x_t, v, 0.8, 0.5).sample(noise))
    for eta in (0.0, 0.5, 0.9, 1.0):
        assert torch.equal(cps(x_t, v, 0.8, 0.0, eta).sample(noise), x_t - 0.8 * v)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9, 1.0])
def test_cps_keeps_the_noise_of_its_level(eta: float) -> None:
    x0 = torch.zeros(200_000, 1, dtype=torch.float64)
    eps, fresh = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_next = cps(0.8 * eps, eps - x0, 0.8, 0.5, eta).sample(fresh)
    assert x_next.var() == pytest.approx(0.25, rel=4 * math.sqrt(2 / 200_000))


def test_rollout_of_the_exact_model_ends_in_the_data_distribution() -> None:
    # η = 0: a stochastic CPS step is no exact reverse kernel, and adds a bias of its own at every step
    protocol = Protocol(sampler="cps", eta=0.0, num_inference_steps=60)
    generator = torch.Generator().manual_seed(1)
    noise = lambda k: torch.randn(20_000, 1, generator=generator)  # noqa: E731
    steps = rollout(gaussian_velocity(0.4, 0.8), noise(0), protocol, noise)
    assert steps[-1].x_next.mean() == pytest.approx(0.4, abs=0.03)
    assert steps[-1].x_next.std() == pytest.approx(0.8, abs=0.03)
    assert torch.allclose(steps[-1].x_next, steps[-1].x0)


def test_gradient_reaches_the_chosen_steps_only_and_never_an_earlier_call() -> None:
    weights = torch.ones(3, requires_grad=True)
    protocol = SamplerConfig(num_inference_steps=3).protocol(Protocol())
    calls = iter(range(3))
    steps = rollout(
        lambda x, t: weights[next(calls)] * x, torch.ones(2, 1), protocol, lambda k: torch.zeros(2, 1), grad={2, 3}
    )
    assert not steps[0].v.requires_grad and steps[1].v.requires_grad
    assert all(not step.x_t.requires_grad for step in steps)
    steps[-1].x_next.sum().backward()
    assert weights.grad is not None and weights.grad[:2].tolist() == [0, 0] and weights.grad[2] != 0


def test_replay_gives_the_same_step_with_a_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    protocol = SamplerConfig().protocol(Protocol())
    velocity = lambda x, t: weight * x  # noqa: E731
    noise = lambda k: torch.randn(3, 2, generator=torch.Generator().manual_seed(k))  # noqa: E731
    kept = rollout(velocity, noise(0), protocol, noise, grad={2})[1]
    bare = rollout(velocity, noise(0), protocol, noise)[1]
    again = replay(velocity, bare.rows(torch.tensor([0, 2])), protocol)
    assert torch.allclose(again.x_next, kept.x_next[[0, 2]]) and again.move.std == kept.move.std
    first, second = (torch.autograd.grad(step.x_next[rows].sum(), weight)[0] for step, rows in
                     ((kept, [0, 2]), (again, [0, 1])))  # fmt: skip
    assert torch.allclose(first, second)


@pytest.mark.parametrize("size", [2, 5, 9])
def test_a_rollout_in_parts_is_the_rollout_of_the_whole(size: int) -> None:
    """Noise is drawn as for the whole, and every image is asked with its own prompt."""
    protocol, asked = SamplerConfig().protocol(Protocol()), list[int]()
    scale, x = torch.linspace(0.5, 1.5, 5)[:, None], torch.randn(5, 2, generator=torch.Generator().manual_seed(0))

    def noise() -> Callable[[int], Tensor]:
        generator = torch.Generator().manual_seed(1)
        return lambda k: torch.randn(5, 2, generator=generator)

    def velocity(rows: Tensor) -> Velocity:
        asked.append(len(rows))
        return lambda x, t: scale[rows] * x

    whole = rollout(lambda x, t: scale * x, x, protocol, noise())
    found = rollout_in_parts(velocity, x, protocol, noise(), size)
    assert max(asked) <= size and sum(asked) == 5
    for mine, expected in zip(found, whole, strict=True):
        assert (mine.k, mine.t, mine.t_next, mine.move.std) == (
            expected.k, expected.t, expected.t_next, expected.move.std,
        )  # fmt: skip
        for name in ("x_t", "v", "x_next", "x0"):
            assert torch.equal(getattr(mine, name), getattr(expected, name))
        assert torch.equal(mine.move.mean, expected.move.mean)


def test_student_runs_unguided_under_its_own_sampler() -> None:
    base = Protocol(guidance_scale=5.0, num_inference_steps=28, call_arguments={"max_sequence_length": 0})
    protocol = SamplerConfig(eta=0.9, shift=3.0).protocol(base)
    assert not protocol.guided and protocol.num_inference_steps == 4
    assert protocol.call_arguments == base.call_arguments and replace(protocol, height=64) == protocol
