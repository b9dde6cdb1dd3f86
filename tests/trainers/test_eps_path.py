"""Distillation of eps models end to end: the two-dimensional toys of the flow trainers, through the VP bridge."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from benchmarks.vp import VpPath
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone, shift_pull
from trainers.ac_dmd import AcDmdConfig
from trainers.backbones.base import Role
from trainers.base import Roles, RolesTrainer, SamplerConfig, World
from trainers.discriminator import Discriminator, GanConfig
from trainers.dmd import Dmd, DmdConfig, fake_score_loss
from trainers.dmdr import Dmdr, DmdrConfig
from trainers.dp_dmd import DpDmd, DpDmdConfig
from trainers.dpo import Dpo, DpoConfig, DpoTerm, dpo_loss
from trainers.draws import Draws
from trainers.dynamic import DynaDgConfig, DynaRsConfig
from trainers.first_step import FirstStepConfig
from trainers.flow import Prediction, RenoiseLaw
from trainers.group_rollout import roll_out_groups
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.refl import Refl, ReflConfig, ReflTerm, self_pretrain_loss
from trainers.reinforce import ReinforceConfig
from trainers.rewards import RewardBank, RewardConfig
from trainers.rollout import rollout
from trainers.rtdmd import ColdStartConfig, Rtdmd, RtdmdConfig
from trainers.tdm import Tdm, TdmConfig

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


class EpsPointBackbone(PointBackbone):
    """The two-dimensional backbone with every role an eps model on SDXL's noise table, the teacher in closed form."""

    def __init__(self, mean: tuple[float, float], spread: float) -> None:
        super().__init__(mean, spread)
        path = VpPath.of(SDXL)
        assert path is not None
        self.path, self.spread = path, spread

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: int,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        self.passes += len(x_t)
        level = torch.as_tensor(t, dtype=x_t.dtype).expand(len(x_t), 1)
        seen, timestep = self.path.model_input(x_t, level), self.path.timestep(level)
        if role == "teacher":
            a, b = (
                table[timestep].to(x_t) for table in (self.path.alpha_bar.sqrt(), (1 - self.path.alpha_bar).sqrt())
            )
            eps = b * (seen - a * self._mean) / (a**2 * self.spread**2 + b**2)  # E[eps | x_t] of N(mean, spread^2)
        else:
            # like any teacher's copy it begins with x0 near the data: eps = x_t, and so x0 = (1 - b) / a x_t
            eps = seen + self.networks[role](seen, timestep / 1000)
        return self.path.velocity(eps, x_t, level)

    def noise_scale(self, t: float) -> float:
        return self.path.noise_scale(t)

    def level_at(self, share: Tensor) -> Tensor:
        return self.path.level_at(share)


