"""Few-step samplers for flow models: pure transitions, and a scheduler that runs them in a stock pipeline.

    x_t = (1 - t) x0 + t eps    v = eps - x0    hence x0 = x_t - t v, eps = x_t + (1 - t) v    (t = 1 noise, 0 data)

    Euler     x' = x_t + (t' - t) v
    CPS(eta)  x' = (1 - t') x0 + t' cos(theta) eps + t' sin(theta) n,   theta = eta pi / 2
              eta = 0 is Euler, eta = 1 is re-noising of x0 (consistency sampling)
    Flow-SDE  x' = x_t + [v + c^2 / (2 t) eps] (t' - t) + c sqrt(t - t') n,   c = eta sqrt(t / (1 - t))

Sources: Flow matching, Lipman et al. 2022, arXiv:2210.02747; coefficients-preserving sampling (CPS),
arXiv:2509.05952; re-noising: Song et al. 2023, arXiv:2303.01469, Alg. 1; Flow-SDE: Flow-GRPO, Liu et al. 2025,
arXiv:2505.05470, Eq. 9. Training rollouts call the same
transitions as evaluation: what is trained is what is benchmarked. Levels and steps are computed in float32.
Axes: B images, then any latent axes; t and t' are floats or [B, 1, ...] tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.vp import Level, VpPath

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


def flow_sde(x_t: Tensor, v: Tensor, t: Level, t_next: Level, eta: float) -> Transition:
    """Return the Euler-Maruyama step of the SDE that has the marginals of the flow's ODE, with noise level eta.

    c is infinite at t = 1: there 1 - t' stands for 1 - t, as in the authors' code. The last step is noisy as well."""
    below = torch.where(t < 1, t, t_next) if isinstance(t, Tensor) else (t if t < 1 else t_next)
    c_squared, dt = eta**2 * t / (1 - below), t_next - t
    eps = x_t + (1 - t) * v
    return Transition(x_t + (v + c_squared / (2 * t) * eps) * dt, (c_squared * -dt) ** 0.5)


def transition(protocol: Protocol, x_t: Tensor, v: Tensor, t: Level, t_next: Level) -> Transition:
    """Return the step of the protocol's sampler, in float32 or, of a float64 model, in float64."""
    x_t, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (x_t, v))
    if protocol.sampler == "cps":
        return cps(x_t, v, t, t_next, protocol.eta)
    if protocol.sampler == "renoise":
        return renoise(x_t, v, t, t_next)
    if protocol.sampler == "euler":
        return euler(x_t, v, t, t_next)
    if protocol.sampler == "flow_sde":
        return flow_sde(x_t, v, t, t_next, protocol.eta)
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

    Levels and latents are those of flow; for a VP model (SDXL) the scheduler shows the network its own path's input
    and timestep, and reads the velocity from its output (benchmarks/vp.py).
    Set `generators` before every pipeline call: the pipelines do not hand theirs to `step`."""

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.protocol = Protocol(sampler="euler", num_inference_steps=1)
        self.generators: Sequence[torch.Generator] = ()
        self.sigmas = torch.zeros(1)
        self.timesteps = torch.zeros(0)
        self._path: VpPath | None = None
        self._index = 0

    @classmethod
    def of(cls, protocol: Protocol, own: Any = None) -> "FewStepScheduler":
        """Return the scheduler of a protocol; `own` is the one the model's folder configures (None = plain flow)."""
        settings = {} if own is None else own.config
        scheduler = cls(num_train_timesteps=settings.get("num_train_timesteps", 1000))
        scheduler.protocol, scheduler._path = protocol, VpPath.of(settings)
        return scheduler

    @property
    def init_noise_sigma(self) -> float:
        """The factor of unit noise that pipelines begin with: a VP model is shown unit noise, whatever the level."""
        return self._path.noise_scale(sigma_grid(self.protocol)[0]) if self._path else 1.0

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
        levels = self.sigmas[:-1]
        self.timesteps = self._path.timestep(levels) if self._path else levels * self.config["num_train_timesteps"]
        self._index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a step; pipelines say so before their loop."""
        self._index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return what the network is shown of the latents at the present step."""
        if not self._path:
            return sample
        return self._path.model_input(sample.float(), float(self.sigmas[self._index])).to(sample.dtype)

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """Return x', drawing each image's noise from its own generator; steps are taken in order."""
        t, t_next = float(self.sigmas[self._index]), float(self.sigmas[self._index + 1])
        v = self._path.velocity(model_output.float(), sample.float(), t) if self._path else model_output
        move = transition(self.protocol, sample, v, t, t_next)
        self._index += 1
        x = move.sample(self._noise(sample)) if move.stochastic else move.mean
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _noise(self, sample: Tensor) -> Tensor:
        generators = list(self.generators)
        shape = (len(generators), *sample.shape[1:])
        noise = randn_tensor(shape, generator=generators, device=sample.device, dtype=torch.float32)
        # a class-conditional pipeline carries every image twice where it is guided
        return noise.repeat(len(sample) // len(generators), *[1] * (sample.ndim - 1))
