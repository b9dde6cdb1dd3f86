"""Rewards are metrics: a weighted bank of them, with gradients where the metric has a differentiable path.

    R(x, c) = sum_j weight_j r_j(x, c) / scale_j

Raw values are logged; `scale` only brings metrics of different units onto one (CLIP logit / 100, PickScore / 26).
Axes: B images [B, 3, H, W] in [0, 1].
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import metrics
from benchmarks.config import config
from metrics.base import Prompt


@config
class RewardConfig:
    """One metric used as a reward."""

    id: str
    weight: float = 1.0
    scale: float = 1.0  # raw values are divided by it

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.scale <= 0:
            raise ValueError("weight and scale must be above 0")


class RewardBank:
    """The rewards of a run; an empty bank scores nothing."""

    def __init__(self, settings: Sequence[RewardConfig], loaded: Mapping[str, "metrics.LoadedMetric"]) -> None:
        """`loaded` holds the metric of every id in `settings`; `load_rewards` loads them."""
        self.settings = tuple(settings)
        self._metrics = {one.id: loaded[one.id] for one in settings}

    @property
    def ids(self) -> list[str]:
        """The metrics that are trained on."""
        return list(self._metrics)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward, by metric id."""
        return {one.id: one.weight for one in self.settings}

    @property
    def differentiable(self) -> list[str]:
        """The rewards that a gradient can reach."""
        return [name for name, metric in self._metrics.items() if metric.card.differentiable]

    @property
    def image_free(self) -> bool:
        """Whether no reward needs real pictures."""
        return all(metric.card.image_free for metric in self._metrics.values())

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return raw rewards [B] by metric id; differentiable ones carry the gradient of the images.

        Higher is better in every one: a metric of the other direction is negated."""
        return {name: self._score(name, images, prompts) for name in self._metrics}

    def total(self, scores: Mapping[str, Tensor], only: Sequence[str] | None = None) -> Tensor:
        """Return R [B] of the rewards named in `only` (default: all)."""
        parts = [one.weight / one.scale * scores[one.id] for one in self.settings if only is None or one.id in only]
        return torch.stack(parts).sum(dim=0)

    def _score(self, name: str, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        metric = self._metrics[name]
        differentiable = metric.card.differentiable
        score = metric.reward(images, prompts) if differentiable else metric(images.detach(), prompts)
        sign = 1 if metric.card.higher_is_better else -1
        return sign * score.float().to(images.device)


def load_rewards(settings: Sequence[RewardConfig], device: torch.device) -> RewardBank:
    """Return the bank of these metrics. Raises UserError where an id is unknown, naming the nearest one."""
    return RewardBank(settings, {one.id: metrics.load(one.id, str(device)) for one in settings})