class Noised:
    """Samples, noise and timesteps of SDXL's table, a and b [B, 1] and the levels t of flow that they are."""

    path = VpPath.of(SDXL)
    assert path is not None
    x0, other, eps = torch.randn(3, 64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    timestep = torch.linspace(1, 990, 64).long()
    a, b = path.alpha_bar[timestep].sqrt()[:, None], (1 - path.alpha_bar[timestep]).sqrt()[:, None]
    t = b / (a + b)

    @staticmethod
    def unet(x_vp: Tensor, gain: float = 0.7) -> Tensor:
        return gain * x_vp + torch.sin(3 * x_vp)

    @classmethod
    def velocity(cls, gain: float = 0.7) -> Callable[[Tensor, Level], Tensor]:
        """Return the UNet as trainers see it."""
        return lambda x, t: cls.path.velocity(cls.unet(cls.path.model_input(x, t), gain), x, t)

    @classmethod
    def error(cls, x0: Tensor, gain: float = 0.7) -> Tensor:
        """Return eps_hat - eps of the UNet on its own path."""
        return cls.unet(cls.a * x0 + cls.b * cls.eps, gain) - cls.eps


def test_the_fake_scores_loss_in_eps_is_the_unets_own() -> None:
    """What DMD2 trains on SDXL, mean (eps_hat - eps)^2 of the UNet's output, written out on the VP path."""
    n, error = Noised, Noised.error(Noised.x0)
    loss = fake_score_loss(n.x0, n.velocity(), n.t, n.eps, "eps")
    assert loss.item() == pytest.approx(error.square().mean().item(), rel=1e-9)
    weighted = (error / (1 - n.t)).square().mean()
    assert fake_score_loss(n.x0, n.velocity(), n.t, n.eps).item() == pytest.approx(weighted.item(), rel=1e-9)


def test_the_regulariser_in_eps_is_the_loss_that_the_unet_was_trained_by() -> None:
    """The reference makes x0 = 3 of everything; the law draws timesteps."""
    n = Noised
    protocol = SamplerConfig(sampler="euler", num_inference_steps=2).protocol(Protocol())
    draws, law, z = Draws(0), RenoiseLaw(low=0.0, high=1.0, on="timesteps"), torch.zeros(256, 1).double()
    t, eps = law.draw(z, Draws(0), n.path.level_at)
    a, b = (1 - t) / ((1 - t) ** 2 + t**2).sqrt(), t / ((1 - t) ** 2 + t**2).sqrt()
    own = (n.unet(3 * a + b * eps) - eps).square().mean().item()
    reference = lambda x, t: (x - 3) / t  # noqa: E731
    loss = self_pretrain_loss(n.velocity(), reference, z, protocol, draws, law, n.path.level_at, "eps")
    assert loss.item() == pytest.approx(own, rel=1e-9)


@pytest.mark.parametrize("of", ["eps", "velocity"])
def test_dpo_in_eps_compares_the_unets_own_errors(of: Prediction) -> None:
    """Diffusion-DPO's Eq. 14 on the VP path; in velocity every error is weighed by 1 / (1 - t)^2."""
    n, beta, weight = Noised, 7.0, 1.0 if of == "eps" else 1 / (1 - Noised.t)

    def error(x0: Tensor, gain: float) -> Tensor:
        return (n.error(x0, gain) * weight).square().mean(dim=1)

    delta = error(n.x0, 0.7) - error(n.x0, 0.5) - error(n.other, 0.7) + error(n.other, 0.5)
    expected = torch.log1p(torch.exp(beta / 2 * delta)).mean()
    loss = dpo_loss(n.velocity(0.7), n.velocity(0.5), n.x0, n.other, n.t, n.eps, beta, of)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


NARROW = RenoiseLaw(low=0.4999, high=0.5001)
METHODS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "dmd": (Dmd, DmdConfig, {"fake_score_renoise": NARROW}),
    "dp_dmd": (DpDmd, DpDmdConfig, {"fake_score_renoise": NARROW}),
    "dmdr": (Dmdr, DmdrConfig, {"dynars": DynaRsConfig(kind="fixed", alpha=1e7, beta=1e7)}),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_its_fake_score_on_eps_where_it_is_asked_to(method: str) -> None:
    """At t = 1/2 the loss in eps is a quarter of that in v."""
    trainer, config, settings = METHODS[method]
    losses = []
    for of in ("velocity", "eps"):
        torch.manual_seed(0)
        backbone = PointBackbone((1.0, -0.5), 0.5)
        one = trainer(
            config(guidance_scale=1.0, fake_score_loss=of, **settings), backbone, RewardBank([], {}), World()
        )
        prompts = [Prompt(text=str(n)) for n in range(one.prompts_per_step)]
        losses.append(one.step(prompts, 0)["fake_score_loss"])
    assert losses[1] == pytest.approx(losses[0] / 4, rel=2e-3) and losses[0] > 0.1


JOINT_RL = {"phase": "rl_only", "batch_size": 64}
RL_LOSSES: dict[str, tuple[str, Callable[[Prediction], tuple[type, Any]]]] = {
    "refl": ("regulariser_loss", lambda of: (Refl, ReflConfig(refl=regularised(of)))),
    "dmdr, refl": ("regulariser_loss", lambda of: (Dmdr, DmdrConfig(**JOINT_RL, rl="refl", refl=regularised(of)))),
    "dpo": ("student_norm", lambda of: (Dpo, DpoConfig(dpo=DpoTerm(groups=64, loss=of, renoise=NARROW)))),
    "dmdr, dpo": ("student_norm", lambda of: (Dmdr, DmdrConfig(
        **JOINT_RL, rl="dpo", dpo=DpoTerm(groups=64, loss=of, renoise=NARROW)
    ))),
}  # fmt: skip


def regularised(of: Prediction) -> ReflTerm:
    return ReflTerm(regulariser="self_pretrain", regulariser_renoise=NARROW, regulariser_loss=of)


@pytest.mark.parametrize("method", RL_LOSSES)
def test_rewards_own_regularisers_are_of_eps_where_they_are_asked_to(method: str) -> None:
    """At t = 1/2 errors in eps are a quarter of those in v, and at the reference so is the gradient of DPO."""
    name, make = RL_LOSSES[method]
    found = []
    for of in get_args(Prediction):
        torch.manual_seed(0)
        kind, settings = make(of)
        metric = FirstCoordinate("x1", 0, True)
        one = kind(
            settings, PointBackbone((1.0, -0.5), 0.5), RewardBank([RewardConfig(id="x1")], {"x1": metric}), World()
        )
        found.append(one.step([Prompt(text=str(n)) for n in range(one.prompts_per_step)], 0)[name])
    assert found[1] == pytest.approx(found[0] / 4, rel=2e-3) and found[0] > 0.1


class WatchedBackbone(EpsPointBackbone):
    """Remembers (timestep, spread of the input) of every call of the student, and the timesteps of all roles."""

    def __init__(self) -> None:
        super().__init__((1.0, -0.5), 0.5)
        self.shown: list[tuple[int, float]] = []
        self.asked: dict[str, set[int]] = {}

    def velocity(self, role: Role, x_t: Tensor, t: Level, *rest: Any, **options: Any) -> Tensor:
        level = torch.as_tensor(t).flatten()[0]
        self.asked.setdefault(role, set()).add(int(self.path.timestep(level)))
        if role == "student":
            self.shown.append((int(self.path.timestep(level)), self.path.model_input(x_t, level).std().item()))
        return super().velocity(role, x_t, t, *rest, **options)


ONE_STEP = SamplerConfig(sampler="euler", num_inference_steps=1, sigmas=(0.5372,))
ANCHORED = FirstStepConfig(weight=0.1, k_anchor=1, sigmas=(0.2,))
STARTS: dict[str, Callable[[WatchedBackbone], RolesTrainer]] = {
    source: lambda backbone, source=source: Dmd(  # type: ignore[misc]
        DmdConfig(sampler=ONE_STEP, batch_size=512, fake_score_updates=1, x0_source=source),
        backbone, RewardBank([], {}), World(),
    )
    for source in ("last_step", "renoised_rollout", "full_rollout")
} | {
    "dmdr": lambda backbone: Dmdr(
        DmdrConfig(
            sampler=ONE_STEP, batch_size=512, fake_score_updates=1, fake_scale=1.0, dynadg=DynaDgConfig(kind="off"),
            dp_first_step=ANCHORED,
        ),
        backbone, RewardBank([], {}), World(),
    ),
    "dp_dmd": lambda backbone: DpDmd(
        DpDmdConfig(
            sampler=ONE_STEP, student_schedule="explicit_shift", batch_size=512, fake_score_updates=1,
            detach_after_first=False, first_step=FirstStepConfig(weight=0.0),
        ),
        backbone, RewardBank([], {}), World(),
    ),
    "tdm": lambda backbone: Tdm(
        TdmConfig(sampler=ONE_STEP, batch_size=512), backbone, RewardBank([], {}), World(),
    ),
    "rtdmd": lambda backbone: Rtdmd(
        RtdmdConfig(
            sampler=ONE_STEP, cold_start=ColdStartConfig(batch_size=512, fake_score_updates=1), dp_first_step=ANCHORED
        ),
        backbone, RewardBank([], {}), World(),
    ),
    "rtdmd II": lambda backbone: Rtdmd(
        RtdmdConfig(
            phase="reinforce", sampler=ONE_STEP, dp_first_step=ANCHORED,
            reinforce=ReinforceConfig(groups=512, group_size=2, rl="none", det_term=False),
        ),
        backbone, RewardBank([], {}), World(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", STARTS)
def test_a_one_step_student_is_trained_on_unit_noise_at_its_own_timestep(method: str) -> None:
    torch.manual_seed(0)
    backbone = WatchedBackbone()
    trainer = STARTS[method](backbone)
    for iteration in range(2):
        trainer.step([Prompt(text=str(n)) for n in range(512)], iteration)  # type: ignore[attr-defined]
    assert {timestep for timestep, _ in backbone.shown} == {399} and len(backbone.shown) >= 2
    assert [spread for _, spread in backbone.shown] == pytest.approx([1.0] * len(backbone.shown), abs=0.1)


HALFWAY = RenoiseLaw(low=0.49999, high=0.50001, on="timesteps")
SHARE = DynaRsConfig(kind="fixed", alpha=1e9, beta=1e9, on="timesteps")
DMDR = DmdrConfig(
    sampler=ONE_STEP, fake_score_updates=1, fake_scale=1.0, dynadg=DynaDgConfig(kind="off"), dynars=SHARE
)
REFL = ReflTerm(regulariser="self_pretrain", regulariser_renoise=HALFWAY)
# what draws levels by a law: (trainer's class, its settings, the roles that the law's levels are for)
LAWS: dict[str, tuple[type, Any, tuple[str, ...]]] = {
    "dmd": (Dmd, DmdConfig(sampler=ONE_STEP, fake_score_updates=1, renoise=HALFWAY, fake_score_renoise=HALFWAY),
            ("teacher", "fake_score")),
    "dp_dmd": (DpDmd, DpDmdConfig(
        sampler=ONE_STEP, student_schedule="explicit_shift", detach_after_first=False, fake_score_updates=1,
        first_step=FirstStepConfig(weight=0.0), renoise=HALFWAY, fake_score_renoise=HALFWAY,
    ), ("teacher", "fake_score")),
    "dmdr": (Dmdr, DMDR, ("teacher", "fake_score")),
    "dmdr, dpo": (Dmdr, replace(DMDR, phase="rl_only", rl="dpo", dpo=DpoTerm(renoise=HALFWAY)), ("reference",)),
    "refl": (Refl, ReflConfig(sampler=ONE_STEP, refl=REFL), ("student",)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_laws_on_timesteps_show_every_network_the_timestep_that_they_draw(name: str) -> None:
    """Half of 1000 is timestep 500, where level 1/2 would be timestep 354."""
    torch.manual_seed(0)
    kind, settings, roles = LAWS[name]
    backbone, metric = WatchedBackbone(), FirstCoordinate("x1", 0, True)
    trainer = kind(settings, backbone, RewardBank([RewardConfig(id="x1")], {"x1": metric}), World())
    for iteration in range(3):
        trainer.step([Prompt(text=str(n)) for n in range(trainer.prompts_per_step)], iteration)
    assert int(backbone.path.timestep(0.5)) == 354
    for role in roles:
        own = {399} if role == "student" else set()  # of the student's sampler
        assert backbone.asked[role] == own | {500}


def test_the_discriminator_sees_samples_at_the_timestep_that_its_law_draws() -> None:
    backbone, seen = WatchedBackbone(), list[Tensor]()
    discriminator = Discriminator(backbone, GanConfig(renoise=HALFWAY), 0)  # type: ignore[arg-type]
    features = backbone.features
    backbone.features = lambda role, x_t, t, prompts: (seen.append(t), features(role, x_t, t, prompts))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    discriminator(torch.zeros(8, 2), [Prompt(text=str(n)) for n in range(8)], Draws(0))
    assert backbone.path.timestep(seen[0]).unique().tolist() == [500]


def test_groups_of_a_one_step_student_begin_with_unit_noise() -> None:
    backbone = WatchedBackbone()
    roles = Roles(backbone, OptimiserConfig(), None, EmaConfig(), World())
    protocol = ONE_STEP.protocol(backbone.protocol())
    roll_out_groups(roles, RewardBank([], {}), [Prompt(text=str(n)) for n in range(64)], 8, protocol)
    assert backbone.shown == [(399, pytest.approx(1.0, abs=0.1))]


def test_an_eps_student_learns_an_eps_teachers_gaussian() -> None:
    torch.manual_seed(0)
    backbone = EpsPointBackbone((1.0, -0.5), 0.5)
    law = RenoiseLaw(low=0.03, high=0.9)
    config = DmdConfig(
        sampler=SamplerConfig(num_inference_steps=1), batch_size=256, guidance_scale=1.0, normaliser="none",
        fake_score_updates=1, share_rollout=True, ema=EmaConfig(decay=0.99), renoise=law, fake_score_renoise=law,
        student=OptimiserConfig(lr=2e-4, betas=(0.5, 0.99), max_grad_norm=0.0),
        fake_score=OptimiserConfig(lr=2e-3, betas=(0.5, 0.99), max_grad_norm=0.0),
    )  # fmt: skip
    trainer = Dmd(config, backbone, RewardBank([], {}), World(seed=0))  # type: ignore[arg-type]
    prompts = [Prompt(text=str(n)) for n in range(config.batch_size)]
    for iteration in range(1500):
        trainer.step(prompts, iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        x = torch.randn(20_000, 2)
        student = lambda x, t: backbone.velocity("student", x, t, len(x))  # noqa: E731
        points = rollout(student, x, trainer.protocol(), lambda k: torch.randn_like(x))[-1].x0
    assert (points.mean(dim=0) - torch.tensor([1.0, -0.5])).abs().max() < 0.05
    covariance = points.T.cov()
    assert covariance.diagonal().tolist() == pytest.approx([0.25, 0.25], rel=0.1)
    assert abs(covariance[0, 1]) < 0.025


def test_reward_tilt_shifts_an_eps_students_gaussian_by_its_closed_form() -> None:
    """RTDMD's balance of direct term and distribution matching (test_rtdmd), by eps models from timestep 399."""
    torch.manual_seed(0)
    tau, beta, high = 0.5, 2.0, 0.9
    backbone = EpsPointBackbone((0.0, 0.0), tau)
    rate = OptimiserConfig(lr=1e-3, betas=(0.5, 0.99), max_grad_norm=0.0)
    config = RtdmdConfig(
        phase="reinforce", sampler=ONE_STEP, guidance_scale=1.0, student=rate, fake_score=replace(rate, lr=5e-3),
        reinforce=ReinforceConfig(
            groups=32, group_size=8, rl="none", dm_weight=1.0, det_margin=100.0,
            det_weight=beta * tau**2 * shift_pull(tau, high=high) / 2,
        ),
        ac_dmd=AcDmdConfig(normaliser="none", gamma=0.0, high=high), ema=EmaConfig(decay=0.99),
    )  # fmt: skip
    rewards = RewardBank([RewardConfig(id="x1")], {"x1": FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]
    trainer = Rtdmd(config, backbone, rewards, World(seed=0))
    for iteration in range(500):
        trainer.step([Prompt(text=str(n)) for n in range(32)], iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        x = trainer.roles.start(20_000, trainer.protocol())
        student = lambda x, t: backbone.velocity("student", x, t, len(x))  # noqa: E731
        points = rollout(student, x, trainer.protocol(), lambda k: x)[-1].x_next
    assert points.mean(dim=0)[0].item() == pytest.approx(beta * tau**2, rel=0.15)
    assert abs(points.mean(dim=0)[1]) < 0.15 * beta * tau**2
    assert points.std(dim=0).tolist() == pytest.approx([tau, tau], rel=0.15)


def test_the_teachers_own_sampling_ends_in_its_gaussian() -> None:
    backbone = EpsPointBackbone((1.0, -0.5), 0.5)
    protocol = SamplerConfig(sampler="euler", num_inference_steps=100).protocol(backbone.protocol())
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    teacher = lambda x, t: backbone.velocity("teacher", x, t, len(x))  # noqa: E731
    with torch.no_grad():
        points = rollout(teacher, x, protocol, lambda k: x)[-1].x_next
    assert (points.mean(dim=0) - torch.tensor([1.0, -0.5])).abs().max() < 0.05
    assert points.std(dim=0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)
