"""DMDR: distribution matching and reinforcement learning at once, the one as the other's regulariser.

    L = L_dmd + lambda L_rl,   both through the same single call of the student

The phases of a run's stages:
    dmd       distribution matching                                (DMDR's first cold start; plain DMD)
    rt_dm     the same with rewards as weights, trainers/rt_dm.py  (the second version's)
    joint     distribution matching + lambda · rl
    rl_only   rl alone, with its own regulariser                   (ablation)
with rl = ReFL or SRPO (trainers/refl.py) on the x0 of that call, online DPO (trainers/dpo.py) or GRPO
(trainers/grpo.py) on rollouts of their own. A teacher that leans on the fake score and annealed levels speed the
start: trainers/dynamic.py.

Source: DMDR, algorithm 1 and Sec. 3, and its authors' code where the paper is silent: the fake score at twice its
adapter, the teacher's guidance drawn anew from w +- 0.5, the fake score trained on the very images that the student's
input is made of, one student update on the same batch at every R-th iteration but the first. Departures: DPO and
GRPO, named without public code, are Flow-GRPO's; the grid ends at 0 and its levels are not rounded, where the code
ends at 0.001 and rounds timesteps; N of the gradient lacks the code's 1e-8 (trainers/dmd.py); `dp_first_step` adds
DP-DMD's first-step loss.
Axes: B samples, K steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.config import config
from metrics.base import Prompt, UserError
from trainers.backbones.base import Backbone
from trainers.base import Count, Guidance, Logs, Roles, RolesTrainer, SamplerConfig, World, find, register
from trainers.dmd import Normaliser, descend, fake_score_loss, student_loss
from trainers.dpo import DpoTerm, follow, online_dpo_loss
from trainers.dynamic import DynaDgConfig, DynaRsConfig
from trainers.first_step import FirstStepConfig, first_step_term
from trainers.flow import Prediction, RenoiseLaw
from trainers.groups import spread
from trainers.grpo import GrpoTerm, check_grpo, collect, grpo_loss
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.refl import ReflTerm, check_refl, refl_losses
from trainers.renoised import Simulated, Simulation, check_simulation, renoised_rollout
from trainers.rewards import RewardBank, RunningStatistics, reward_logs
from trainers.rt_dm import RtDmConfig, check_rt_dm, reward_weights
from trainers.schedules import StudentSampling
from trainers.unread import read_where

RL = ("joint", "rl_only")  # phases with a reward term


@config
class DmdrConfig(StudentSampling):
    """Settings of DMDR; a run's stages differ in `phase` and whatever else they set."""

    phase: Literal["dmd", "rt_dm", "joint", "rl_only"] = "dmd"
    sampler: SamplerConfig = SamplerConfig(sampler="euler")
    simulation: Simulation = "final"  # what the student's input is made of; predictions for stochastic samplers
    guidance_scale: Guidance = 7.0  # w of the teacher; 1 = off
    guidance_jitter: float = 0.5  # it is drawn from w +- jitter, where guidance is on
    batch_size: Count = 8  # prompts per iteration and process
    fake_score_updates: Count = 5  # R, per student update
    normaliser: Normaliser = "x0_teacher"
    fake_score_loss: Prediction = "velocity"  # eps: as eps models are trained, here by the authors' code on SDXL
    fake_scale: float = 2.0  # s_f of the fake score's adapter; 1 where it is a full copy
    dynadg: DynaDgConfig = DynaDgConfig()  # its updates, and those of dynars, count from the start of the stage
    dynars: DynaRsConfig = DynaRsConfig()
    rt_dm: RtDmConfig = read_where(RtDmConfig(), phase=("rt_dm",))
    rl: Literal["refl", "srpo", "dpo", "grpo"] = "refl"
    rl_weight: float = 0.5  # λ
    rl_eta: float = 1.0  # η of the CPS rollouts that GRPO trains on
    refl: ReflTerm = read_where(ReflTerm(), phase=RL, rl=("refl", "srpo"))
    dpo: DpoTerm = read_where(DpoTerm(), phase=RL, rl=("dpo",))
    grpo: GrpoTerm = read_where(GrpoTerm(), phase=RL, rl=("grpo",))
    dp_first_step: FirstStepConfig = FirstStepConfig()
    student: OptimiserConfig = OptimiserConfig(lr=1e-6, weight_decay=0.01)
    fake_score: OptimiserConfig = OptimiserConfig(lr=5e-7)
    ema: EmaConfig = EmaConfig(decay=0.0)

    def __post_init__(self) -> None:
        if self.guidance_jitter < 0 or self.rl_weight <= 0 or self.fake_scale <= 0:
            raise ValueError("guidance_jitter must be at least 0, rl_weight and fake_scale above 0")
        if 1 < self.guidance_scale < 1 + self.guidance_jitter:
            raise ValueError("guidance_scale - guidance_jitter must be at least 1: below it guidance is off")
        check_simulation(self.simulation, self.sampler.cps_eta)
        if not 0 <= self.rl_eta <= 1:
            raise ValueError("rl_eta must lie in [0, 1]")
        if self.reinforced and self.groups > self.batch_size:
            raise ValueError(f"{self.rl}.groups are prompts of the batch: at most batch_size")
        if self.grpo.microbatch:
            raise ValueError("grpo.microbatch is of the method grpo alone; here backbone.microbatch cuts the batch")

    @property
    def distils(self) -> bool:
        """Whether the phase has distribution matching."""
        return self.phase != "rl_only"

    @property
    def groups(self) -> int:
        """The prompts of a batch, per process, that the reward term rolls out itself; 0 where it does not."""
        return {"dpo": self.dpo.groups, "grpo": self.grpo.groups}.get(self.rl, 0)

    @property
    def reinforced(self) -> bool:
        """Whether the phase has a reward term."""
        return self.phase in RL


