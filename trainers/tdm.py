"""TDM (trajectory distribution matching): every step of a deterministic student matched on a stretch of levels.

The student runs its trajectory x_0 .. x_K from noise. A random step i of it, from level t_i, is made once more and
followed to a level t_m, its own end; the score networks see that point of the trajectory, noised further:

    x0 = x_i - t_i v(x_i, t_i)      x_m = (1 - t_m) x0 + t_m eps      eps = x0 + v, so x_m lies on the step
    x_t = a x_m + sigma n           the path's own kernel from t_m to t, t ~ U[t_m, t_i]    (trainers/flow.py)

    student      L = mean[ (sqrt(d^2 + c^2) - c) / N ],   d = x0 - sg(x0 - (x0_fake - x0_teacher)),
                 N = mean |x0 - x0_teacher|               pseudo-Huber: large errors pull no harder than others
    fake score   L = mean[ w min(SNR, 5) (x0_fake - x0)^2 ],   SNR = ((1 - t) / t)^2
                 w = exp(-mean n_mix^2 / 2) / exp(-mean n^2 / 2)
                 n_mix = (a t_m eps + sigma n) / t:  x_t = (1 - t) x0 + t n_mix, all its noise as one draw

One update of the fake score goes before each of the student, on steps of the same trajectories drawn anew.

Source: TDM, arXiv:2503.06674, and its authors' public demo, an eps model on timesteps 0 .. 999: x0 and SNR are the
same numbers in flow (benchmarks/vp.py), the bounds 20, 10 and 20 timesteps became levels. Departures: levels are
uniform in t of flow; the demo starts at timestep 899 and divides the rest evenly, here the sampler lays the levels.
Axes: B samples, then any latent axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.config import config
from benchmarks.samplers import euler, sigma_grid
from metrics.base import Prompt, UserError
from trainers.backbones.base import Backbone
from trainers.base import Count, DistillationTrainer, Guidance, Logs, Networks, SamplerConfig, World, register
from trainers.dmd import descend, dmd_gradient, magnitude
from trainers.draws import Draws
from trainers.flow import Velocity, eps_from_v, subinterval, x0_from_v
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.rollout import Step, rollout
from trainers.schedules import StudentSampling


@config
class TdmConfig(StudentSampling):
    """Settings of TDM."""

    sampler: SamplerConfig = SamplerConfig(sampler="euler")
    guidance_scale: Guidance = 4.5  # of the teacher; 1 = off
    batch_size: Count = 16  # prompts per iteration and process
    separate: bool = True  # t ends below the step's own start t_i; else at `high` for every step
    random_end: bool = False  # t_m anywhere within the step
    low: float = 0.02  # least t
    high: float = 0.99  # t ends there where separate is false
    gap: float = 0.01  # t stays below t_i by it; t_m by twice as much
    huber_c: float = 1e-3  # c
    max_snr: float = 5.0
    importance: bool = True  # w; else 1
    student: OptimiserConfig = OptimiserConfig(lr=4e-6, betas=(0.0, 0.95), weight_decay=1e-2)
    fake_score: OptimiserConfig = OptimiserConfig(lr=2e-5, betas=(0.0, 0.95), weight_decay=1e-2, max_grad_norm=0.0)
    ema: EmaConfig = EmaConfig(decay=0.0)

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1 or self.gap <= 0:
            raise ValueError("low, high and gap must satisfy 0 < low < high < 1 and gap > 0")
        if self.separate and self.high != TdmConfig.high:
            raise ValueError("high is where t ends with separate = false: set that, or leave high out")
        if self.huber_c <= 0 or self.max_snr <= 0:
            raise ValueError("huber_c and max_snr must be above 0")
        if self.sampler.cps_eta > 0:
            raise ValueError('the trajectory is deterministic: set sampler.sampler = "euler"')


@dataclass(frozen=True)
class Stretch:
    """A batch somewhere on its trajectory: the step that each sample is on, and the levels it is taken to."""

    x: Tensor  # x_i, without graph
    t_i: Tensor  # [B, 1, ...]
    t_m: Tensor
    t: Tensor
    noise: Tensor  # n

    def noised(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_t, n_mix) [B, ...] of the student's velocity v at x_i, without graph."""
        with torch.no_grad():
            x_m = euler(self.x, v, self.t_i, self.t_m).mean
            a, sigma = subinterval(self.t_m, self.t)
            n_mix = (a * self.t_m * eps_from_v(self.x, v, self.t_i) + sigma * self.noise) / self.t
            return a * x_m + sigma * self.noise, n_mix


