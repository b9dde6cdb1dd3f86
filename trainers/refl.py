"""ReFL: a differentiable reward, propagated back through one call of the student, the decoder and the reward model.

    L = w sum_j c_j mean_B relu(m_j - r_j(x0) / scale_j) + w_reg L_reg

Above its margin m_j a reward has done its work; a margin that is never met makes the hinge linear. The regulariser
`self_pretrain` is the loss that the base was trained by, of velocity or eps, on samples of the student as it was when
the stage began: where only prompts are given it stands for ReFL's pre-training loss on pictures.

SRPO: the text feature f of a reward becomes (1 + k) f_pos - f_neg, the features of the prompt behind a praising and a
dispraising prefix. Rewards that are inner products with f are linear in it: r = (1 + k) r_pos - r_neg. The log holds
that as `srpo/<id>`: it is no value of the metric, and `reward/<id>`, which would be, costs one more reading of text.

Source: ReFL, Xu et al. 2023, arXiv:2304.05977, algorithm 1; the form on few-step students and its values: DMDR's
authors' code; SRPO: Shen et al. 2025, arXiv:2509.06942, as in DMDR's code (the combined feature keeps its length).
Axes: B samples, then any latent axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import config
from benchmarks.protocol import Protocol
from metrics.base import Prompt, UserError
from trainers.backbones.base import Backbone
from trainers.base import Count, Guidance, Logs, RewardTrainer, Roles, SamplerConfig, World, register
from trainers.dmd import X0_SOURCES, descend, fake_score_loss, last_step_x0
from trainers.draws import Draws
from trainers.flow import LevelAt, Prediction, RenoiseLaw, Velocity
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank, reward_logs
from trainers.rollout import rollout
from trainers.schedules import StudentSampling


@config
class SrpoConfig:
    """Prefixes and weight of SRPO; one pair of prefixes is drawn for each image."""

    k: float = 0.1
    positive: tuple[str, ...] = ("Natural-lighting. ", "Detailed. ", "Realistic. ")
    negative: tuple[str, ...] = ("Painting. ", "CG Render. ", "Oil. ")
    # Ids it applies to, cosines or logits; () = every differentiable one. DMDR's code applies it to HPS and leaves
    # CLIP its plain prompt: rewards = ["hps_v21"]. What reads no prompt is merely scaled by k.
    rewards: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise ValueError("positive and negative must name at least one prefix each")


@config
class ReflTerm:
    """The loss; see the module's docstring."""

    weight: float = 1.0  # w, of all rewards together
    margin: float = 0.7  # m of rewards without a margin of their own
    text: Literal["prompt", "srpo"] = "prompt"
    srpo: SrpoConfig = SrpoConfig()
    regulariser: Literal["none", "self_pretrain"] = "none"
    regulariser_weight: float = 1.0  # w_reg
    regulariser_renoise: RenoiseLaw = RenoiseLaw(kind="logit_normal", low=0.001, high=1.0)
    regulariser_loss: Prediction = "velocity"  # eps: as eps models are trained

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.regulariser_weight <= 0:
            raise ValueError("weight and regulariser_weight must be above 0")


def hinge_loss(scores: Mapping[str, Tensor], rewards: RewardBank, margin: float) -> Tensor:
    """Return sum_j c_j mean relu(m_j - r_j / scale_j) of raw rewards [B]; its gradient at r_j is -c_j / (scale_j B).

    margin: of rewards without their own. Where one is normalised, m_j and -c_j are of its deviations."""
    margins = {one.id: margin if one.margin is None else one.margin for one in rewards.settings}
    parts = [
        rewards.weights[name] * torch.relu(margins[name] - score).mean()
        for name, score in rewards.levelled(scores).items()
    ]
    return torch.stack(parts).sum()


def srpo_scores(
    rewards: RewardBank, images: Tensor, prompts: Sequence[Prompt], only: Sequence[str], c: SrpoConfig, roles: Roles
) -> dict[str, Tensor]:
    """Return (1 + k) r_pos - r_neg [B] of the rewards in `only`, by id, with the gradient of the images."""
    pick = roles.draws.rows(len(prompts), lambda n, own: torch.rand(n, 2, generator=own))
    positive = [c.positive[int(u * len(c.positive))] for u in pick[:, 0]]
    negative = [c.negative[int(u * len(c.negative))] for u in pick[:, 1]]
    praised, dispraised = rewards.score_behind(images, prompts, only, [positive, negative])
    return {name: (1 + c.k) * praised[name] - dispraised[name] for name in only}


