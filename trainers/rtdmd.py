"""RTDMD: reward-tilted distribution matching. Cold start by AC-DMD, then AC-DMD with reinforcement learning.

    KL(p_theta || p_teacher exp(beta r) / Z)    hence    grad L = grad L_AC-DMD - beta (grad_stochastic + grad_direct)

The stochastic steps of CPS(eta) learn by SubGRPO; the last step is deterministic, so the reward is propagated back
through it, the decoder and the reward model. A reward without gradient (a detector) leaves the stochastic part.

Source: RTDMD, Sec. 3 and algorithm 1, and its authors' code where the two differ; each such difference is a value:
    paper  logprob "exact", advantage "group_std", subset_scale "paper", subset_per "prompt", dm_steps "all"
    code   logprob "simplified", advantage "per_reward_global_std", subset_scale "none", subset_per "epoch",
           dm_steps "last"                                                                        (the default)
Departures: stage II goes on training the cold start's adapters, from the EMA of the student, where the code merges
them into the body and attaches fresh ones; a rollout keeps the graphs of the steps it will train on, so no call is
made twice (`microbatch` makes them again, for networks whose graphs do not fit); losses are summed over trained
steps, where the code averages (a constant that AdamW cancels wherever the norm is not clipped). Beyond the paper:
`dp_first_step` adds DP-DMD's first-step loss to both stages, on noise of its own.
Axes: P prompts, N members of a group, B = P N images, K steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import config
from benchmarks.samplers import sigma_grid
from metrics.base import Prompt
from trainers import ac_dmd, subgrpo
from trainers.ac_dmd import AcDmdConfig
from trainers.backbones.base import Backbone
from trainers.base import Count, Guidance, Logs, Networks, Roles, RolesTrainer, SamplerConfig, World, register
from trainers.dmd import descend, step_reached
from trainers.draws import Noise
from trainers.first_step import FirstStepConfig, first_step_term
from trainers.group_rollout import decoded, gathered_advantages, student_of
from trainers.groups import group_noise, repeat_members
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.reinforce import Epoch, ReinforceConfig, check_reinforce, choose_subset, independent_noise
from trainers.rewards import RewardBank, reward_logs
from trainers.rollout import Step, replay, rollout_in_parts
from trainers.schedules import StudentSampling
from trainers.unread import read_where


@config
class ColdStartConfig:
    """Stage I."""

    batch_size: Count = 32  # prompts per iteration and process
    fake_score_updates: Count = 2  # R, per student update
    share_rollout: bool = False  # one rollout for both updates; the code draws a new one for the student


@config
class RtdmdConfig(StudentSampling):
    """Settings of RTDMD; a run's stages differ in `phase` and whatever else they set."""

    phase: Literal["cold_start", "reinforce"] = "cold_start"
    sampler: SamplerConfig = SamplerConfig()
    guidance_scale: Guidance = 5.0  # of the teacher; 1 = off
    ac_dmd: AcDmdConfig = AcDmdConfig()
    cold_start: ColdStartConfig = read_where(ColdStartConfig(), phase=("cold_start",))
    reinforce: ReinforceConfig = read_where(ReinforceConfig(), phase=("reinforce",))
    dp_first_step: FirstStepConfig = FirstStepConfig()
    student: OptimiserConfig = OptimiserConfig(lr=1e-3, betas=(0.5, 0.99))
    fake_score: OptimiserConfig = OptimiserConfig(lr=2e-3, betas=(0.5, 0.99))
    ema: EmaConfig = EmaConfig()