def draw_stretch(steps: Sequence[Step], c: TdmConfig, draws: Draws) -> tuple[Stretch, Tensor]:
    """Return a random step of each sample's trajectory with random levels, and the velocity [B, ...] known there."""
    first = steps[0].x_t
    i_B = draws.indices(len(first), len(steps)).to(first.device)
    row_B = torch.arange(len(first), device=first.device)
    x, v = (torch.stack(each)[i_B, row_B] for each in ([s.x_t for s in steps], [s.v for s in steps]))
    levels = first.new_tensor([(s.t, s.t_next) for s in steps])[i_B]
    t_i, t_end = (level.view(-1, *[1] * (first.ndim - 1)) for level in levels.T)
    t_m = draws.uniform(t_end, t_i - 2 * c.gap, first) if c.random_end else t_end
    t = draws.uniform(t_m.clamp(min=c.low), t_i - c.gap if c.separate else c.high, first)
    return Stretch(x, t_i, t_m, t, draws.normal_like(first)), v


def student_loss(
    x0: Tensor, x_t: Tensor, t: Tensor, teacher: Velocity, fake_score: Velocity, huber_c: float
) -> Tensor:
    """Return the student's loss of samples x0 [B, ...]; the gradient reaches x0 alone, through no x_t."""
    with torch.no_grad():
        x0_teacher, x0_fake = (x0_from_v(x_t, velocity(x_t, t), t) for velocity in (teacher, fake_score))
        target = x0 - dmd_gradient(x0, x0_teacher, x0_fake, "none")
    return ((((x0 - target) ** 2 + huber_c**2).sqrt() - huber_c) / magnitude(x0 - x0_teacher)).mean()


def fake_score_loss(
    x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, n_mix: Tensor, fake_score: Velocity, c: TdmConfig
) -> Tensor:
    """Return the fake score's loss on what the student's x0 [B, ...] was noised to."""
    snr = (((1 - t) / t) ** 2).clamp(max=c.max_snr).flatten()
    likely = (noise**2 - n_mix**2).flatten(1).mean(dim=1) / 2
    weight = snr * likely.exp() if c.importance else snr
    error = x0_from_v(x_t, fake_score(x_t, t), t) - x0
    return (weight * (error**2).flatten(1).mean(dim=1)).mean()


@register("tdm")
class Tdm(DistillationTrainer):
    """The trainer of TDM."""

    Config = TdmConfig

    def __init__(self, config: TdmConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        super().__init__(config, backbone, world, config.student_protocol(backbone.protocol()))
        self.config = config
        _check_levels(sigma_grid(self._protocol), config)

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Update the fake score, then the student, on steps of the same trajectories."""
        networks = self.roles.networks(prompts, self.config.guidance_scale)
        # 1. The student's own trajectories, without graph
        z, draws = self.roles.start(len(prompts), self._protocol), self.roles.draws
        steps = rollout(networks.student, z, self._protocol, lambda _: draws.normal_like(z))
        # 2. Keep the fake score on what the student makes of their steps
        logs = self._update_fake_score(networks, steps)
        # 3. Move that to where the teacher finds it likely
        logs |= self._update_student(networks, steps)
        self.roles.student.average(iteration)
        return logs

    def _update_fake_score(self, networks: Networks, steps: Sequence[Step]) -> Logs:
        at, v = draw_stretch(steps, self.config, self.roles.draws)
        x_t, n_mix = at.noised(v)
        x0 = x0_from_v(at.x, v, at.t_i)
        loss = fake_score_loss(x0, x_t, at.t, at.noise, n_mix, networks.fake_score, self.config)
        return descend("fake_score", self.roles.fake_score, {"fake_score_loss": loss})

    def _update_student(self, networks: Networks, steps: Sequence[Step]) -> Logs:
        at, _ = draw_stretch(steps, self.config, self.roles.draws)
        v = networks.student(at.x, at.t_i)
        x_t, _ = at.noised(v)
        x0 = x0_from_v(at.x, v, at.t_i)
        loss = student_loss(x0, x_t, at.t, networks.teacher, networks.fake_score, self.config.huber_c)
        return descend("student", self.roles.student, {"tdm_loss": loss})


def _check_levels(levels: Sequence[float], c: TdmConfig) -> None:
    """Raise UserError where a step of the sampler is too short for a level t or t_m within it."""
    room = 2 * c.gap if c.random_end else c.gap
    for t_i, t_end in pairwise(levels):
        if t_i - room <= max(t_end, c.low):
            raise UserError(
                f"trainer.sampler: the step from level {t_i:g} to {t_end:g} is too short for trainer.low = {c.low:g} "
                f"and trainer.gap = {c.gap:g}: lay other levels, or lower these two"
            )
        highest = t_i - room if c.random_end else t_end  # of t_m, from which t is reached by noising
        if not c.separate and highest >= c.high:
            raise UserError(
                f"trainer.high = {c.high:g}: the step from level {t_i:g} ends at up to {highest:g}, above which t is "
                "to lie: raise it, lay other levels, or leave separate = false out"
            )
