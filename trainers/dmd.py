"""Distribution matching distillation (DMD): a few-step student learns from a many-step teacher.

    x_t = (1 - t) x0 + t eps    g = (x0_fake - x0_teacher) / N    grad_theta L = E[g d x0 / d theta] / numel

Source: Yin et al. 2023, arXiv:2311.18828, Eq. 7 (gradient) and Eq. 8 (normaliser); several steps by backward
simulation: DMD2, arXiv:2405.14867, Sec. 4.4-4.5. Departures: flow matching in place of eps; no regression loss;
no factor in t; a step of the student is one iteration with R fake-score updates before it.
Axes: B samples, then any latent axes; levels t are [B, 1, ...] or floats.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.config import config
from benchmarks.protocol import Protocol
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Count, DistillationTrainer, Guidance, Logs, Networks, SamplerConfig, World, register
from trainers.draws import Draws
from trainers.flow import Prediction, RenoiseLaw, Velocity, interpolate, prediction_error, x0_from_v
from trainers.learner import EmaConfig, Learner, OptimiserConfig
from trainers.renoised import Simulation, check_simulation, renoised_rollout
from trainers.rewards import RewardBank
from trainers.rollout import Step, rollout
from trainers.schedules import StudentSampling

Normaliser = Literal["x0_teacher", "xt_teacher", "none"]


def dmd_gradient(
    x0: Tensor, x0_teacher: Tensor, x0_fake: Tensor, normaliser: Normaliser = "x0_teacher", x_t: Tensor | None = None
) -> Tensor:
    """Return g = (x0_fake - x0_teacher) / N, the direction that descent moves x0 against, without gradient.

    N per sample, mean over latent axes: |x0 - x0_teacher| (DMD2), |x_t - x0_teacher| (needs x_t), or 1.
    Departure: where N is 0, g is 0, even if the fake score is not where the teacher is. There DMD2's code has the
    largest number there is, and DMDR's, which adds 1e-8 to N, 1e8 times the difference: one sample that outweighs all
    others. At any other N those 1e-8 are a factor 1 - 1e-8 / N, and are left out."""
    difference = (x0_fake - x0_teacher).detach()
    if normaliser == "none":
        return difference
    reference = x0 if normaliser == "x0_teacher" else x_t
    if reference is None:
        raise ValueError("normaliser xt_teacher needs x_t")
    return torch.nan_to_num(difference / magnitude(reference - x0_teacher), nan=0.0, posinf=0.0, neginf=0.0)


def magnitude(difference: Tensor) -> Tensor:
    """Return N [B, 1, ...], the mean of |difference| over latent axes, without gradient."""
    return difference.detach().abs().flatten(1).mean(dim=1).view(-1, *[1] * (difference.ndim - 1))


def dmd_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """Return the loss whose gradient with respect to x0 is `gradient` / numel."""
    target = (x0 - gradient).detach()
    return 0.5 * ((x0 - target) ** 2).mean()


def student_loss(
    x0: Tensor,
    teacher: Velocity,
    fake_score: Velocity,
    t: Tensor,
    eps: Tensor,
    normaliser: Normaliser = "x0_teacher",
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Return the DMD loss of samples x0; the gradient reaches x0 alone.

    weight: a factor of each sample's gradient, [B, 1, ...] or one for all."""
    with torch.no_grad():
        x_t = interpolate(x0, eps, t)
        x0_teacher = x0_from_v(x_t, teacher(x_t, t), t)
        x0_fake = x0_from_v(x_t, fake_score(x_t, t), t)
        gradient = dmd_gradient(x0, x0_teacher, x0_fake, normaliser, x_t)
        gradient = weight * gradient
    return dmd_loss(x0, gradient)


def fake_score_loss(x0: Tensor, fake_score: Velocity, t: Tensor, eps: Tensor, of: Prediction = "velocity") -> Tensor:
    """Return the mean square error of the fake score on the student's samples x0: of its velocity or of its eps."""
    x0 = x0.detach()
    return (prediction_error(fake_score(interpolate(x0, eps, t), t), x0, eps, t, of) ** 2).mean()


def last_step_x0(
    student: Velocity, z: Tensor, protocol: Protocol, draws: Draws, grad: bool, scale: float = 1.0, first: int = 1
) -> Tensor:
    """Return x0 predicted at a random step k ~ U{first..K}, reached by the student itself (backward simulation).

    scale, here and below: the factor of unit noise z that the sampler begins with."""
    k = first + draws.index(protocol.num_inference_steps - first + 1)
    return step_reached(student, scale * z, protocol, draws, k, grad).x0


def step_reached(student: Velocity, x: Tensor, protocol: Protocol, draws: Draws, k: int, grad: bool) -> Step:
    """Return step k of the student's own way from the sampler's start x [B, ...]; with `grad`, its graph alone."""
    return rollout(student, x, protocol, lambda _: draws.normal_like(x), last=k, grad={k} if grad else ())[-1]


def renoised_rollout_x0(
    student: Velocity,
    z: Tensor,
    protocol: Protocol,
    draws: Draws,
    grad: bool,
    scale: float = 1.0,
    simulation: Simulation = "predictions",
) -> Tensor:
    """Return x0 predicted from what a whole rollout made, noised afresh, each sample to a random grid level."""
    simulated = renoised_rollout(student, z, protocol, draws, simulation, scale)
    with torch.set_grad_enabled(grad):
        return simulated.predict(student)


