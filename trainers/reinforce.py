"""Settings of reinforcement within distribution matching, and what one epoch of it holds.

Axes: P prompts, N members of a group, B = P N images, K steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import UserError, config
from metrics.base import Prompt
from trainers import subgrpo
from trainers.draws import Draws, RowDraws
from trainers.rewards import RewardBank
from trainers.rollout import Step


@config
class ReinforceConfig:
    """Stage II."""

    groups: int = 4  # P, prompts per iteration and process
    group_size: int = 8  # N
    rl: Literal["none", "grpo", "subgrpo"] = "subgrpo"  # grpo = all stochastic steps
    subset_size: int = 2  # M
    subset_per: Literal["epoch", "prompt"] = "epoch"
    subset_scale: Literal["none", "paper"] = "none"  # paper = (K-1)/M
    noise: Literal["shared", "independent"] = "shared"  # of the steps outside S, within a group
    share_init: bool = False  # one initial noise per group
    logprob: subgrpo.LogProb = "simplified"
    advantage: subgrpo.Advantage = "per_reward_global_std"
    advantage_limit: float = 5.0
    clip: float = 1e-5
    zero_advantage: Literal["drop", "keep"] = "drop"  # images of groups that are all alike: for every term
    rl_weight: float = 1.0
    det_term: bool = True  # reward gradient through the last step
    det_weight: float = 1e-4
    det_margin: float = 3.0  # m of w · relu(m - R)
    dm_steps: Literal["none", "last", "all"] = "last"
    dm_weight: float = 1e-3
    microbatch: int = 0  # images per call, backward and decoding; 0 = all, on the rollout's own graphs

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_size < 2 or self.subset_size < 1 or self.microbatch < 0:
            raise ValueError("groups and subset_size must be at least 1, group_size 2, microbatch 0")
        if min(self.rl_weight, self.det_weight, self.dm_weight, self.clip, self.advantage_limit) <= 0:
            raise ValueError("weights, clip and advantage_limit must be above 0; switch a term off by its own switch")
        if self.rl == "none" and not self.det_term and self.dm_steps == "none":
            raise ValueError("every term is off: set rl, det_term or dm_steps")

    def trained_steps(self, stochastic: int) -> int:
        """Return M, how many of the stochastic steps are trained."""
        return stochastic if self.rl == "grpo" else self.subset_size

    @property
    def reward_settings(self) -> frozenset[str]:
        """The settings of a reward, besides weight and scale, that stage II reads."""
        return frozenset({"normalise"} if self.det_term else ())


def check_reinforce(c: ReinforceConfig, eta: float, stochastic: int, rewards: RewardBank) -> None:
    """Raise UserError where stage II's settings, sampler and rewards contradict each other."""
    if c.rl != "none" and not rewards.ids:
        raise UserError('trainer.reinforce.rl needs a reward: add a [[rewards]] table, or set rl = "none"')
    if c.rl != "none" and eta == 0:
        raise UserError(
            "trainer.reinforce.rl needs a stochastic sampler: set trainer.sampler to cps with eta above 0"
        )
    if c.rl != "none" and not stochastic:
        raise UserError("trainer.reinforce.rl trains steps before the last: set sampler.num_inference_steps above 1")
    if c.rl == "subgrpo" and c.subset_size > stochastic:
        raise UserError(
            f"trainer.reinforce.subset_size is {c.subset_size}, but only {stochastic} steps are stochastic"
        )
    if c.det_term and not rewards.differentiable:
        raise UserError("trainer.reinforce.det_term needs a differentiable reward: add one, or set det_term = false")


def choose_subset(c: ReinforceConfig, prompts: int, stochastic: int, draws: Draws) -> Tensor:
    """Return S as a mask [P, K-1]."""
    if c.rl == "none":
        return torch.zeros(prompts, stochastic, dtype=torch.bool)
    return subgrpo.choose_steps(prompts, stochastic, c.trained_steps(stochastic), c.subset_per, draws)


def independent_noise(c: ReinforceConfig, subset_PK: Tensor) -> Tensor:
    """Return which noise is of each member's own [P, K+1], the initial one first; a group shares what is not."""
    prompts, stochastic = subset_PK.shape
    independent_PK = torch.ones(prompts, stochastic + 2, dtype=torch.bool)
    independent_PK[:, 0] = not c.share_init
    if c.noise == "shared" and c.rl != "none":
        independent_PK[:, 1:-1] = subset_PK
    return independent_PK


@dataclass(frozen=True)
class Epoch:
    """What stage II's loss needs of B images: their trained steps, raw rewards, advantages, subsets S and noise."""

    members: list[Prompt]
    steps: dict[int, Step]
    scores: dict[str, Tensor]
    advantage_B: Tensor
    subset_BK: Tensor
    draws: RowDraws

    def rows(self, rows: Tensor) -> "Epoch":
        """Return the epoch of some images only; `rows` is an index tensor."""
        if len(rows) == len(self.members):
            return self  # rows are in order: nothing to copy
        return Epoch(
            [self.members[row] for row in rows.tolist()],
            {k: step.rows(rows) for k, step in self.steps.items()},
            {name: score[rows] for name, score in self.scores.items()},
            self.advantage_B[rows],
            self.subset_BK[rows],
            self.draws.select(rows),
        )