@register("rtdmd")
class Rtdmd(RolesTrainer):
    """The trainer of both stages."""

    Config = RtdmdConfig

    @classmethod
    def trains_on_rewards(cls, config: RtdmdConfig) -> bool:
        """Return whether stage II has one of its two reward terms."""
        return config.phase == "reinforce" and (config.reinforce.rl != "none" or config.reinforce.det_term)

    def __init__(self, config: RtdmdConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self.config, self.backbone, self.rewards, self.world = config, backbone, rewards, world
        self.roles = Roles(backbone, config.student, config.fake_score, config.ema, world)
        self._protocol = config.student_protocol(backbone.protocol())
        config.dp_first_step.check(self._protocol)
        self._levels = sigma_grid(self._protocol)
        self._last = len(self._levels) - 1  # K
        config.ac_dmd.check(self._levels, config.sampler.cps_eta)
        self.prompts_per_step = config.cold_start.batch_size
        if config.phase == "reinforce":
            check_reinforce(config.reinforce, config.sampler.cps_eta, self._last - 1, rewards)
            self.reward_settings = config.reinforce.reward_settings
            self.prompts_per_step = config.reinforce.groups

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Make one iteration of the stage's algorithm box, then average the student."""
        box = self._cold_start if self.config.phase == "cold_start" else self._reinforce
        logs = box(prompts, iteration)
        self.roles.student.average(iteration)
        return logs

    def _cold_start(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Stage I: the fake score at every iteration, the student at every R-th."""
        c, networks = self.config, self.roles.networks(prompts, self.config.guidance_scale)
        due = (iteration + 1) % c.cold_start.fake_score_updates == 0
        # 1. Run the student to a random step k and take its noisy end x_s, s = t_k
        x_s, s = self._random_step(networks, len(prompts), grad=due and c.cold_start.share_rollout)
        # 2. Keep the fake score on the student's distribution at level s
        logs = self._update_fake_score(prompts, x_s, s)
        # 3. Match the student's distribution at level s to the teacher's
        if due:
            if not c.cold_start.share_rollout:
                x_s, s = self._random_step(networks, len(prompts), grad=True)
            losses = {"dmd_loss": self._student_loss(networks, x_s, s, self.roles.draws)}
            losses |= self._first_step_loss(networks, x_s, self.roles.draws)
            logs |= descend("student", self.roles.student, losses)
        return logs

    def _reinforce(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Stage II: one epoch of P groups of N images, one update of each network."""
        c, members = self.config.reinforce, repeat_members(prompts, self.config.reinforce.group_size)
        # 1. Choose the subset S of the stochastic steps, and the step k that distribution matching trains on
        subset_PK = choose_subset(c, len(prompts), self._last - 1, self.roles.draws)
        k_dm = 1 + self.roles.draws.index(self._last) if c.dm_steps == "all" else self._last
        trained = {k for k in range(1, self._last) if subset_PK[:, k - 1].any()} | {k_dm, self._last}
        # 2. Roll the groups out through sampler, decoder and rewards
        steps = self._roll_out(prompts, members, subset_PK, self.roles.anywhere(trained), iteration)
        scores = self._score(steps[self._last].x0, members)
        # 3. Keep the fake score on the student's distribution
        logs = reward_logs(scores, self.world.gather)
        self.rewards.observe(scores)
        if c.dm_steps != "none":
            logs |= self._update_fake_score(members, *self._anchor(steps[k_dm], self.roles.draws), c.microbatch)
        # 4. Advantages within the groups; images of groups without contrast are dropped
        advantage_B, kept_B, share = self._advantages(scores, len(members))
        subset_BK = subset_PK.repeat_interleave(c.group_size, dim=0)
        draws = self.roles.draws.by_row(len(members), "student", iteration)
        epoch, kept = Epoch(members, steps, scores, advantage_B, subset_BK, draws), kept_B.nonzero().flatten().cpu()
        # 5. L = SubGRPO on S + AC-DMD on step k + direct reward gradient through step K, mean over all kept images
        for rows, count in self.roles.batches(kept, c.microbatch or len(members)):
            losses = self._losses(self._with_graph(epoch.rows(rows)), k_dm)
            weight = count / len(members) / share
            (weight * torch.stack(list(losses.values())).sum()).backward()
            logs |= {name: logs.get(name, 0.0) + weight * loss.item() for name, loss in losses.items()}
        if share:
            logs["student_norm"] = self.roles.student.update()
        return logs | {"kept": share}

    def _losses(self, epoch: Epoch, k_dm: int) -> dict[str, Tensor]:
        """Return the weighted terms of stage II's loss."""
        c, losses = self.config.reinforce, dict[str, Tensor]()
        networks = self.roles.networks(epoch.members, self.config.guidance_scale)
        if c.rl != "none":
            stochastic_steps = self._last - 1
            scale = stochastic_steps / c.trained_steps(stochastic_steps) if c.subset_scale == "paper" else 1.0
            stochastic = [step for k, step in epoch.steps.items() if k < self._last]
            loss = subgrpo.policy_loss(stochastic, epoch.subset_BK, epoch.advantage_B, c.logprob, c.clip, scale)
            losses["rl_loss"] = c.rl_weight * loss
        if c.dm_steps != "none":
            x_s, s = self._anchor(epoch.steps[k_dm], epoch.draws)
            losses["dmd_loss"] = c.dm_weight * self._student_loss(networks, x_s, s, epoch.draws)
        if c.det_term:
            reward_B = self.rewards.total(epoch.scores, only=self.rewards.differentiable)
            losses["det_loss"] = c.det_weight * torch.relu(c.det_margin - reward_B).mean()
        return losses | self._first_step_loss(networks, epoch.steps[self._last].x_t, epoch.draws)

    def _first_step_loss(self, networks: Networks, like: Tensor, draws: Noise) -> dict[str, Tensor]:
        """Return DP-DMD's weighted term on fresh noise; {} where it is off, and then nothing is drawn."""
        c = self.config.dp_first_step
        if not c.weight:
            return {}
        z = self.roles.noise_scale(self._protocol) * draws.normal_like(like)
        return first_step_term(networks, z, self._protocol, c)

    def _roll_out(
        self, prompts: Sequence[Prompt], members: list[Prompt], subset_PK: Tensor, trained: set[int], iteration: int
    ) -> dict[int, Step]:
        c, roles, shape = self.config.reinforce, self.roles, self.backbone.latent_shape
        texts, independent_PK = [prompt.text for prompt in prompts], independent_noise(c, subset_PK)
        noise = group_noise(texts, c.group_size, shape, independent_PK, roles.draws, iteration, self.backbone.device)
        x, student = roles.noise_scale(self._protocol) * noise(0), partial(student_of, roles, members)
        grad, size = (set[int](), c.microbatch) if c.microbatch else (trained, len(members))
        steps = rollout_in_parts(student, x, self._protocol, noise, size, grad)
        return {step.k: step for step in steps if step.k in trained}

    def _with_graph(self, epoch: Epoch) -> Epoch:
        """Return the epoch with the graphs of its calls: the rollout's own, or made again for a microbatch."""
        if not self.config.reinforce.microbatch:
            return epoch
        student = self.roles.networks(epoch.members, self.config.guidance_scale).student
        steps, scores = {k: replay(student, step, self._protocol) for k, step in epoch.steps.items()}, epoch.scores
        if self.config.reinforce.det_term:
            scores = scores | self._score(steps[self._last].x0, epoch.members, self.rewards.differentiable)
        return replace(epoch, steps=steps, scores=scores)

    def _score(self, x0: Tensor, members: Sequence[Prompt], only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Decode and score once: the same numbers are rewards of SubGRPO and, with their graph, the direct term."""
        c = self.config.reinforce
        with torch.set_grad_enabled(c.det_term and x0.requires_grad):
            return self.rewards.score(decoded(self.backbone, x0, c.microbatch or len(x0)), members, only)

    def _advantages(self, scores: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor, float]:
        """Return A [B], which images are kept [B], and the share that is kept of the images of all processes."""
        c = self.config.reinforce
        if c.rl == "none":
            return torch.ones(count), torch.ones(count, dtype=torch.bool), 1.0
        limits = c.group_size, c.advantage, c.advantage_limit
        own, everyone = gathered_advantages(scores, self.rewards, *limits, self.world)
        if c.zero_advantage == "keep":
            return own, torch.ones_like(own, dtype=torch.bool), 1.0
        return own, own != 0, int((everyone != 0).sum()) / len(everyone)

    def _random_step(self, networks: Networks, count: int, grad: bool) -> tuple[Tensor, float]:
        """Return (x_s, s) of a step k ~ U{1..K}, reached by the student itself."""
        k, x = 1 + self.roles.draws.index(self._last), self.roles.start(count, self._protocol)
        step = step_reached(networks.student, x, self._protocol, self.roles.draws, k, grad)
        return self._anchor(step, self.roles.draws)

    def _anchor(self, step: Step, draws: Noise) -> tuple[Tensor, float]:
        c = self.config
        return ac_dmd.anchor_sample(step, self._levels, c.sampler.cps_eta, c.ac_dmd, draws)

    def _update_fake_score(self, prompts: Sequence[Prompt], x_s: Tensor, s: float, size: int = 0) -> Logs:
        """Take one step on the samples x_s of level s, by at most `size` at a time; 0 = all."""
        c, learner, total = self.config, self.roles.fake_score, 0.0
        draws = self.roles.draws.by_row(len(x_s), "fake_score", learner.updates) if size else None
        for rows in torch.arange(len(x_s)).split(size or len(x_s)):
            own = draws.select(rows) if draws else self.roles.draws
            fake_score = self.roles.networks([prompts[row] for row in rows.tolist()], 1.0).fake_score
            loss = ac_dmd.fake_score_loss(fake_score, x_s[rows], s, c.sampler.cps_eta, c.ac_dmd, own)
            (len(rows) / len(x_s) * loss).backward(inputs=learner.parameters)
            total += len(rows) / len(x_s) * loss.item()
        return {"fake_score_loss": total, "fake_score_norm": learner.update()}

    def _student_loss(self, networks: Networks, x_s: Tensor, s: float, draws: Noise) -> Tensor:
        c = self.config
        return ac_dmd.student_loss(x_s, s, networks.teacher, networks.fake_score, c.sampler.cps_eta, c.ac_dmd, draws)
