"""Flow-matching algebra that every trainer shares: conversions, renoise laws and the sub-interval kernel.

    x_t = (1 - t) x0 + t eps      v = eps - x0      score s(x_t, t) = -eps_hat / t
    x0 = x_t - t v                eps = x_t + (1 - t) v
    v = -(x_t + t s) / (1 - t)    s = -(x_t + (1 - t) v) / t

Source: Lipman et al. 2022, arXiv:2210.02747, for x_t and v; the rest follows by substitution.
Pure functions in the dtype of their arguments. Axes: B samples, then any latent axes; a level t is a float or a
tensor [B, 1, ...] that broadcasts over the latent axes (0 = data, 1 = noise).
"""

from collections.abc import Callable
from typing import Literal

import torch
from scipy.special import betaincinv
from torch import Tensor

from benchmarks.config import config
from benchmarks.samplers import Level, shifted
from trainers.draws import Draws

Velocity = Callable[[Tensor, Level], Tensor]  # v(x_t, t), prompts already bound
LevelAt = Callable[[Tensor], Tensor]  # shares of a model's timesteps -> levels t; see `Backbone.level_at`
Kernel = Literal["exact", "paper"]
Prediction = Literal["velocity", "eps"]  # what a network's error is taken of; eps: as eps models are trained


def interpolate(x0: Tensor, eps: Tensor, t: Level) -> Tensor:
    """Return x_t, the sample at level t on the straight path from x0 to eps."""
    return (1 - t) * x0 + t * eps


def x0_from_v(x_t: Tensor, v: Tensor, t: Level) -> Tensor:
    """Return the clean sample that velocity v points away from."""
    return x_t - t * v


def eps_from_v(x_t: Tensor, v: Tensor, t: Level) -> Tensor:
    """Return the noise that velocity v points to."""
    return x_t + (1 - t) * v


def v_from_x0(x_t: Tensor, x0: Tensor, t: Level) -> Tensor:
    """Return the velocity of an x0-prediction; needs t > 0."""
    return (x_t - x0) / t


def v_from_eps(x_t: Tensor, eps: Tensor, t: Level) -> Tensor:
    """Return the velocity of a noise prediction; needs t < 1."""
    return (eps - x_t) / (1 - t)


def score_from_v(x_t: Tensor, v: Tensor, t: Level) -> Tensor:
    """Return the score of a velocity; needs t > 0."""
    return -(x_t + (1 - t) * v) / t


def v_from_score(x_t: Tensor, score: Tensor, t: Level) -> Tensor:
    """Return the velocity of a score; needs t < 1."""
    return -(x_t + t * score) / (1 - t)


def prediction_error(v: Tensor, x0: Tensor, eps: Tensor, t: Level, of: Prediction = "velocity") -> Tensor:
    """Return by what a velocity at level t misses that of x0 and eps, or by what its eps misses theirs.

    eps_hat - eps = (1 - t) (v_hat - v), so a square loss in v weighs one in eps by 1 / (1 - t)^2."""
    error = v - (eps - x0)
    return error if of == "velocity" else (1 - t) * error


def guided(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Return u + s (c - u). Linear, so it is the same guidance in v, eps and x0."""
    return unconditional + guidance_scale * (conditional - unconditional)


def subinterval(s: Level, t: Level, kernel: Kernel = "exact") -> tuple[Level, Level]:
    """Return (a, sigma) of the forward kernel x_t = a x_s + sigma n from level s to t > s, n fresh unit noise.

    exact: a = (1 - t) / (1 - s), sigma^2 = t^2 - a^2 s^2, which keeps the marginals of the path.
    paper: sigma = (t - s) / (1 - s) as RTDMD prints it: right only for the noise that already is in x_s."""
    a = (1 - t) / (1 - s)
    if kernel == "paper":
        return a, (t - s) / (1 - s)
    return a, (t**2 - (a * s) ** 2) ** 0.5


@config
class RenoiseLaw:
    """Law of the level t to which a sample is noised before the score networks see it.

    on = "timesteps": what is drawn, bounds and shift included, is the share t of the model's timesteps, as eps models
    are trained: SDXL's timestep round(1000 t), whose level the path's table says. The timesteps of a flow model are
    1000 times its levels: there both are the same."""

    kind: Literal["uniform", "logit_normal", "beta"] = "uniform"
    low: float = 0.02  # bounds of the uniform law; the others are clamped to them
    high: float = 0.98
    mean: float = 0.0  # of logit(t)
    std: float = 1.0
    a: float = 1.0  # of Beta(a, b)
    b: float = 1.0
    shift: float = 1.0  # t' = k t / (1 + (k - 1) t), after the draw and its bounds
    on: Literal["levels", "timesteps"] = "levels"
    per: Literal["sample", "batch"] = "sample"  # batch: one level for all samples of all processes (DP-DMD)

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError("low and high must satisfy 0 <= low < high <= 1")
        if min(self.std, self.shift, self.a, self.b) <= 0:
            raise ValueError("std, shift, a and b must be above 0")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` levels, or shares of the timesteps, float32 [B]."""
        if self.kind == "uniform":
            t = self.low + (self.high - self.low) * torch.rand(count, generator=generator)
        elif self.kind == "beta":
            # by the inverse distribution function: torch's own Beta draws from the global generator alone
            u = torch.rand(count, generator=generator, dtype=torch.float64)
            t = torch.from_numpy(betaincinv(self.a, self.b, u.numpy())).float().clamp(self.low, self.high)
        else:
            t = torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator))
            t = t.clamp(self.low, self.high)
        return shifted(t, self.shift)

    def levels(self, x: Tensor, draws: Draws, level_at: LevelAt) -> Tensor:
        """Return levels [B, 1, ...] for the samples x [B, ...]; level_at: the backbone's."""
        one = self.per == "batch"
        t = self.sample(1, draws.shared).expand(len(x)) if one else draws.rows(len(x), self.sample)
        t = level_at(t) if self.on == "timesteps" else t
        return t.to(x).view(-1, *[1] * (x.ndim - 1))

    def draw(self, x: Tensor, draws: Draws, level_at: LevelAt) -> tuple[Tensor, Tensor]:
        """Return levels [B, 1, ...] and unit noise [B, ...] for the samples x [B, ...]; level_at: the backbone's."""
        return self.levels(x, draws, level_at), draws.normal_like(x)