def refl_losses(
    x0: Tensor,
    student: Velocity,
    prompts: Sequence[Prompt],
    protocol: Protocol,
    roles: Roles,
    rewards: RewardBank,
    c: ReflTerm,
) -> tuple[dict[str, Tensor], Logs]:
    """Return (the weighted terms of the loss on x0 [B, ...], what the log shall hold of the rewards)."""
    images, names = roles.backbone.decode(x0), rewards.differentiable
    changed = [name for name in names if c.text == "srpo" and name in (c.srpo.rewards or names)]
    scores = rewards.score(images, prompts, only=[name for name in names if name not in changed])
    praised = srpo_scores(rewards, images, prompts, changed, c.srpo, roles) if changed else {}
    logs = reward_logs(scores, roles.gather) | reward_logs(praised, roles.gather, "srpo")
    rewards.observe(scores | praised)
    losses = {"rl_loss": c.weight * hinge_loss(scores | praised, rewards, c.margin)}
    if c.regulariser == "self_pretrain":
        reference, z = roles.velocity("reference", prompts), roles.start(len(prompts), protocol)
        law, level_at = c.regulariser_renoise, roles.backbone.level_at
        loss = self_pretrain_loss(student, reference, z, protocol, roles.draws, law, level_at, c.regulariser_loss)
        losses["regulariser_loss"] = c.regulariser_weight * loss
    return losses, logs


def self_pretrain_loss(
    student: Velocity,
    reference: Velocity,
    z: Tensor,
    protocol: Protocol,
    draws: Draws,
    law: RenoiseLaw,
    level_at: LevelAt,
    of: Prediction = "velocity",
) -> Tensor:
    """Return the loss of the student, of its velocity or eps, on what the reference makes of its start z [B, ...].

    level_at: the backbone's, for the law."""
    with torch.no_grad():
        x0 = rollout(reference, z, protocol, lambda _: draws.normal_like(z))[-1].x_next
    return fake_score_loss(x0, student, *law.draw(x0, draws, level_at), of)


def check_refl(c: ReflTerm, rewards: RewardBank) -> None:
    """Raise UserError where the term's settings and the rewards contradict each other."""
    if not rewards.differentiable:
        raise UserError("trainer.refl needs a differentiable reward: add a [[rewards]] table, or train by grpo")
    if flat := [name for name in rewards.ids if name not in rewards.differentiable]:
        raise UserError(f"trainer.refl: no gradient reaches reward {', '.join(flat)}: leave it out, or train by grpo")
    if c.margin != ReflTerm().margin and all(one.margin is not None for one in rewards.settings):
        raise UserError("trainer.refl.margin: every reward has a margin of its own: leave it out")
    for name in c.srpo.rewards:
        if name not in rewards.differentiable:
            raise UserError(f"trainer.refl.srpo.rewards: {name!r} is not among the differentiable rewards")


@config
class ReflConfig(StudentSampling):
    """Settings of training by the reward alone."""

    sampler: SamplerConfig = SamplerConfig()
    student_guidance: Guidance = 1.0  # of the student, in rollout, training and use; 1 = off
    batch_size: Count = 32  # prompts per iteration and process
    x0_source: Literal["last_step", "renoised_rollout"] = "last_step"
    # Of last_step, k ~ U{first_step..K}: what the first of many steps predict is too blurred to be judged, and ReFL
    # trains on the last 10 of 40
    first_step: int = 1
    refl: ReflTerm = ReflTerm()
    student: OptimiserConfig = OptimiserConfig(lr=3e-4, betas=(0.5, 0.99))
    ema: EmaConfig = EmaConfig()

    def __post_init__(self) -> None:
        if not 1 <= self.first_step <= self.sampler.num_inference_steps:
            raise ValueError("first_step must lie in 1 to sampler.num_inference_steps")
        if self.first_step > 1 and self.x0_source != "last_step":
            raise ValueError('first_step is of x0_source = "last_step": leave one of them out')


@register("refl")
class Refl(RewardTrainer):
    """The trainer: nothing but the reward, and the regulariser where one is set."""

    Config = ReflConfig
    reward_settings = frozenset({"margin", "normalise"})

    def __init__(self, config: ReflConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        check_refl(config.refl, rewards)
        self.config, self.rewards = config, rewards
        regularised = config.refl.regulariser != "none"
        self.roles = Roles(
            backbone, config.student, None, config.ema, world,
            reference=regularised, student_guidance=config.student_guidance,
        )  # fmt: skip
        self.prompts_per_step = config.batch_size
        self._protocol = replace(config.student_protocol(backbone.protocol()), guidance_scale=config.student_guidance)
        last_step = partial(last_step_x0, first=config.first_step)
        self._generate = last_step if config.x0_source == "last_step" else X0_SOURCES[config.x0_source]

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Generate, score, and take one step along the gradient of the reward."""
        c, networks = self.config, self.roles.networks(prompts, guidance_scale=1.0)
        # 1. One call with a graph, on the student's own path
        z = self.roles.noise(len(prompts))
        scale = self.roles.noise_scale(self._protocol)
        x0 = self._generate(networks.student, z, self._protocol, self.roles.draws, True, scale)
        # 2. Hinge on the rewards of the decoded images
        losses, logs = refl_losses(x0, networks.student, prompts, self._protocol, self.roles, self.rewards, c.refl)
        # 3. Descend
        logs |= descend("student", self.roles.student, losses)
        self.roles.student.average(iteration)
        return logs
