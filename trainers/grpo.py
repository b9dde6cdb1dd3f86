"""Flow-GRPO: policy gradient through all stochastic steps of a sampler, with relative rewards within groups.

    rho = pi(x_k | x_{k-1}) / pi_old(x_k | x_{k-1}),   pi = N(mu_k, sigma_k^2) with mu_k from the student's call
    L   = mean_{i,k} [ max(-A_i rho, -A_i clamp(rho, 1 - c, 1 + c)) + beta KL_k ]
    KL  = mean_dims |mu_k - mu_ref,k|^2 / (2 sigma_k^2)

With many steps the sampler is Flow-SDE; with few it is CPS, and the last step, which is nearly or wholly
deterministic, is not trained. The reference is the student as the stage began; where it began as the base model that
is Flow-GRPO's own (the adapter switched off).

Source: Flow-GRPO, Liu et al. 2025, arXiv:2505.05470, Eq. 5-6 and 9, and its authors' code: log-probability as a mean
over dimensions ("mean"; the clip range belongs to it), one deviation for all images ("global_std"), a KL divided by
c^2 (kl_divisor "flow_grpo": sigma without its factor sqrt(t - t')). Departures: a single update per epoch trains on
the rollout's own graphs; images are dealt to updates in turn, without shuffling. Ratio, advantages and
log-probabilities: trainers/subgrpo.py. Axes: P prompts, N members of a group, B = P N images, K steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import config
from benchmarks.protocol import Protocol
from benchmarks.samplers import transition
from metrics.base import Prompt, UserError
from trainers import subgrpo
from trainers.backbones.base import Backbone
from trainers.base import (
    Count,
    Guidance,
    Logs,
    RewardTrainer,
    Roles,
    SamplerConfig,
    SdeSamplerConfig,
    World,
    register,
)
from trainers.flow import Velocity
from trainers.group_rollout import GroupRollout, gathered_advantages, roll_out_groups
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank, reward_logs
from trainers.rollout import Step
from trainers.schedules import StudentSampling

KlDivisor = Literal["variance", "flow_grpo"]


@config
class GrpoTerm:
    """The loss; see the module's docstring."""

    groups: int = 4  # P, prompts per epoch and process
    group_size: int = 24  # N
    logprob: subgrpo.LogProb = "mean"
    advantage: subgrpo.Advantage = "global_std"
    advantage_limit: float = 5.0
    clip: float = 1e-4  # c
    kl_weight: float = 0.0  # β
    kl_divisor: KlDivisor = "variance"
    microbatch: int = 0  # images per call, backward and decoding; 0 = all

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_size < 2 or self.microbatch < 0:
            raise ValueError("groups must be at least 1, group_size 2, microbatch 0")
        if min(self.clip, self.advantage_limit) <= 0 or self.kl_weight < 0:
            raise ValueError("clip and advantage_limit must be above 0 and kl_weight at least 0")


@dataclass(frozen=True)
class GrpoEpoch:
    """B rolled-out images with their advantages; images of groups without contrast are dropped."""

    rolled: GroupRollout
    advantage_B: Tensor
    everyone: Tensor  # advantages of the images of all processes
    first: int = 0  # the place of this process's first image among them

    @property
    def share(self) -> float:
        """The share of all processes' images that are kept."""
        return int((self.everyone != 0).sum()) / len(self.everyone)

    @property
    def kept(self) -> Tensor:
        """The rows of this process's images that are kept."""
        return self.advantage_B.nonzero().flatten()

    def parts(self, updates: int) -> list[Tensor]:
        """Return the kept rows of this process by update: the kept images of all are dealt out in turn."""
        kept = self.everyone.nonzero().flatten() - self.first
        dealt = [kept[n::updates] for n in range(updates)]  # every process has work in every update
        return [rows[(rows >= 0) & (rows < len(self.advantage_B))] for rows in dealt]

    def weight(self, count: int, updates: int) -> float:
        """Return what makes the mean over `count` images this process's part of an update's mean over all kept."""
        return count * updates / (len(self.advantage_B) * self.share)


def check_grpo(protocol: Protocol, rewards: RewardBank) -> None:
    """Raise UserError where sampler and rewards leave nothing to train."""
    if not rewards.ids:
        raise UserError("trainer.grpo needs a reward: add a [[rewards]] table")
    if protocol.num_inference_steps < 2:
        raise UserError("trainer.grpo trains every step but the last: set num_inference_steps to 2 or more")
    if protocol.sampler == "euler" or (protocol.sampler != "renoise" and protocol.eta == 0):
        raise UserError("trainer.grpo needs a stochastic sampler: cps or flow_sde with eta above 0, or renoise")


def collect(
    prompts: Sequence[Prompt],
    protocol: Protocol,
    roles: Roles,
    rewards: RewardBank,
    c: GrpoTerm,
    world: World,
    graphs: bool,
) -> GrpoEpoch:
    """Roll P groups out and score them; with `graphs` the trained steps keep theirs, for a single update."""
    trained = range(1, protocol.num_inference_steps) if graphs else ()
    rolled = roll_out_groups(roles, rewards, prompts, c.group_size, protocol, trained, c.microbatch)
    own, everyone = gathered_advantages(rolled.scores, rewards, c.group_size, c.advantage, c.advantage_limit, world)
    return GrpoEpoch(rolled, own, everyone, world.rank * len(own))