@register("dmdr")
class Dmdr(RolesTrainer):
    """The trainer of all phases."""

    Config = DmdrConfig

    @classmethod
    def trains_on_rewards(cls, config: DmdrConfig) -> bool:
        """Return whether rewards weigh the distribution matching or have a term of their own."""
        return config.reinforced or (config.phase == "rt_dm" and config.rt_dm.kind != "none")

    def __init__(self, config: DmdrConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self.rewards, self.world, c = rewards, world, config
        if c.rl == "srpo":
            c = replace(c, rl="refl", refl=replace(c.refl, text="srpo"))
        self.config = c
        self._protocol = c.student_protocol(backbone.protocol())
        self._stochastic = replace(self._protocol, sampler="cps", eta=c.rl_eta)
        self._check(c, rewards, backbone)
        self.reward_settings = find(c.rl).reward_settings if c.reinforced else frozenset()
        kept = {"refl": c.refl.regulariser != "none", "dpo": True, "grpo": c.grpo.kl_weight > 0}[c.rl]
        fake_score = c.fake_score if c.distils else None
        self.roles = Roles(backbone, c.student, fake_score, c.ema, world, reference=c.reinforced and kept)
        self.statistics = RunningStatistics(c.rt_dm.decay)
        self.prompts_per_step = c.batch_size
        self._fake_scale = None if c.fake_scale == 1 else c.fake_scale
        self._groups = world.share(c.groups, f"{c.rl}.groups") if c.reinforced and c.groups else 0

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Update the fake score, and at every R-th iteration the student on the same batch."""
        c, i, logs = self.config, self.roles.student.updates, Logs()
        # 1. Run the student to its end, and noise what it made to levels of its own grid
        simulated = self._simulate(prompts) if c.distils or c.rl == "refl" else None
        # 2. Keep the fake score on the student's present distribution
        if c.distils and simulated:
            logs |= self._update_fake_score(simulated.x0, prompts, c.dynars.law(i))
        # 3. L_dmd + lambda L_rl, both through one call
        if not c.distils or (iteration > 0 and iteration % c.fake_score_updates == 0):
            losses, seen = self._losses(simulated, prompts, i)
            logs |= seen | (descend("student", self.roles.student, losses) if losses else {})
            if c.reinforced and c.rl == "dpo":
                follow(self.roles, c.dpo)
        self.roles.student.average(iteration)
        return logs

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return super().state_dict() | {"reward_statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        super().load_state_dict(state)
        self.statistics.load_state_dict(state["reward_statistics"])

    def _simulate(self, prompts: Sequence[Prompt]) -> Simulated:
        student, z = self.roles.velocity("student", prompts), self.roles.noise(len(prompts))
        scale = self.roles.noise_scale(self._protocol)
        return renoised_rollout(student, z, self._protocol, self.roles.draws, self.config.simulation, scale)

    def _update_fake_score(self, x0: Tensor, prompts: Sequence[Prompt], law: RenoiseLaw) -> Logs:
        fake_score = self.roles.networks(prompts, 1.0, fake_scale=self._fake_scale).fake_score
        t, eps = self.roles.renoise(law, x0)
        loss = fake_score_loss(x0, fake_score, t, eps, self.config.fake_score_loss)
        return descend("fake_score", self.roles.fake_score, {"fake_score_loss": loss})

    def _losses(
        self, simulated: Simulated | None, prompts: Sequence[Prompt], i: int
    ) -> tuple[dict[str, Tensor], Logs]:
        """Return (the weighted terms of the student's i-th update, what the log shall hold of the rewards)."""
        c, losses, logs = self.config, dict[str, Tensor](), Logs()
        x0 = simulated.predict(self.roles.velocity("student", prompts)) if simulated else None
        if c.distils and simulated and x0 is not None:
            weight, logs = self._sample_weights(simulated.x_K, prompts)
            losses["dmd_loss"] = self._dmd_loss(x0, prompts, i, weight)
        if c.reinforced:
            terms, seen = self._reinforce(x0, prompts)
            losses |= {name: c.rl_weight * loss for name, loss in terms.items()}
            logs |= seen
        if c.dp_first_step.weight:
            networks = self.roles.networks(prompts, c.guidance_scale)
            z = self.roles.start(len(prompts), self._protocol)
            losses |= first_step_term(networks, z, self._protocol, c.dp_first_step)
        return losses, logs

    def _dmd_loss(self, x0: Tensor, prompts: Sequence[Prompt], i: int, weight: Tensor | float) -> Tensor:
        c, draws = self.config, self.roles.draws
        guidance_scale = c.guidance_scale
        if guidance_scale > 1:
            guidance_scale += c.guidance_jitter * (2 * torch.rand((), generator=draws.shared).item() - 1)
        networks = self.roles.networks(prompts, guidance_scale, lean=c.dynadg.lean(i), fake_scale=self._fake_scale)
        t, eps = self.roles.renoise(c.dynars.law(i), x0)
        return student_loss(x0, networks.teacher, networks.fake_score, t, eps, c.normaliser, weight)

    @torch.no_grad()
    def _sample_weights(self, x_K: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor | float, Logs]:
        """Return w of each sample by the reward of its rollout's end, shaped [B, 1, ...]; 1 outside RT-DM."""
        c, world = self.config, self.world
        if c.phase != "rt_dm" or c.rt_dm.kind == "none":
            return 1.0, {}
        own = self.rewards.score(self.roles.backbone.decode(x_K), prompts)
        scores = {name: world.gather(score) for name, score in own.items()}
        self.statistics.update(scores)
        w = reward_weights(scores, self.rewards, self.statistics, c.rt_dm)
        logs = reward_logs(own, world.gather) | {"weight_max": w.max().item()}
        w = w[world.rank * len(x_K) : (world.rank + 1) * len(x_K)]
        return w.to(x_K).view(-1, *[1] * (x_K.ndim - 1)), logs

    def _reinforce(self, x0: Tensor | None, prompts: Sequence[Prompt]) -> tuple[dict[str, Tensor], Logs]:
        """Return (the terms of L_rl, what the log shall hold of the rewards)."""
        c, roles = self.config, self.roles
        if c.rl == "refl" and x0 is not None:
            student = roles.velocity("student", prompts)
            return refl_losses(x0, student, prompts, self._protocol, roles, self.rewards, c.refl)
        group = spread(prompts, self._groups)
        if c.rl == "dpo":
            return online_dpo_loss(group, self._protocol, roles, self.rewards, c.dpo)
        epoch = collect(group, self._stochastic, roles, self.rewards, c.grpo, self.world, graphs=True)
        logs = reward_logs(epoch.rolled.scores, self.world.gather) | {"kept": epoch.share}
        losses = dict[str, Tensor]()
        for rows, count in roles.batches(epoch.kept, len(epoch.advantage_B)):  # one, or none where nobody kept any
            losses["rl_loss"] = epoch.weight(count, 1) * grpo_loss(epoch, rows, self._stochastic, roles, c.grpo)
        return losses, logs

    def _check(self, c: DmdrConfig, rewards: RewardBank, backbone: Backbone) -> None:
        """Raise UserError where phase, rewards, sampler and backbone contradict each other."""
        scaled = c.distils and (c.dynadg.kind != "off" or c.fake_scale != 1)
        if scaled and not backbone.settings.fake_score_is_adapter:
            raise UserError(
                'backbone.training = "full" has no adapter to scale: use "lora", for the fake score alone '
                'backbone.fake_score_training = "lora", or set trainer.dynadg.kind = "off" and trainer.fake_scale = 1'
            )
        c.dp_first_step.check(self._protocol)
        if self.trains_on_rewards(c) and not rewards.ids:
            raise UserError(f'trainer.phase = "{c.phase}" needs a reward: add a [[rewards]] table')
        if c.phase == "rt_dm":
            check_rt_dm(c.rt_dm, rewards)
        if c.reinforced and c.rl == "refl":
            check_refl(c.refl, rewards)
        if c.reinforced and c.rl == "grpo":
            check_grpo(self._stochastic, rewards)
