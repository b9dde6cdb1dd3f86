"""TDM: the noise that its score networks see, both losses against their formulas, and where they lead."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone, gaussian_velocity
from trainers.backbones.base import BackboneConfig, LoraConfig, Role, load
from trainers.base import SamplerConfig, World
from trainers.draws import Draws
from trainers.flow import guided, interpolate, x0_from_v
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.rollout import rollout
from trainers.tdm import Stretch, Tdm, TdmConfig, draw_stretch, fake_score_loss, student_loss

PROMPTS = [Prompt(text=str(n)) for n in range(64)]
LEVELS = (1.0, 0.75, 0.5, 0.25)
EULER = SamplerConfig(sampler="euler", sigmas=LEVELS)
NO_REWARD = RewardBank([], {})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trainer_of(seed: int = 0, **settings: Any) -> tuple[PointBackbone, Tdm]:
    torch.manual_seed(seed)
    backbone = PointBackbone((1.0, -0.5), 0.5)
    config = TdmConfig(**{"sampler": EULER, "guidance_scale": 1.0, "batch_size": 8, **settings})
    return backbone, Tdm(config, backbone, NO_REWARD, World(seed))


def stretch(x_i: Tensor, t_i: float, t_m: float, t: float, noise: Tensor) -> Stretch:
    t_i_B1, t_m_B1, t_B1 = (torch.full((len(x_i), 1), level, dtype=x_i.dtype) for level in (t_i, t_m, t))
    return Stretch(x_i, t_i_B1, t_m_B1, t_B1, noise)


@pytest.mark.parametrize(("t_i", "t_m", "t"), [(0.75, 0.5, 0.6), (0.25, 0.0, 0.1), (1.0, 0.75, 0.99)])
def test_all_the_noise_of_x_t_is_one_draw(t_i: float, t_m: float, t: float) -> None:
    x_i, v, noise = draw(3, 6, 4)
    at = stretch(x_i, t_i, t_m, t, noise)
    x_t, n_mix = at.noised(v)
    x0 = x0_from_v(x_i, v, t_i)
    assert torch.allclose(x_t, interpolate(x0, n_mix, t), rtol=0, atol=1e-12)
    if t_m == 0:  # nothing of the trajectory's own noise is left
        assert torch.allclose(n_mix, noise, rtol=0, atol=1e-12)


def test_noise_keeps_the_marginals_of_the_path() -> None:
    """Data N(0, 1/4) and its own velocity: x_m has the marginal of level t_m, x_t that of level t."""
    n, tau, t_i, t_m, t = 400_000, 0.5, 0.75, 0.5, 0.65
    x0, eps, noise = draw(3, n, 1)
    x_i = interpolate(tau * x0, eps, t_i)
    at = stretch(x_i, t_i, t_m, t, noise)
    # the velocity that leads x_i along its own straight path, so that x_m is a sample of level t_m exactly
    x_t, _ = at.noised(eps - tau * x0)
    exact = (1 - t) ** 2 * tau**2 + t**2
    assert x_t.var().item() == pytest.approx(exact, rel=4 * (2 / n) ** 0.5)


def test_students_gradient_is_the_pseudo_huber_of_the_scores_difference() -> None:
    """d L / d x0 = d / sqrt(d^2 + c^2) / N / numel with d = x0_fake - x0_teacher; none of it through x_t."""
    x_i, v, noise = draw(3, 5, 3)
    v.requires_grad_()
    at, c = stretch(x_i, 0.75, 0.5, 0.6, noise), 0.1
    x_t, _ = at.noised(v)
    teacher, fake = gaussian_velocity(0.5, 0.4), gaussian_velocity(-0.2, 0.7)
    x0 = x0_from_v(x_i, v, 0.75)
    loss = student_loss(x0, x_t, at.t, teacher, fake, c)
    (gradient,) = torch.autograd.grad(loss, v)
    with torch.no_grad():
        x0_teacher, x0_fake = x0_from_v(x_t, teacher(x_t, 0.6), 0.6), x0_from_v(x_t, fake(x_t, 0.6), 0.6)
        d = x0_fake - x0_teacher
        scale = (x0 - x0_teacher).abs().mean(dim=1, keepdim=True)
    expected = d / (d**2 + c**2).sqrt() / scale / d.numel()
    assert torch.allclose(gradient, -0.75 * expected, rtol=1e-9)  # x0 = x_i - t_i v
    assert loss.item() == pytest.approx((((d**2 + c**2).sqrt() - c) / scale).mean().item(), rel=1e-9)


def test_guidance_of_the_teacher_is_the_demos_target() -> None:
    """x0 + (x0_T - x0_F) + (w - 1)(x0_T - x0_T,uncond) is x0 + x0_T,guided - x0_F."""
    (x_t, x0), w, t = draw(2, 5, 3), 4.5, 0.6
    conditional, unconditional, fake = (gaussian_velocity(mu, 0.5) for mu in (0.4, -0.1, 0.2))

    def teacher(x: Tensor, level: Level) -> Tensor:
        return guided(unconditional(x, level), conditional(x, level), w)

    found = torch.autograd.functional.jacobian(
        lambda x: student_loss(x, x_t, torch.tensor(t), teacher, fake, 1e6), x0
    )
    x0_T, x0_U, x0_F = (x0_from_v(x_t, v(x_t, t), t) for v in (conditional, unconditional, fake))
    target = x0 + (x0_T - x0_F) + (w - 1) * (x0_T - x0_U)
    scale = (x0 - (x0_U + w * (x0_T - x0_U))).abs().mean(dim=1, keepdim=True)
    assert torch.allclose(found * 1e6 * x0.numel(), (x0 - target) / scale, rtol=1e-6)  # c far above d: a square


@pytest.mark.parametrize(("t", "snr"), [(0.5, 1.0), (0.9, (0.1 / 0.9) ** 2), (0.1, 5.0)])
@pytest.mark.parametrize("importance", [True, False])
def test_fake_score_is_weighed_by_signal_and_likelihood(t: float, snr: float, importance: bool) -> None:
    x0, noise, n_mix = draw(3, 4, 3)
    x_t = interpolate(x0, n_mix, t)
    level = torch.full((4, 1), t, dtype=x0.dtype)
    config = TdmConfig(importance=importance)
    found = fake_score_loss(x0, x_t, level, noise, n_mix, lambda x, at: torch.zeros_like(x), config)
    by_sample = ((x_t - x0) ** 2).mean(dim=1) * snr
    if importance:
        likely = [(-(n**2).mean(dim=1) / 2).exp() for n in (n_mix, noise)]
        by_sample = by_sample * likely[0] / likely[1]
    assert found.item() == pytest.approx(by_sample.mean().item(), rel=1e-9)


@pytest.mark.parametrize("random_end", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_levels_lie_on_the_step_that_was_drawn(random_end: bool, separate: bool) -> None:
    backbone, trainer = trainer_of(separate=separate, random_end=random_end)
    student = partial(backbone.velocity, "student", prompts=4000)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        steps = rollout(student, z, trainer.protocol(), lambda _: z)
    at, v = draw_stretch(steps, trainer.config, Draws(0))
    starts, ends = torch.tensor(LEVELS), torch.tensor((*LEVELS[1:], 0.0))
    i_B = (at.t_i == starts).int().argmax(dim=1)
    assert torch.bincount(i_B, minlength=4).min() > 900  # every step equally often
    assert all(torch.equal(at.x[i_B == i], steps[i].x_t[i_B == i]) for i in range(4))
    assert all(torch.equal(v[i_B == i], steps[i].v[i_B == i]) for i in range(4))
    t_i, t_end, t_m, t = at.t_i[:, 0], ends[i_B], at.t_m[:, 0], at.t[:, 0]
    assert (t_m >= t_end).all() and (random_end or torch.equal(t_m, t_end))
    assert (t_m <= t_i - 0.02 + 1e-6).all()
    assert (t >= t_m.clamp(min=0.02)).all() and t.min() < 0.03
    assert (t <= (t_i - 0.01 if separate else torch.tensor(0.99)) + 1e-6).all()
    assert ((t > t_i).any()) != separate


def test_each_network_learns_from_its_own_loss_alone() -> None:
    backbone, trainer = trainer_of()
    for role in (trainer.roles.student, trainer.roles.fake_score):
        role.update = lambda: 0.0  # type: ignore[method-assign]
    calls: list[str] = []
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: calls.append(role) or velocity(role, *a, **k)  # type: ignore
    logs = trainer.step(PROMPTS[:8], 0)
    # the velocity of a step is known where its trajectory was run: the fake score's update asks no student
    assert calls == ["student"] * 4 + ["fake_score"] + ["student", "teacher", "fake_score"]
    assert {*logs} == {"fake_score_loss", "fake_score_norm", "tdm_loss", "student_norm"}
    assert all(p.grad is not None for role in ("student", "fake_score") for p in backbone.parameters(role))


def test_the_student_is_asked_again_where_its_own_sampler_asks_it() -> None:
    backbone, trainer = trainer_of(student=OptimiserConfig(lr=1e-9))
    asked: list[tuple[Tensor, Level]] = []
    velocity = backbone.velocity

    def watched(role: Role, x: Tensor, t: Level, *rest: Any, **options: Any) -> Tensor:
        if role == "student":
            asked.append((x, t))
        return velocity(role, x, t, *rest, **options)

    backbone.velocity = watched  # type: ignore[assignment,method-assign]
    trainer.step(PROMPTS[:8], 0)
    *own, (x, t) = asked
    assert [at for _, at in own] == [*LEVELS] and isinstance(t, Tensor)
    for row, level in enumerate(t.flatten().tolist()):
        assert torch.equal(x[row], own[LEVELS.index(level)][0][row])


def test_where_both_scores_agree_the_student_stays() -> None:
    backbone, trainer = trainer_of(student=OptimiserConfig(lr=1e-2))
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: velocity("teacher" if role == "fake_score" else role, *a, **k)  # type: ignore
    trainer.roles.fake_score.update = lambda: 0.0  # type: ignore[method-assign]
    before = [p.detach().clone() for p in backbone.parameters("student")]
    networks = trainer.roles.networks(PROMPTS[:8], 1.0)
    z = trainer.roles.start(8, trainer.protocol())
    steps = rollout(networks.student, z, trainer.protocol(), lambda _: z)
    assert trainer._update_student(networks, steps)["tdm_loss"] == 0
    assert all(torch.equal(p, was) for p, was in zip(backbone.parameters("student"), before, strict=True))


@pytest.mark.parametrize("separate", [True, False])
def test_student_reaches_the_teachers_distribution(separate: bool) -> None:
    # the student's gradient hardly shrinks near the end (pseudo-Huber): its scores must be ahead of it, as the demo's
    student, fake = (OptimiserConfig(lr=lr, betas=(0.5, 0.99)) for lr in (1e-3, 5e-3))
    backbone, trainer = trainer_of(
        batch_size=64, student=student, fake_score=fake, separate=separate, ema=EmaConfig(decay=0.98)
    )
    for iteration in range(1200):
        trainer.step(PROMPTS, iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(5))
        for t, t_next in zip(LEVELS, (*LEVELS[1:], 0.0), strict=True):
            z = z + (t_next - t) * backbone.networks["student"](z, t)
            # At the end of every step, too; where steps share levels, one fake score serves several distributions
            if separate or t_next == 0:
                exact = ((1 - t_next) ** 2 * 0.25 + t_next**2) ** 0.5
                assert z.mean(dim=0).tolist() == pytest.approx([1 - t_next, -0.5 * (1 - t_next)], abs=0.1)
                assert z.std(dim=0).tolist() == pytest.approx([exact, exact], rel=0.25)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sampler": {"sampler": "cps"}}, "the trajectory is deterministic"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1, not 0"),
        ({"low": 0.99}, "low, high and gap must satisfy"),
        ({"high": 0.5}, "high is where t ends with separate = false: set that, or leave high out"),
        ({"huber_c": 0.0}, "huber_c and max_snr must be above 0"),
        ({"huber": 0.1}, "unknown key 'huber'"),
    ],
)
def test_contradictory_settings_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(TdmConfig, table, "x.toml")


@pytest.mark.parametrize(
    ("last", "settings"), [(0.03, {}), (0.035, {"random_end": True}), (0.25, {"low": 0.245}), (0.745, {"gap": 0.01})]
)
def test_steps_without_room_for_a_level_are_named(last: float, settings: dict[str, Any]) -> None:
    sampler = SamplerConfig(sampler="euler", num_inference_steps=3, sigmas=(1.0, 0.75, last))
    with pytest.raises(UserError, match=r"the step from level 0.\d+ to [\d.]+ is too short for trainer.low = "):
        trainer_of(sampler=sampler, **settings)


@pytest.mark.parametrize(
    ("high", "random_end", "highest"), [(0.75, False, "0.75"), (0.6, False, "0.75"), (0.98, True, "0.98")]
)
def test_levels_that_end_above_t_are_named(high: float, random_end: bool, highest: str) -> None:
    """Noising leads upwards: from a t_m of .75 there is no way to a t of .6."""
    sampler = SamplerConfig(sampler="euler", num_inference_steps=2, sigmas=(1.0, 0.75))
    told = rf"trainer.high = {high}: the step from level 1 ends at up to {highest}, above which t is to lie"
    with pytest.raises(UserError, match=told):
        trainer_of(sampler=sampler, separate=False, high=high, random_end=random_end)
    trainer_of(sampler=sampler, separate=False, high=0.985, random_end=random_end)


def test_resume_is_bit_exact(pipeline_folder: Any, prompts: list[Prompt]) -> None:
    def tiny() -> Tdm:
        torch.manual_seed(0)
        backbone = load(
            BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4)), torch.device("cpu")
        )
        return Tdm(TdmConfig(batch_size=2), backbone, NO_REWARD, World())

    whole, first, second = tiny(), tiny(), tiny()
    logs = [whole.step(prompts[:2], iteration) for iteration in range(4)]
    assert [first.step(prompts[:2], iteration) for iteration in range(2)] == logs[:2]
    second.load_state_dict(first.state_dict())
    assert [second.step(prompts[:2], iteration) for iteration in (2, 3)] == logs[2:]