def grpo_loss(
    epoch: GrpoEpoch, rows: Tensor, protocol: Protocol, roles: Roles, c: GrpoTerm, unchanged: bool = True
) -> Tensor:
    """Return the mean loss over some images [rows] and all steps but the last.

    unchanged: whether the student is the one that rolled them out. rho is then 1: what another call rounds otherwise
    is no move of the policy, and may be larger than the clip range."""
    members = [epoch.rolled.members[row] for row in rows.tolist()]
    student = roles.velocity("student", members)
    reference = roles.velocity("reference", members) if c.kl_weight else None
    losses = []
    for whole in epoch.rolled.steps[:-1]:
        old = whole.rows(rows)
        step = old if old.v.requires_grad else ask_again(student, old, protocol)
        new_B = subgrpo.log_prob(step, c.logprob)
        old_B = new_B.detach() if unchanged else subgrpo.log_prob(old, c.logprob).detach()
        loss_B = subgrpo.clipped_loss(new_B, old_B, epoch.advantage_B[rows].to(new_B), c.clip)
        if reference:
            loss_B = loss_B + c.kl_weight * kl_to_reference(step, reference, protocol, c.kl_divisor)
        losses.append(loss_B.mean())
    return torch.stack(losses).mean()


def ask_again(student: Velocity, step: Step, protocol: Protocol) -> Step:
    """Return the step with the present student's mean, with its graph; where the step led to stays what it was."""
    v = student(step.x_t, step.t)
    return replace(step, v=v, move=transition(protocol, step.x_t, v, step.t, step.t_next))


def kl_to_reference(step: Step, reference: Velocity, protocol: Protocol, divisor: KlDivisor) -> Tensor:
    """Return the KL divergence per dimension [B] of a stochastic step from the reference's."""
    with torch.no_grad():
        v = reference(step.x_t, step.t)
        mean = transition(protocol, step.x_t, v, step.t, step.t_next).mean
    variance = torch.as_tensor(step.move.std) ** 2
    if divisor == "flow_grpo":
        variance = variance / (step.t - step.t_next)
    return ((step.move.mean - mean) ** 2).flatten(1).mean(dim=1) / (2 * variance)


@config
class GrpoConfig(StudentSampling):
    """Settings of training by relative rewards alone."""

    sampler: SdeSamplerConfig = SdeSamplerConfig(sampler="renoise")
    inference: SamplerConfig | None = None  # how the student is benchmarked, where not as it is trained
    student_guidance: Guidance = 1.0  # of the student, in rollout, training and use; 1 = off
    updates: Count = 1  # optimiser steps per epoch; from the second on bfloat16 rounds rho by more than the clip
    grpo: GrpoTerm = GrpoTerm(kl_weight=0.04)
    student: OptimiserConfig = OptimiserConfig(lr=3e-4, weight_decay=1e-4)
    ema: EmaConfig = EmaConfig(decay=0.9, every=8, warmup=True)


@register("grpo")
class Grpo(RewardTrainer):
    """The trainer: an iteration is an epoch."""

    Config = GrpoConfig

    def __init__(self, config: GrpoConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self.config, self.rewards, self.world = config, rewards, world
        base = backbone.protocol()
        self._rollout, use = config.student_protocol(base), config.student_protocol(base, config.inference)
        self._protocol = replace(use, guidance_scale=config.student_guidance)
        check_grpo(self._rollout, rewards)
        self.roles = Roles(
            backbone, config.student, None, config.ema, world,
            reference=config.grpo.kl_weight > 0, student_guidance=config.student_guidance,
        )  # fmt: skip
        self.prompts_per_step = config.grpo.groups

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Sample groups by the present student, then take `updates` steps on parts of them."""
        c, updates = self.config.grpo, self.config.updates
        # 1. Groups, rewards, advantages
        graphs = updates == 1 and not c.microbatch
        epoch = collect(prompts, self._rollout, self.roles, self.rewards, c, self.world, graphs)
        logs = reward_logs(epoch.rolled.scores, self.world.gather) | {"kept": epoch.share, "rl_loss": 0.0}
        # 2. The clipped loss on each part; rho leaves 1 from the second update on
        for n, part in enumerate(epoch.parts(updates) if epoch.share else ()):
            for rows, count in self.roles.batches(part, c.microbatch or max(1, len(part))):
                loss = grpo_loss(epoch, rows, self._rollout, self.roles, c, unchanged=n == 0)
                loss = epoch.weight(count, updates) * loss
                loss.backward(inputs=self.roles.student.parameters)
                logs["rl_loss"] += loss.item() / updates
            logs["student_norm"] = self.roles.student.update()
        self.roles.student.average(iteration)
        return logs
