"""Backward simulation by re-noising: where on its own path, and on what, the student is asked for x0.

The student runs its whole sampler without a graph. Each sample then takes a grid level t_k ~ U{t_0 .. t_{K-1}} of its
own, a clean image of the rollout is noised afresh to that level, and one call predicts x0 from there:

    x_t = (1 - t_k) x0_sim + t_k eps,   eps fresh        at t_0 the input is pure noise, as the sampler's own start is

x0_sim is the x0-prediction of that very step ("predictions": stochastic samplers), or the rollout's end for every
level ("final": deterministic samplers, whose early predictions are blurred means). In DMDR the fake score learns from
x0_sim alone, as in the authors' code, and not from the one-call predictions that the loss asks it about; in plain DMD
(trainers/dmd.py) from those.
Source: DMDR, algorithm 1 and its authors' code (sde, ode). Axes: B samples, then any latent axes; K steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.samplers import sigma_grid
from trainers.draws import Draws
from trainers.flow import Velocity, interpolate, x0_from_v
from trainers.rollout import rollout

Simulation = Literal["predictions", "final"]


def check_simulation(simulation: Simulation, eta: float) -> None:
    """Raise ValueError where a stochastic sampler's rollout would be known by its end alone."""
    if simulation == "final" and eta > 0:
        raise ValueError(
            'simulation = "final" is for deterministic samplers: set sampler.sampler = "euler", or "predictions"'
        )


@dataclass(frozen=True)
class Simulated:
    """A batch of simulated inputs of the student, without graph."""

    x_K: Tensor  # ends of the rollouts
    x0: Tensor  # the clean images that the inputs are made of
    t: Tensor  # [B, 1, ...]
    x_t: Tensor

    def predict(self, student: Velocity) -> Tensor:
        """Return the student's x0 of these inputs; with a graph, where gradients are on."""
        return x0_from_v(self.x_t, student(self.x_t, self.t), self.t)


@torch.no_grad()
def renoised_rollout(
    student: Velocity,
    z: Tensor,
    protocol: Protocol,
    draws: Draws,
    simulation: Simulation = "predictions",
    scale: float = 1.0,
) -> Simulated:
    """Run the student from noise z [B, ...] to the end and noise what it made to random levels of its own grid.

    scale: the factor of unit noise that the sampler begins with."""
    steps = rollout(student, scale * z, protocol, lambda _: draws.normal_like(z))
    k_B = draws.indices(len(z), len(steps)).to(z.device)
    if simulation == "predictions":
        x0 = torch.stack([step.x0 for step in steps])[k_B, torch.arange(len(z), device=z.device)]
    else:
        x0 = steps[-1].x_next
    like = (-1, *[1] * (z.ndim - 1))
    t = torch.tensor(sigma_grid(protocol), dtype=z.dtype, device=z.device)[k_B].view(like)
    eps = draws.normal_like(z)
    x_t = torch.where((k_B == 0).view(like), scale * eps, interpolate(x0, eps, t))
    return Simulated(steps[-1].x_next, x0, t, x_t)
