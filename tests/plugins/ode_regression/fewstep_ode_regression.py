"""ODE regression, a trainer of one's own: the student learns noise -> picture pairs of its teacher by heart.

    x0* = the teacher's guided ODE from z to its end        x_t = (1 - t) x0* + t z,   t a level of the student's grid
    L   = mean (x_t - t v_student(x_t, t) - x0*)^2

Source: Luhman and Luhman 2021, arXiv:2101.02388, for one step. Axes: B samples, then any latent axes.
"""

from collections.abc import Sequence

import torch

from benchmarks.config import config
from benchmarks.samplers import sigma_grid
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Logs, Roles, RolesTrainer, SamplerConfig, World, register
from trainers.dmd import descend
from trainers.first_step import teacher_anchor
from trainers.flow import interpolate, x0_from_v
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank


@config
class OdeRegressionConfig:
    """Settings of ODE regression."""

    sampler: SamplerConfig = SamplerConfig(sampler="euler")
    guidance_scale: float = 5.0  # of the teacher; 1 = off
    batch_size: int = 32  # prompts per iteration and process
    teacher_steps: int = 10
    student: OptimiserConfig = OptimiserConfig(lr=1e-3)
    ema: EmaConfig = EmaConfig()


@register("ode_regression")
class OdeRegression(RolesTrainer):
    """The trainer: a file, a config, a step."""

    Config = OdeRegressionConfig

    def __init__(self, config: OdeRegressionConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self.config, self.prompts_per_step = config, config.batch_size
        self.roles = Roles(backbone, config.student, None, config.ema, world)
        self._protocol = config.sampler.protocol(backbone.protocol())

    @classmethod
    def trains_on_rewards(cls, config: OdeRegressionConfig) -> bool:
        """Return that no term knows them: those of a run are for its canary."""
        return False

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Make pairs with the teacher, and take one step of the student towards them."""
        c, networks = self.config, self.roles.networks(prompts, self.config.guidance_scale)
        # 1. A pair: noise, and where the teacher's ODE leads it
        z = self.roles.noise(len(prompts))
        x0_teacher = teacher_anchor(networks.teacher, z, torch.linspace(1, 0, c.teacher_steps + 1).tolist())
        # 2. Noise it, with the same noise, to one of the levels that the student will be run at
        levels = sigma_grid(self._protocol)[:-1]
        t = levels[self.roles.draws.index(len(levels))]
        x_t = interpolate(x0_teacher, z, t)
        # 3. One step of the student
        loss = ((x0_from_v(x_t, networks.student(x_t, t), t) - x0_teacher) ** 2).mean()
        logs = descend("student", self.roles.student, {"regression_loss": loss})
        self.roles.student.average(iteration)
        return logs
