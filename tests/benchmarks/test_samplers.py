"""Flow-SDE: hand values, its limits, and the marginals it keeps."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.samplers import euler, flow_sde, transition


def exact_velocity(x_t: Tensor, t: float, mu: float, tau: float) -> Tensor:
    """Return v of data N(mu, tau^2)."""
    gain = (1 - t) * tau**2 / ((1 - t) ** 2 * tau**2 + t**2)
    return (x_t - mu - gain * (x_t - (1 - t) * mu)) / t


def test_flow_sde_step_has_its_hand_values() -> None:
    x, v = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    move = flow_sde(x, v, 0.8, 0.6, 0.7)  # c^2 = .49 · .8 / .2 = 1.96, dt = -.2
    assert move.mean.item() == pytest.approx(1 - 0.245 - 0.5 * 1.245 * 0.2)
    assert float(move.std) == pytest.approx(1.4 * math.sqrt(0.2))


def test_at_pure_noise_the_next_level_stands_in_the_denominator() -> None:
    x, v = torch.tensor([1.0]), torch.tensor([0.5])
    move = flow_sde(x, v, 1.0, 0.75, 0.7)  # c^2 = .49 · 1 / .25 = 1.96, dt = -.25, eps = x
    assert float(move.std) == pytest.approx(1.4 * 0.5)
    assert move.mean.item() == pytest.approx(1 - 0.25 * (0.5 + 0.98 * 1))
    levels, after = torch.tensor([1.0, 0.8]), torch.tensor([0.75, 0.6])
    both = flow_sde(x.expand(2), v.expand(2), levels, after, 0.7)
    assert both.mean.tolist() == pytest.approx([move.mean.item(), flow_sde(x, v, 0.8, 0.6, 0.7).mean.item()])


def test_without_noise_flow_sde_is_euler() -> None:
    x, v = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    move = flow_sde(x, v, 0.8, 0.5, 0.0)
    assert not move.stochastic and torch.equal(move.mean, euler(x, v, 0.8, 0.5).mean)


def test_small_steps_of_the_exact_model_keep_the_marginals() -> None:
    mu, tau, count = 0.4, 0.8, 40_000
    protocol = Protocol(sampler="flow_sde", eta=0.7, num_inference_steps=1)
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(0.9, 0.2, 141, dtype=torch.float64).tolist()
    x0, eps = torch.randn(2, count, 1, generator=generator)
    x = 0.1 * (mu + tau * x0) + 0.9 * eps
    for t, t_next in pairwise(levels):
        move = transition(protocol, x, exact_velocity(x, t, mu, tau), t, t_next)
        x = move.sample(torch.randn(x.shape, generator=generator))
    variance = (0.8 * tau) ** 2 + 0.2**2
    assert x.mean().item() == pytest.approx(0.8 * mu, abs=4 * math.sqrt(variance / count) + 0.005)
    assert x.var().item() == pytest.approx(variance, rel=0.03)
