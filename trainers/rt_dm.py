"""Reward-tilted distribution matching (RT-DM): the reward of a sample weighs its distribution-matching gradient.

    grad_theta L = E[ w(r(x_K)) · g dx0 / dtheta ],   w without gradient, g of trainers/dmd.py

    exp      w = exp(r / tau) / mean exp(r / tau),   r = sum_j c_j (r_j - m_j) / sigma_j   (m, sigma: running)
    linear   w = R / mean R,                         R = sum_j c_j r_j / scale_j           (rewards above 0)
    raw_exp  w = exp(R / tau)

r(x_K) is the reward of the end of the student's whole rollout. The mean over the batch is 1 before w is clamped, so a
constant reward leaves plain DMD. The fake score's loss is not weighted. With exact scores and unlimited capacity a
weight does not move the fixed point; it changes the way there, and what is given up where capacity is short.

Source: DMDR, second version, which describes the weight in words; these forms of it are ours.
Axes: B images.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import config
from metrics.base import UserError
from trainers.rewards import DECAY, RewardBank, RunningStatistics


@config
class RtDmConfig:
    """The weight of a sample."""

    kind: Literal["none", "exp", "linear", "raw_exp"] = "exp"
    temperature: float = 1.0  # τ
    low: float = 0.1  # w is clamped to [low, high]
    high: float = 10.0
    decay: float = DECAY  # of the rewards' running mean and deviation

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.low <= 1 <= self.high:
            raise ValueError("temperature must be above 0, and low and high satisfy 0 <= low <= 1 <= high")
        if not 0 <= self.decay < 1:
            raise ValueError("decay must lie in [0, 1)")


def check_rt_dm(c: RtDmConfig, rewards: RewardBank) -> None:
    """Raise UserError where the weight is of raw rewards, and one of them is to be normalised."""
    for one in rewards.settings:
        if c.kind in ("linear", "raw_exp") and one.normalise != "none":
            raise UserError(
                f'trainer.rt_dm.kind = "{c.kind}" is of raw rewards, and {one.id} is normalised: set it to "exp"'
            )


@torch.no_grad()
def reward_weights(
    scores: Mapping[str, Tensor], rewards: RewardBank, statistics: RunningStatistics, c: RtDmConfig
) -> Tensor:
    """Return w [B], clamped and without gradient, of raw rewards [B] by id; `statistics` has seen them already.

    Raises UserError for `linear` where the rewards of a batch are not above 0 in the mean."""
    return unclamped_weights(scores, rewards, statistics, c).clamp(c.low, c.high)


def unclamped_weights(
    scores: Mapping[str, Tensor], rewards: RewardBank, statistics: RunningStatistics, c: RtDmConfig
) -> Tensor:
    """Return w [B] before it is clamped; its mean is 1, but for raw_exp."""
    if c.kind == "exp":
        normalised = statistics.normalised(scores)
        r_B = torch.stack([rewards.weights[name] * one for name, one in normalised.items()]).sum(dim=0)
        return torch.softmax(r_B / c.temperature, dim=0) * len(r_B)
    reward_B = rewards.total(scores)
    if c.kind == "none":
        return torch.ones_like(reward_B)
    if c.kind == "raw_exp":
        return torch.exp(reward_B / c.temperature)
    if reward_B.mean() <= 0:
        raise UserError('trainer.rt_dm.kind = "linear" needs rewards above 0: set it to "exp"')
    return reward_B / reward_B.mean()