def full_rollout_x0(
    student: Velocity, z: Tensor, protocol: Protocol, draws: Draws, grad: bool, scale: float = 1.0
) -> Tensor:
    """Return the end of a whole rollout, with the graph of all its steps chained."""
    with_graph = range(1, protocol.num_inference_steps + 1) if grad else ()
    steps = rollout(student, scale * z, protocol, lambda _: draws.normal_like(z), grad=with_graph, chain=True)
    return steps[-1].x_next


X0_SOURCES: dict[str, Callable[[Velocity, Tensor, Protocol, Draws, bool, float], Tensor]] = {
    "last_step": last_step_x0,
    "renoised_rollout": renoised_rollout_x0,
    "full_rollout": full_rollout_x0,
}
X0Source = Literal["last_step", "renoised_rollout", "full_rollout"]


def descend(role: str, learner: Learner, losses: Mapping[str, Tensor]) -> Logs:
    """Take one step of a network along the sum of its losses; no other network gets a gradient, whatever they touch.

    Return the losses and the norm of the gradient by name."""
    torch.stack([*losses.values()]).sum().backward(inputs=learner.parameters)
    return {name: loss.item() for name, loss in losses.items()} | {f"{role}_norm": learner.update()}


@config
class DmdConfig(StudentSampling):
    """Settings of the baseline."""

    sampler: SamplerConfig = SamplerConfig()
    guidance_scale: Guidance = 5.0  # of the teacher; 1 = off
    batch_size: Count = 32  # prompts per iteration and process
    fake_score_updates: Count = 2  # R, per student update
    share_rollout: bool = False  # the fake score trains on the student step's own samples where there are any
    x0_source: X0Source = "last_step"
    simulation: Simulation = "predictions"  # what the inputs of renoised_rollout are made of; final: its end
    normaliser: Normaliser = "x0_teacher"
    renoise: RenoiseLaw = RenoiseLaw()
    fake_score_renoise: RenoiseLaw = RenoiseLaw(kind="logit_normal")
    fake_score_loss: Prediction = "velocity"  # eps: as eps models are trained, and DMD2 its fake score on SDXL
    student: OptimiserConfig = OptimiserConfig(lr=1e-3, betas=(0.5, 0.99))
    fake_score: OptimiserConfig = OptimiserConfig(lr=2e-3, betas=(0.5, 0.99))
    ema: EmaConfig = EmaConfig()

    def __post_init__(self) -> None:
        if self.x0_source == "full_rollout" and self.sampler.cps_eta > 0:
            raise ValueError(
                'x0_source = "full_rollout" is deterministic: set sampler.sampler = "euler", or take another source'
            )
        if self.simulation == "final" and self.x0_source != "renoised_rollout":
            raise ValueError('simulation is of x0_source = "renoised_rollout": leave one of them out')
        check_simulation(self.simulation, self.sampler.cps_eta)


@register("dmd")
class Dmd(DistillationTrainer):
    """The baseline trainer: distribution matching alone."""

    Config = DmdConfig

    def __init__(
        self,
        config: DmdConfig,
        backbone: Backbone,
        rewards: RewardBank,
        world: World,
        *,
        extra: Mapping[str, Sequence[nn.Parameter]] | None = None,
    ) -> None:
        """extra: more parameters of "student" or "fake_score", trained by its optimiser."""
        super().__init__(config, backbone, world, config.student_protocol(backbone.protocol()), extra=extra)
        self.config = config

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Update the fake score, and at every R-th iteration the student."""
        c, networks, logs = self.config, self.roles.networks(prompts, self.config.guidance_scale), Logs()
        due = (iteration + 1) % c.fake_score_updates == 0
        # 1. Generate; with `share_rollout` one batch of samples serves both updates
        x0 = self.generate(networks, self.roles.noise(len(prompts)), grad=due and c.share_rollout)
        # 2. Keep the fake score on the student's present distribution
        logs |= descend("fake_score", self.roles.fake_score, self.fake_score_losses(networks, x0.detach(), prompts))
        # 3. Move the student's samples from where the fake score to where the teacher finds them likely
        if due:
            if not c.share_rollout:
                x0 = self.generate(networks, self.roles.noise(len(prompts)), grad=True)
            logs |= descend("student", self.roles.student, self.student_losses(networks, x0, prompts))
        self.roles.student.average(iteration)
        return logs

    def generate(self, networks: Networks, z: Tensor, grad: bool) -> Tensor:
        """Return the student's x0 [B, ...] of noise z, as `x0_source` says."""
        source, scale = X0_SOURCES[self.config.x0_source], self.roles.noise_scale(self._protocol)
        if self.config.x0_source == "renoised_rollout":
            source = partial(renoised_rollout_x0, simulation=self.config.simulation)
        return source(networks.student, z, self._protocol, self.roles.draws, grad, scale)

    def fake_score_losses(self, networks: Networks, x0: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the terms of step 2, weighted, of samples x0 [B, ...] without graph; methods with more add them."""
        c = self.config
        t, eps = self.roles.renoise(c.fake_score_renoise, x0)
        return {"fake_score_loss": fake_score_loss(x0, networks.fake_score, t, eps, c.fake_score_loss)}

    def student_losses(self, networks: Networks, x0: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the terms of step 3, weighted, of the student's samples x0 [B, ...]; methods with more add them."""
        t, eps = self.roles.renoise(self.config.renoise, x0)
        loss = student_loss(x0, networks.teacher, networks.fake_score, t, eps, self.config.normaliser)
        return {"dmd_loss": loss}
