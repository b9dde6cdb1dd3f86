"""Online DPO: the better of a student's own images is made likelier than the worse one, relative to a frozen student.

    e_v(x)  = mean_dims |v(x_t, t) - (eps - x)|^2,   x_t = (1 - t) x + t eps
    Delta   = [e_student - e_ref](winner) - [e_student - e_ref](loser)
    L       = -log sigmoid(-beta / 2 · Delta)

Winner and loser are the members of a group with the highest and the lowest reward; both see the same eps and t. The
reference is the student as the stage began, or as it was up to n updates ago (online DPO). With loss = "eps" errors
are those that eps models are trained by, |eps_hat - eps|^2 = (1 - t)^2 |v_hat - v|^2: smaller, for the same beta.
Source: Diffusion-DPO, Wallace et al. 2023, arXiv:2311.12908, Eq. 14; on flow models, with pairs from groups: the code
of Flow-GRPO's authors, whose beta this is. DMDR names the method without code.
Axes: P prompts and pairs, N members of a group, B = P N images, then any latent axes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.config import config
from benchmarks.protocol import Protocol
from metrics.base import Prompt, UserError
from trainers.backbones.base import Backbone
from trainers.base import Logs, RewardTrainer, Roles, SamplerConfig, World, register
from trainers.dmd import descend
from trainers.flow import Prediction, RenoiseLaw, Velocity, interpolate, prediction_error
from trainers.group_rollout import roll_out_groups
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank, reward_logs
from trainers.schedules import StudentSampling


@config
class DpoTerm:
    """The loss; see the module's docstring."""

    groups: int = 4  # P, prompts per update and process
    group_size: int = 8  # N
    beta: float = 100.0  # goes with the mean over latent axes, not the sum
    renoise: RenoiseLaw = RenoiseLaw(kind="logit_normal", low=0.001, high=1.0)
    loss: Prediction = "velocity"  # what the errors are of; eps: as eps models are trained
    reference_every: int = 0  # student updates after which the reference follows; 0 = never

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_size < 2 or self.reference_every < 0:
            raise ValueError("groups must be at least 1, group_size 2, reference_every 0")
        if self.beta <= 0:
            raise ValueError("beta must be above 0")


def choose_pairs(reward_B: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return (winners, losers) [P], rows of the batch; members 1 and 0 of a group whose rewards are all equal."""
    reward_PN = reward_B.view(-1, group_size)
    winner_P, loser_P = reward_PN.argmax(dim=1), reward_PN.argmin(dim=1)
    alike_P = reward_PN.amax(dim=1) == reward_PN.amin(dim=1)
    first_P = group_size * torch.arange(len(reward_PN), device=reward_B.device)
    return first_P + torch.where(alike_P, 1, winner_P), first_P + torch.where(alike_P, 0, loser_P)


def dpo_loss(
    student: Velocity,
    reference: Velocity,
    winner: Tensor,
    loser: Tensor,
    t: Tensor,
    eps: Tensor,
    beta: float,
    of: Prediction = "velocity",
) -> Tensor:
    """Return the loss of pairs [P, ...] at levels t [P, 1, ...] with noise eps [P, ...].

    Both networks are asked once about 2 P samples: winners, then losers."""
    x0, t_both, eps_both = torch.cat([winner, loser]), torch.cat([t, t]), torch.cat([eps, eps])
    x_t = interpolate(x0, eps_both, t_both)

    def error(v: Tensor) -> Tensor:
        return (prediction_error(v, x0, eps_both, t_both, of) ** 2).flatten(1).mean(dim=1)

    with torch.no_grad():
        reference_error = error(reference(x_t, t_both))
    of_winner, of_loser = (error(student(x_t, t_both)) - reference_error).chunk(2)
    return -F.logsigmoid(-0.5 * beta * (of_winner - of_loser)).mean()


def online_dpo_loss(
    prompts: Sequence[Prompt], protocol: Protocol, roles: Roles, rewards: RewardBank, c: DpoTerm
) -> tuple[dict[str, Tensor], Logs]:
    """Return (the loss on pairs of the student's own images of P prompts, what the log shall hold of the rewards)."""
    rolled = roll_out_groups(roles, rewards, prompts, c.group_size, protocol)
    rewards.observe(rolled.scores)
    winner_P, loser_P = choose_pairs(rewards.total(rolled.scores), c.group_size)
    pairs = [*prompts, *prompts]
    student, reference = roles.velocity("student", pairs), roles.velocity("reference", pairs)
    winner, loser = rolled.x0[winner_P], rolled.x0[loser_P]
    t, eps = roles.renoise(c.renoise, winner)
    loss = dpo_loss(student, reference, winner, loser, t, eps, c.beta, c.loss)
    return {"rl_loss": loss}, reward_logs(rolled.scores, roles.gather)


def follow(roles: Roles, c: DpoTerm) -> None:
    """Bring the reference up to the student where that is due; call after an update."""
    if c.reference_every and roles.student.updates % c.reference_every == 0:
        roles.backbone.keep_reference()


@config
class DpoConfig(StudentSampling):
    """Settings of training by preferences alone."""

    sampler: SamplerConfig = SamplerConfig()
    dpo: DpoTerm = DpoTerm()
    student: OptimiserConfig = OptimiserConfig(lr=3e-4, betas=(0.5, 0.99))
    ema: EmaConfig = EmaConfig()


@register("dpo")
class Dpo(RewardTrainer):
    """The trainer."""

    Config = DpoConfig
    reward_settings = frozenset({"normalise"})

    def __init__(self, config: DpoConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        if not rewards.ids:
            raise UserError("trainer.dpo needs a reward: add a [[rewards]] table")
        self.config, self.rewards = config, rewards
        self.roles = Roles(backbone, config.student, None, config.ema, world, reference=True)
        self.prompts_per_step = config.dpo.groups
        self._protocol = config.student_protocol(backbone.protocol())

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Sample groups, take the best and the worst of each, and take one step."""
        losses, logs = online_dpo_loss(prompts, self._protocol, self.roles, self.rewards, self.config.dpo)
        logs |= descend("student", self.roles.student, losses)
        follow(self.roles, self.config.dpo)
        self.roles.student.average(iteration)
        return logs
