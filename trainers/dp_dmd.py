"""DP-DMD: distribution matching for the later steps of a student, the teacher's own trajectory for the first.

    L = L_dmd(steps 2..K) + lambda L_first(step 1)

The student runs its deterministic sampler from noise z with the graph kept from step to step. After step 1 the graph
is cut: the first call learns from L_first alone (trainers/first_step.py), the others from distribution matching
alone, through the whole chain behind them. lambda = 0 without the cut is plain DMD on full rollouts, the paper's
baseline.

Source: DP-DMD, algorithm 1 and Sec. 3, and its authors' code where the paper is silent: g is normalised by
|x_t - x0_teacher|, one level t serves the whole batch, student and teacher run on diffusers' double-shifted levels
(`student_schedule`), R updates of the fake score come before each one of the student, each on prompts of its own.
Departures: noise and levels differ between processes (the code seeds all of them alike); K_a = 5, as in the paper's
main rows, where the code's launch script has 10.
Axes: B samples, then any latent axes; K steps.
"""

from collections.abc import Sequence

from torch import Tensor

from benchmarks.config import config
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Count, DistillationTrainer, Guidance, Logs, Networks, SamplerConfig, World, register
from trainers.dmd import Normaliser, descend, fake_score_loss, student_loss
from trainers.first_step import FirstStepConfig, first_step_term
from trainers.flow import Prediction, RenoiseLaw
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.rollout import Step, rollout
from trainers.schedules import Schedule, StudentSampling

ONE_LEVEL = RenoiseLaw(low=0.003, high=1.0, shift=3.0, per="batch")


@config
class DpDmdRecipe(StudentSampling):
    """What DP-DMD and the methods that it is compared with have in common."""

    sampler: SamplerConfig = SamplerConfig(sampler="euler", shift=3.0)
    student_schedule: Schedule = "diffusers_n"  # of the student's levels; explicit_shift: those of `sampler`
    guidance_scale: Guidance = 3.5  # of the teacher, at its anchor and in L_dmd; 1 = off
    batch_size: Count = 4  # prompts per iteration and process
    fake_score_updates: Count = 5  # R, before each update of the student
    normaliser: Normaliser = "xt_teacher"
    renoise: RenoiseLaw = ONE_LEVEL
    fake_score_renoise: RenoiseLaw = ONE_LEVEL
    student: OptimiserConfig = OptimiserConfig(lr=1e-5)
    fake_score: OptimiserConfig = OptimiserConfig(lr=1e-5)
    ema: EmaConfig = EmaConfig(decay=0.0)


@config
class DpDmdConfig(DpDmdRecipe):
    """Settings of DP-DMD."""

    first_step: FirstStepConfig = FirstStepConfig(weight=0.05, shift=3.0)  # λ, K_a
    detach_after_first: bool = True  # cut the graph behind step 1
    fake_score_loss: Prediction = "velocity"  # eps: as eps models are trained

    def __post_init__(self) -> None:
        if self.sampler.cps_eta > 0:
            raise ValueError('the student runs a deterministic sampler: set sampler.sampler = "euler"')
        if self.detach_after_first and self.sampler.num_inference_steps == 1:
            raise ValueError("detach_after_first leaves distribution matching no step at num_inference_steps = 1")


@register("dp_dmd")
class DpDmd(DistillationTrainer):
    """The trainer of DP-DMD and of its baseline."""

    Config = DpDmdConfig

    def __init__(self, config: DpDmdConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        super().__init__(config, backbone, world, config.student_protocol(backbone.protocol()))
        config.first_step.check(self._protocol)
        self.config = config

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Update the fake score R times, then the student once."""
        networks = self.roles.networks(prompts, self.config.guidance_scale)
        z = self.roles.start(len(prompts), self._protocol)
        due = (iteration + 1) % (self.config.fake_score_updates + 1) == 0
        logs = self._update_student(networks, z) if due else self._update_fake_score(networks, z)
        self.roles.student.average(iteration)
        return logs

    def _update_fake_score(self, networks: Networks, z: Tensor) -> Logs:
        """Keep the fake score on the student's present distribution."""
        c, draws = self.config, self.roles.draws
        x0 = rollout(networks.student, z, self._protocol, lambda _: draws.normal_like(z))[-1].x_next
        t, eps = self.roles.renoise(c.fake_score_renoise, x0)
        loss = fake_score_loss(x0, networks.fake_score, t, eps, c.fake_score_loss)
        return descend("fake_score", self.roles.fake_score, {"fake_score_loss": loss})

    def _update_student(self, networks: Networks, z: Tensor) -> Logs:
        """Take one step along the gradient of both losses."""
        c = self.config
        # 1. Roll out from z, with the graph of every call that has a loss to learn from
        steps = self._roll_out(networks, z)
        # 2. Distribution matching on the end of the chain
        x0 = steps[-1].x_next
        t, eps = self.roles.renoise(c.renoise, x0)
        losses = {"dmd_loss": student_loss(x0, networks.teacher, networks.fake_score, t, eps, c.normaliser)}
        # 3. The first step follows the teacher's trajectory from the same noise
        losses |= first_step_term(networks, z, self._protocol, c.first_step, v=steps[0].v)
        return descend("student", self.roles.student, losses)

    def _roll_out(self, networks: Networks, z: Tensor) -> list[Step]:
        c = self.config
        first = {1} if c.first_step.weight or not c.detach_after_first else set()
        later = set(range(2, c.sampler.num_inference_steps + 1))
        cut = {1} if c.detach_after_first else set()
        noise = self.roles.draws.normal_like
        return rollout(
            networks.student, z, self._protocol, lambda _: noise(z), grad=first | later, chain=True, cut=cut
        )
