"""Variance-preserving (VP) models such as SDXL as flow models: their algebra, and the bridge between the two paths.

    x_t = a x0 + b eps,  a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t)      score s = -eps_hat / b, eps = -b s
    v_prediction = a eps - b x0    hence x0 = a x_t - b v_prediction, eps = b x_t + a v_prediction

    bridge    x_flow = x_t / (a + b), t = b / (a + b): the same x0 and eps, so v = eps - x0 and s_flow = (a + b) s
              back: a = (1 - t) / n, b = t / n, x_t = x_flow / n with n = sqrt((1 - t)^2 + t^2)

Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4; v_prediction: Salimans and Ho 2022, arXiv:2202.00512, App. D.
The noisiest timestep T - 1 still holds a little signal (SDXL: a = 0.068), while sampling starts from pure noise
(Lin et al. 2023, arXiv:2305.08891). So flow level 1 is timestep T - 1 asked about pure noise, as DMD2's authors' code
does; between that timestep's own level (SDXL: 0.936) and 1 the model is asked at T - 1 too, with its a and b.
A sampler may begin at a lower level: one-step SDXL students of DMD2 and DMDR are shown pure noise at timestep 399
(level 0.537), and x0 is read with that timestep's a and b. The flow sample of which a network is shown unit noise
at level t is n z.
Dividing by a amplifies rounding (1 / a is about 14.6 at t = 999): pass float32 or float64.
Axes: B samples, then any latent axes; a, b and t are floats or [B, 1, ...] tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Level = float | Tensor
Prediction = Literal["epsilon", "v_prediction"]


def x0_from_eps(x_t: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:
    """Return the clean sample of a noise prediction."""
    return (x_t - b * eps) / a


def eps_from_x0(x_t: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """Return the noise of an x0-prediction."""
    return (x_t - a * x0) / b


def v_prediction(x0: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:
    """Return what a v_prediction-model is trained to give."""
    return a * eps - b * x0


def x0_from_v_prediction(x_t: Tensor, v: Tensor, a: Level, b: Level) -> Tensor:
    """Return the clean sample of a v_prediction."""
    return a * x_t - b * v


def eps_from_v_prediction(x_t: Tensor, v: Tensor, a: Level, b: Level) -> Tensor:
    """Return the noise of a v_prediction."""
    return b * x_t + a * v


def score_from_eps(eps: Tensor, b: Level) -> Tensor:
    """Return the score of a noise prediction."""
    return -eps / b


def eps_from_score(score: Tensor, b: Level) -> Tensor:
    """Return the noise prediction of a score."""
    return -b * score


def to_flow(x_t: Tensor, a: Level, b: Level) -> tuple[Tensor, Level]:
    """Return (x, t) of the flow path with the same x0 and eps: x = x_t / (a + b), t = b / (a + b)."""
    return x_t / (a + b), b / (a + b)


@dataclass(frozen=True)
class VpPath:
    """A model's noise table, and what it predicts: all that the bridge needs. Levels t are those of flow."""

    alpha_bar: Tensor  # [T] float64, falling
    prediction: Prediction = "epsilon"

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> "VpPath | None":
        """Return the path of a diffusers scheduler's config, None where it is no VP model's."""
        from diffusers import DDPMScheduler

        if "beta_schedule" not in scheduler or scheduler.get("prediction_type", "epsilon") not in get_args(
            Prediction
        ):
            return None
        table = {key: value for key, value in scheduler.items() if not key.startswith("_")}
        own = DDPMScheduler.from_config(table)  # every scheduler of this kind shares this table
        return cls(own.alphas_cumprod.double(), own.config.prediction_type)

    def level(self, timestep: int) -> float:
        """Return the flow level of a timestep; 1 for the last one (see the module's docstring)."""
        return 1.0 if timestep == len(self.alpha_bar) - 1 else float(self._levels[timestep])

    def level_at(self, share: Tensor) -> Tensor:
        """Return the flow levels of shares in [0, 1] of the timesteps: of timestep round(T share), T - 1 at most.

        Of a noised sample: the last timestep's level is its own here, with a little signal in x_t."""
        count = len(self.alpha_bar)
        return self._levels.to(share)[(count * share).round().long().clamp(0, count - 1)]

    def timestep(self, t: Level) -> Tensor:
        """Return the timesteps (int64, shape of t) whose flow levels are nearest to t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        borders = ((self._levels[1:] + self._levels[:-1]) / 2).to(t.device)
        return torch.bucketize(t, borders)

    def noise_scale(self, t: float) -> float:
        """Return the factor of unit noise z whose `model_input` at level t is z; 1 at level 1."""
        return float(_norm(t))

    def model_input(self, x: Tensor, t: Level) -> Tensor:
        """Return what the network is shown for a flow sample x [B, ...] at level t: unit variance at every level."""
        return x / _norm(t)

    def velocity(self, output: Tensor, x: Tensor, t: Level) -> Tensor:
        """Return the velocity [B, ...] of the network's output for `model_input(x, t)`.

        Where t is above the noisiest timestep's own level, x0 comes from that timestep's a and b, and
        v = (x - x0) / t: so x0 is what sampling from pure noise takes it to be, and stays bounded."""
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        seen, last = self.model_input(x, t), self.alpha_bar[-1]
        a = ((1 - t) / _norm(t)).clamp(min=float(last.sqrt()))
        b = (t / _norm(t)).clamp(max=float((1 - last).sqrt()))
        if self.prediction == "v_prediction":
            x0, eps = x0_from_v_prediction(seen, output, a, b), eps_from_v_prediction(seen, output, a, b)
        else:
            x0, eps = x0_from_eps(seen, output, a, b), output
        noisiest = float(self._levels[-1])
        # where t is below it the quotient is not chosen; yet by t = 0 its gradient would be 0 times infinity
        return torch.where(t > noisiest, (x - x0) / t.clamp(min=noisiest), eps - x0)

    @cached_property
    def _levels(self) -> Tensor:
        a, b = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        return b / (a + b)


def _norm(t: Level) -> Level:
    return ((1 - t) ** 2 + t**2) ** 0.5
