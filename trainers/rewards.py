"""Rewards are metrics: a weighted bank of them, with gradients where the metric has a differentiable path.

    R(x, c) = sum_j weight_j r_j(x, c) / scale_j

Raw values are logged; `scale` only brings metrics of different units onto one (CLIP logit / 100, PickScore / 26), or
`normalise` does by what the training has seen: (r_j - m_j) / (sigma_j + 1e-4) stands for r_j / scale_j, with mean and
deviation of the batches so far, of all processes, without gradient.
An image for which a metric finds no value (a rating that cannot be read) is neither praised nor blamed: it gets the
mean of its prompt's other images, and the log counts it as `reward_missing/<id>`.
Axes: B images [B, 3, H, W] in [0, 1].
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

import metrics
from benchmarks.config import config
from metrics.base import Prompt, UserError

EPSILON = 1e-4  # added to running standard deviations
DECAY = 0.99  # of running statistics
REMEMBERED = 4096  # pictures whose rows a reward without gradient keeps: detectors and readers are slow


@config
class RewardConfig:
    """One metric used as a reward."""

    id: str
    weight: float = 1.0
    scale: float = 1.0  # raw values are divided by it
    prompt_prefix: str = ""  # what the metric reads before every prompt, such as "Realistic photo " (DMDR, HPS)
    # m_j of ReFL's hinge, in the unit of what it is held against: r / scale, negated where less is better, or
    # deviations where it is normalised; None = refl.margin
    margin: float | None = None
    # Of ReFL's hinge, DPO's pairs and RTDMD's direct term; advantages (GRPO) and RT-DM's exp are normalised anyway
    normalise: Literal["none", "running"] = "none"
    decay: float = DECAY  # of the running mean and deviation

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.scale <= 0:
            raise ValueError("weight and scale must be above 0")
        if not 0 <= self.decay < 1:
            raise ValueError("decay must lie in [0, 1)")
        if self.normalise == "running" and self.scale != 1:
            raise ValueError('normalise = "running" puts its deviation in the place of scale: leave one of them out')
        if self.normalise == "none" and self.decay != DECAY:
            raise ValueError('decay is of normalise = "running": set that, or leave it out')


class RewardBank:
    """The rewards of a run; an empty bank scores nothing."""

    def __init__(self, settings: Sequence[RewardConfig], loaded: Mapping[str, "metrics.LoadedMetric"]) -> None:
        """`loaded` holds the metric of every id in `settings`; `load_rewards` loads them."""
        self.settings = tuple(settings)
        self._metrics = {one.id: loaded[one.id] for one in settings}
        self._missing = Counter[str]()
        self._scored = Counter[str]()
        self._running = {one.id: RunningStatistics(one.decay) for one in settings if one.normalise == "running"}
        self.gather: Callable[[Tensor], Tensor] = lambda rows: rows  # the rows of all processes

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

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError where a reward lacks weights, or cannot judge some of the training prompts."""
        for metric in self._metrics.values():
            metric.check(prompts)

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], only: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return raw rewards [B] by metric id; differentiable ones carry the gradient of the images.

        Higher is better in every one: a metric of the other direction is negated. only: ids, default all."""
        chosen = [one for one in self.settings if only is None or one.id in only]
        prefixes = {one.id: [one.prompt_prefix] * len(prompts) for one in chosen}
        return {one.id: self._score(one.id, images, _prefixed(prompts, prefixes[one.id])) for one in chosen}

    def score_behind(
        self, images: Tensor, prompts: Sequence[Prompt], only: Sequence[str], several: Sequence[Sequence[str]]
    ) -> list[dict[str, Tensor]]:
        """Return raw rewards [B] as `score` does, for each of several lists of prefixes, the images looked at once.

        only: ids of differentiable ones. several: lists of a prefix for each prompt, in place of `prompt_prefix`."""
        texts = [_prefixed(prompts, prefixes) for prefixes in several]
        found = {name: self._metrics[name].rewards(images, texts) for name in only}
        return [
            {name: self._signed(name, scores[n].to(images.device)) for name, scores in found.items()}
            for n in range(len(several))
        ]

    def total(self, scores: Mapping[str, Tensor], only: Sequence[str] | None = None) -> Tensor:
        """Return R [B] of the rewards named in `only` (default: all)."""
        parts = []
        for one in self.settings:
            if only is None or one.id in only:
                m, d = self._unit(one)
                parts.append(one.weight / d * (scores[one.id] - m))
        return torch.stack(parts).sum(dim=0)

    def levelled(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return r_j / scale_j of the raw rewards [B] there are, by id, or (r_j - m_j) / (sigma_j + 1e-4)."""
        units = {one.id: self._unit(one) for one in self.settings if one.id in scores}
        return {name: (score - units[name][0]) / units[name][1] for name, score in scores.items()}

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Take raw rewards [B] into the running statistics of those that are normalised by them.

        Once for each training batch, before a loss is made of it, by all processes together."""
        for name, statistics in self._running.items():
            if name in scores:
                statistics.update({name: self.gather(scores[name].detach())})

    def state_dict(self) -> dict[str, tuple[float, float, float]]:
        """Return the running statistics, by id."""
        return {name: one for statistics in self._running.values() for name, one in statistics.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, tuple[float, float, float]]) -> None:
        """Continue from what `state_dict` gave."""
        for name, one in state.items():
            self._running[name].load_state_dict({name: one})

    def scaled(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return r_j / scale_j of raw rewards [B] by id for advantages, which divide by deviations of their own."""
        return {one.id: scores[one.id] / one.scale for one in self.settings}

    def _unit(self, one: RewardConfig) -> tuple[float, float]:
        """Return (m, d) of what stands for a raw reward in a loss, (r - m) / d."""
        if one.id not in self._running:
            return 0.0, one.scale
        m, sigma = self._running[one.id].mean_and_std(one.id)
        return m, sigma + EPSILON

    def _score(self, name: str, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        metric = self._metrics[name]
        if metric.card.differentiable:
            return self._signed(name, metric.reward(images, prompts).to(images.device))
        score = metric(images.detach(), prompts).to(images.device)
        self._scored[name] += len(score)
        self._missing[name] += int(score.isnan().sum())
        return self._signed(name, without_gaps(name, score, prompts, self.gather))

    def _signed(self, name: str, score: Tensor) -> Tensor:
        sign = 1 if self._metrics[name].card.higher_is_better else -1
        return sign * score.to(torch.promote_types(score.dtype, torch.float32))

    def take_missing(self) -> dict[str, float]:
        """Return what a log shall hold of images without a value since the last call: their share, by reward."""
        shares = {
            f"reward_missing/{name}": self._missing[name] / self._scored[name]
            for name in self._missing
            if self._missing[name]
        }
        self._missing.clear()
        self._scored.clear()
        return shares


def without_gaps(
    name: str, score_B: Tensor, prompts: Sequence[Prompt], gather: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Tensor:
    """Return the scores with NaNs replaced by the mean of the prompt's other images, or of all where it has none.

    In a group's relative rewards that is an advantage of 0, up to rounding; where the others are all equal, of
    exactly 0, as theirs. gather: gives the scores of all processes.
    Raises UserError where no image has a value."""
    everyone, gap_B = gather(score_B), score_B.isnan()
    if everyone.isnan().all():
        raise UserError(
            f"reward {name}: none of {len(everyone)} images has a value; look at the images, or leave this reward out"
        )
    if not gap_B.any():
        return score_B
    filled = score_B.clone()
    texts = [prompt.text for prompt in prompts]
    for index in gap_B.nonzero()[:, 0].tolist():
        same_B = torch.tensor([text == texts[index] for text in texts], device=gap_B.device) & ~gap_B
        others = score_B[same_B]
        # Clamped: of equal ones the mean is no other, whatever its rounding, and the group has no contrast
        filled[index] = others.mean().clamp(others.min(), others.max()) if len(others) else everyone.nanmean()
    return filled


class RunningStatistics:
    """Running mean and deviation of each reward: averages with a decay, free of bias from the first batch on.

    m_n = sum_k decay^(n-k) mean_k / sum_k decay^(n-k), likewise of the squares; they bring rewards onto one scale."""

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self._sums: dict[str, tuple[float, float, float]] = {}  # of 1, r and r^2, decayed

    def update(self, scores: Mapping[str, Tensor]) -> None:
        """Take in a batch of raw rewards [B] by id."""
        for name, score in scores.items():
            score = score.detach().double()
            new = (1.0, score.mean().item(), (score**2).mean().item())
            old = self._sums.get(name, (0.0, 0.0, 0.0))
            weights = zip(old, new, strict=True)
            count, total, squares = (self.decay * o + (1 - self.decay) * n for o, n in weights)
            self._sums[name] = count, total, squares

    def mean_and_std(self, name: str) -> tuple[float, float]:
        """Return m and sigma of a reward that has been seen."""
        count, total, squares = self._sums[name]
        mean = total / count
        return mean, max(squares / count - mean**2, 0.0) ** 0.5

    def normalised(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return (r - m) / (sigma + 1e-4) of raw rewards [B] by id."""
        moments = {name: self.mean_and_std(name) for name in scores}
        return {name: (score - moments[name][0]) / (moments[name][1] + EPSILON) for name, score in scores.items()}

    def state_dict(self) -> dict[str, tuple[float, float, float]]:
        """Return the averages."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, tuple[float, float, float]]) -> None:
        """Continue from what `state_dict` gave."""
        self._sums = dict(state)


def _prefixed(prompts: Sequence[Prompt], prefixes: Sequence[str]) -> list[Prompt]:
    return [replace(prompt, text=prefix + prompt.text) for prompt, prefix in zip(prompts, prefixes, strict=True)]


def reward_logs(
    scores: Mapping[str, Tensor], gather: Callable[[Tensor], Tensor], kind: str = "reward"
) -> dict[str, float]:
    """Return what a log shall hold of raw rewards [B]: mean and spread over the images of all processes.

    A spread that shrinks while the mean climbs is a sign of hacking: the images become alike. kind: opens the names;
    "reward" is a metric's own value of an image and its prompt."""
    scores = {name: gather(score.detach()) for name, score in scores.items()}
    logs = {f"{kind}/{name}": score.mean().item() for name, score in scores.items()}
    return logs | {f"{kind}_std/{name}": score.std(correction=0).item() for name, score in scores.items()}


READ_BY = {
    "margin": "ReFL's hinge has one for each reward; that of RTDMD's direct term, reinforce.det_margin, is of R",
    "normalise": "ReFL's hinge, DPO's pairs and RTDMD's direct term do; advantages and RT-DM have their own",
}


def check_settings(settings: Sequence[RewardConfig], read: Set[str]) -> None:
    """Raise UserError where a reward has a margin or is normalised, and no stage of the run reads that setting."""
    for one in settings:
        given = {"margin": one.margin is not None, "normalise": one.normalise != "none"}
        for key in READ_BY:
            if given[key] and key not in read:
                raise UserError(f"{one.id}: no stage reads {key} ({READ_BY[key]}): leave it out")


def load_rewards(settings: Sequence[RewardConfig], device: torch.device) -> RewardBank:
    """Return the bank of these metrics.

    Raises UserError where an id is unknown, naming the nearest one, or is that of a statistic of a whole set."""
    loaded = {one.id: metrics.load(one.id, str(device), remembered=REMEMBERED) for one in settings}
    for name, metric in loaded.items():
        if metric.card.aggregate == "set":
            raise UserError(f"{name} is a statistic of a whole set: a reward needs a value for each image")
    return RewardBank(settings, loaded)
