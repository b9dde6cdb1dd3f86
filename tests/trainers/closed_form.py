"""Stand-ins whose right answers are known: Gaussian velocity models, a two-dimensional backbone, simple rewards."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from metrics.base import Card, Prompt
from trainers.backbones.base import BackboneConfig, Role
from trainers.rewards import RewardBank, RewardConfig


def gaussian_velocity(mu: float, tau: float) -> Callable[[Tensor, Level], Tensor]:
    """Return the exact velocity of data N(mu, tau^2 I): E[x0|x_t] = mu + (1-t) tau^2 / V (x_t - (1-t) mu)."""

    def velocity(x_t: Tensor, t: Level) -> Tensor:
        variance = (1 - t) ** 2 * tau**2 + t**2
        mean_x0 = mu + (1 - t) * tau**2 / variance * (x_t - (1 - t) * mu)
        return (x_t - mean_x0) / t

    return velocity


def shift_pull(tau: float, s: float = 0.0, eta: float = 0.9, high: float = 0.98) -> float:
    """Return how strongly AC-DMD without normaliser pulls back a student that is N(mu, tau^2 I) but for its mean.

    E_t[[t (1 - s) - s (1 - t) cos(eta pi / 2)] t / ((1 - s) V(t))], t ~ U[s + .01, 1] clamped to [.02, high], times
    the shift of the mean at level s, is xs_fake - xs_teacher."""
    t = torch.linspace(s + 0.01, 1.0, 100_001, dtype=torch.float64).clamp(0.02, high)
    back = t * (1 - s) - s * (1 - t) * math.cos(eta * math.pi / 2)
    return (back * t / ((1 - s) * ((1 - t) ** 2 * tau**2 + t**2))).mean().item()


class ClosedFormMetric:
    """A metric with the interface of LoadedMetric: mean of one colour channel."""

    def __init__(self, identity: str, channel: int, differentiable: bool) -> None:
        self.card = Card(
            id=identity, version=1, title=identity, unit="", higher_is_better=True, range=(0, 1), source="",
            description="", differentiable=differentiable,
        )  # fmt: skip
        self._channel = channel

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images[:, self._channel].mean(dim=(1, 2))

    def rewards(self, images: Tensor, several: Sequence[Sequence[Prompt]]) -> list[Tensor]:
        return [self.reward(images, prompts) for prompts in several]

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return (images[:, self._channel].mean(dim=(1, 2)) > 0.5).float()

    def check(self, prompts: Sequence[Prompt]) -> None:
        """It judges pictures of every prompt."""


def reward_bank(*, redness: bool = True, judge: bool = False) -> RewardBank:
    """Return a bank of "redness" (differentiable) and/or "judge" (a verdict, 0 or 1)."""
    loaded = {"redness": ClosedFormMetric("redness", 0, True), "judge": ClosedFormMetric("judge", 2, False)}
    chosen = [RewardConfig(id=name) for name, wanted in (("redness", redness), ("judge", judge)) if wanted]
    return RewardBank(chosen, loaded)  # type: ignore[arg-type]


def bank_of(metric: ClosedFormMetric, settings: Sequence[RewardConfig]) -> RewardBank:
    """Return a bank of one metric under a run's own settings."""
    return RewardBank(settings, {metric.card.id: metric})  # type: ignore[dict-item]


class PointBackbone:
    """Two-dimensional "images" with small networks as roles; the teacher is N(mean, spread^2 I) in closed form."""

    settings = BackboneConfig(path="")
    latent_shape = (2,)
    device = torch.device("cpu")

    def __init__(self, mean: tuple[float, float], spread: float, hidden: int = 32) -> None:
        self.passes = 0
        self._teacher = gaussian_velocity(0.0, spread)
        self._mean = torch.tensor(mean)
        self.networks: dict[str, VelocityNetwork] = {
            role: VelocityNetwork(hidden) for role in ("student", "fake_score")
        }

    def encode(self, prompts: Sequence[str]) -> int:
        return len(prompts)

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: int,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        assert prompts == len(x_t)
        self.passes += len(x_t)
        if role == "teacher":
            # data shifted by m: x_t is shifted by (1 - t) m, and the velocity by -m
            return self._teacher(x_t - (1 - t) * self._mean, t) - self._mean
        return self.networks[role](x_t, t)

    def noise_scale(self, t: float) -> float:
        return 1.0

    def level_at(self, share: Tensor) -> Tensor:
        return share

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: int) -> Tensor:
        assert prompts == len(x_t)
        self.passes += len(x_t)
        return self.networks[role].features(x_t, t)[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def encode_pictures(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, :2]

    def teacher_digest(self) -> str:
        return repr(self._mean.tolist())

    def parameters(self, role: Role) -> list[nn.Parameter]:
        return list(self.networks[role].parameters()) if role in self.networks else []

    def keep_reference(self) -> None:
        self.networks["reference"] = copy.deepcopy(self.networks["student"]).requires_grad_(False)

    def protocol(self) -> Protocol:
        return Protocol()


class Counted(PointBackbone):
    """Keeps of every call whose it was, of how many images, and whether with a graph; the decoder's too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[tuple[str, int, bool]] = []

    def velocity(self, role: Role, x_t: Tensor, *arguments: Any, **bound: Any) -> Tensor:
        self.calls.append((role, len(x_t), torch.is_grad_enabled()))
        return super().velocity(role, x_t, *arguments, **bound)

    def decode(self, latents: Tensor) -> Tensor:
        self.calls.append(("decoder", len(latents), torch.is_grad_enabled()))
        return super().decode(latents)


class VelocityNetwork(nn.Module):
    """A multilayer perceptron of (x, t) whose output starts at 0."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.skip, self.head = nn.Linear(4, 2), nn.Linear(hidden, 2)
        for layer in (self.skip, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def features(self, x: Tensor, t: Level) -> Tensor:
        return self.body(self._inputs(x, t))

    def forward(self, x: Tensor, t: Level) -> Tensor:
        return self.skip(self._inputs(x, t)) + self.head(self.features(x, t))

    def _inputs(self, x: Tensor, t: Level) -> Tensor:
        level = torch.as_tensor(t, dtype=x.dtype).expand(len(x), 1)
        return torch.cat([x, level, level**2], dim=1)


class FirstCoordinate(ClosedFormMetric):
    """r(x) = x_1 of a point."""

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images[:, 0]
