"""Few-step samplers for flow models: pure transitions, and a scheduler that runs them in a stock pipeline.

    x_t = (1 - t) x0 + t eps    v = eps - x0    hence x0 = x_t - t v, eps = x_t + (1 - t) v    (t = 1 noise, 0 data)

    Euler     x' = x_t + (t' - t) v
    CPS(eta)  x' = (1 - t') x0 + t' cos(theta) eps + t' sin(theta) n,   theta = eta pi / 2
              eta = 0 is Euler, eta = 1 is re-noising of x0 (consistency sampling)

Sources: Flow matching, Lipman et al. 2022, arXiv:2210.02747; coefficients-preserving sampling (CPS),
arXiv:2509.05952; re-noising: Song et al. 2023, arXiv:2303.01469, Alg. 1. Training rollouts call the same
transitions as evaluation: what is trained is what is benchmarked. Levels and steps are computed in float32.
Axes: B images, then any latent axes; t and t' are floats or [B, 1, ...] tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from benchmarks.protocol import Protocol

Level = float | Tensor
L = TypeVar("L", float, Tensor)


@dataclass(frozen=True)
class Transition:
    """A Gaussian step x' ~ N(mean, std^2): mean [B, ...], std a level (0 = deterministic)."""

    mean: Tensor
    std: Level

    @property
    def stochastic(self) -> bool:
        """Whether any image of the batch has noise in this step."""
        return bool((torch.as_tensor(self.std) > 0).any())

    def sample(self, noise: Tensor) -> Tensor:
        """Return x' for unit Gaussian noise [B, ...]."""
        return self.mean + self.std * noise

    def log_prob(self, x_next: Tensor) -> Tensor:
        """Return log N(x'; mean, std^2) summed over all latent axes, [B]. Needs std > 0."""
        std = torch.as_tensor(self.std, dtype=self.mean.dtype, device=self.mean.device)
        log_density = -((x_next - self.mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return log_density.flatten(1).sum(dim=1)


def cps(x_t: Tensor, v: Tensor, t: Level, t_next: Level, eta: float) -> Transition:
    """Return the CPS(eta) transition from level t to t_next < t. At t_next = 0 it is x0 for every eta."""
    x0, eps = x_t - t * v, x_t + (1 - t) * v
    theta = eta * math.pi / 2
    return Transition((1 - t_next) * x0 + t_next * math.cos(theta) * eps, t_next * math.sin(theta))


def euler(x_t: Tensor, v: Tensor, t: Level, t_next: Level) -> Transition:
    """Return the deterministic Euler step of the probability-flow ODE from level t to t_next."""
    return Transition(x_t + (t_next - t) * v, 0.0)


def renoise(x_t: Tensor, v: Tensor, t: Level, t_next: Level) -> Transition:
    """Return consistency sampling's step: predict x0, noise it afresh to t_next."""
    return Transition((1 - t_next) * (x_t - t * v), t_next)


def transition(protocol: Protocol, x_t: Tensor, v: Tensor, t: Level, t_next: Level) -> Transition:
    """Return the step of the protocol's sampler, in float32."""
    x_t, v = x_t.float(), v.float()
    if protocol.sampler == "cps":
        return cps(x_t, v, t, t_next, protocol.eta)
    if protocol.sampler == "renoise":
        return renoise(x_t, v, t, t_next)
    if protocol.sampler == "euler":
        return euler(x_t, v, t, t_next)
    raise ValueError(f"sampler {protocol.sampler!r} is the model's own; it has no transition here")


def shifted(t: L, shift: float) -> L:
    """Return the shifted level k t / (1 + (k - 1) t) of a level in [0, 1]."""
    return shift * t / (1 + (shift - 1) * t)


def sigma_grid(protocol: Protocol) -> list[float]:
    """Return the K + 1 noise levels 1 >= t_0 > ... > t_K = 0 of a protocol.

    Explicit sigmas as they are; otherwise K even steps from 1, shifted once (diffusers' own grid shifts twice)."""
    steps = protocol.num_inference_steps
    levels = protocol.sigmas or tuple(shifted(1 - k / steps, protocol.shift) for k in range(steps))
    return [*levels, 0.0]


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """A protocol's sampler as a diffusers scheduler, with one noise generator per image.

    Set `generators` before every pipeline call: the pipelines do not hand theirs to `step`."""

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.protocol = Protocol(sampler="euler", num_inference_steps=1)
        self.generators: Sequence[torch.Generator] = ()
        self.sigmas = torch.zeros(1)
        self.timesteps = torch.zeros(0)
        self._index = 0

    @classmethod
    def of(cls, protocol: Protocol) -> "FewStepScheduler":
        """Return the scheduler of a protocol."""
        scheduler = cls()
        scheduler.protocol = protocol
        return scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: object = None,
        mu: float | None = None,
    ) -> None:
        """Lay the protocol's grid; a grid or shift that a pipeline derives itself (`sigmas`, `mu`) gives way to it.

        Raises ValueError where the pipeline was asked for another number of steps than the protocol's."""
        if num_inference_steps not in (None, self.protocol.num_inference_steps):
            raise ValueError(f"asked for {num_inference_steps} steps under a protocol of another number")
        self.sigmas = torch.tensor(sigma_grid(self.protocol), dtype=torch.float32, device=device)
        self.timesteps = self.sigmas[:-1] * self.config["num_train_timesteps"]
        self._index = 0

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Return (x',), drawing each image's noise from its own generator; steps are taken in order."""
        t, t_next = float(self.sigmas[self._index]), float(self.sigmas[self._index + 1])
        move = transition(self.protocol, sample, model_output, t, t_next)
        self._index += 1
        if not move.stochastic:
            return (move.mean.to(sample.dtype),)
        noise = randn_tensor(sample.shape, generator=list(self.generators), device=sample.device, dtype=torch.float32)
        return (move.sample(noise).to(sample.dtype),)
