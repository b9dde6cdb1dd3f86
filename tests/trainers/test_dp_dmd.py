"""DP-DMD: which step learns from which loss, how often each network is updated, and where that leads."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError, build
from benchmarks.samplers import Level, sigma_grid
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.base import SamplerConfig, World
from trainers.dp_dmd import DpDmd, DpDmdConfig
from trainers.first_step import FirstStepConfig, teacher_anchor
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank

PROMPTS = [Prompt(text=str(n)) for n in range(64)]
RATE = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)
LEVELS = (1.0, 0.75, 0.5, 0.25)
EULER = SamplerConfig(sampler="euler", sigmas=LEVELS)
NO_REWARD = RewardBank([], {})


class Stepwise(nn.Module):
    """A student with one parameter per step, v = p_k + x / 2: what step k learns shows in p_k alone."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.ParameterList(nn.Parameter(0.1 * torch.ones(2)) for _ in LEVELS)

    def forward(self, x: Tensor, t: Level) -> Tensor:
        return self.p[LEVELS.index(float(t))].expand(len(x), 2) + x / 2


def trainer_of(seed: int = 0, *, stepwise: bool = False, **settings: Any) -> tuple[PointBackbone, DpDmd]:
    torch.manual_seed(seed)
    backbone = PointBackbone((1.0, -0.5), 0.5)
    if stepwise:
        backbone.networks["student"] = Stepwise()  # type: ignore[assignment]
    fixed = {"sampler": EULER, "student_schedule": "explicit_shift", "guidance_scale": 1.0, "batch_size": 8}
    config = DpDmdConfig(**{**fixed, "student": RATE, "fake_score": RATE, **settings})
    return backbone, DpDmd(config, backbone, NO_REWARD, World(seed))


def step_gradients(**settings: Any) -> list[Tensor | None]:
    """Return the gradient of each step's own parameter in one update of the student."""
    backbone, trainer = trainer_of(stepwise=True, fake_score_updates=1, **settings)
    found: list[Tensor | None] = []
    trainer.roles.student.update = lambda: (  # type: ignore[method-assign]
        found.extend(p.grad for p in backbone.networks["student"].parameters()) or 0.0
    )
    trainer.step(PROMPTS[:8], 1)
    return found


DIVERSITY = FirstStepConfig(weight=0.05)
OFF = FirstStepConfig()


def is_zero(gradient: Tensor | None) -> bool:
    return gradient is None or not gradient.any()


def test_each_step_learns_from_its_own_loss_alone() -> None:
    both, matching = step_gradients(first_step=DIVERSITY), step_gradients(first_step=OFF)
    assert is_zero(matching[0])  # distribution matching does not reach the first step
    assert all(not is_zero(g) for g in both) and all(not is_zero(g) for g in matching[1:])
    for with_first, without in zip(both[1:], matching[1:], strict=True):  # nor the first-step loss the later ones
        assert with_first is not None and without is not None and torch.equal(with_first, without)


def test_the_first_steps_gradient_is_lambda_times_the_mean_square_to_the_anchor() -> None:
    (one, *_), (two, *_) = (
        step_gradients(first_step=DIVERSITY),
        step_gradients(first_step=FirstStepConfig(weight=0.1)),
    )
    assert one is not None and two is not None and torch.allclose(two, 2 * one)


def test_the_first_step_is_held_to_the_teachers_trajectory_from_its_own_noise() -> None:
    backbone, trainer = trainer_of(stepwise=True, fake_score_updates=1, first_step=DIVERSITY)
    drawn: list[Tensor] = []
    noise = trainer.roles.noise
    trainer.roles.noise = lambda count: drawn.append(noise(count)) or drawn[-1]  # type: ignore[method-assign,func-returns-value]
    logs = trainer.step(PROMPTS[:8], 1)
    (z,), levels = drawn, DIVERSITY.levels(1.0)
    z_a = teacher_anchor(partial(backbone.velocity, "teacher", prompts=8), z, levels)
    expected = ((0.1 + z / 2 - (z - z_a) / (1 - levels[-1])) ** 2).mean()
    assert logs["first_step_loss"] == pytest.approx(0.05 * expected.item(), rel=1e-5)


def test_without_the_cut_the_first_step_learns_from_distribution_matching_too() -> None:
    gradients = step_gradients(first_step=OFF, detach_after_first=False)
    assert all(not is_zero(g) for g in gradients)
    kept = step_gradients(first_step=OFF)
    for open_, cut in zip(gradients[1:], kept[1:], strict=True):
        assert open_ is not None and cut is not None and torch.equal(open_, cut)


def test_the_chain_carries_the_gradient_through_every_later_step() -> None:
    """x_K = x_1 + sum (t_k - t_{k-1}) v_k, v_k = p_k + x_{k-1} / 2: an earlier p_k acts through the later calls."""
    gradients = step_gradients(first_step=OFF)
    ratios = [gradients[k] / gradients[3] for k in (1, 2)]  # type: ignore[operator]
    decay = 1 - 0.25 / 2  # dx_k / dx_{k-1}
    assert torch.allclose(ratios[0], torch.full((2,), decay**2)) and torch.allclose(
        ratios[1], torch.full((2,), decay)
    )


def test_weight_zero_leaves_the_first_step_where_it_was() -> None:
    backbone, trainer = trainer_of(stepwise=True, fake_score_updates=1, first_step=OFF)
    first, *later = backbone.networks["student"].p  # type: ignore[misc]
    for iteration in range(4):
        logs = trainer.step(PROMPTS[:8], iteration)
    assert torch.equal(first.detach(), torch.full((2,), 0.1)) and "first_step_loss" not in logs
    assert all(not torch.equal(p.detach(), torch.full((2,), 0.1)) for p in later)


def test_five_updates_of_the_fake_score_before_each_of_the_student() -> None:
    _, trainer = trainer_of()
    names = [set(trainer.step(PROMPTS[:8], iteration)) for iteration in range(60)]
    student = [n + 1 for n, logs in enumerate(names) if "student_norm" in logs]
    assert student == list(range(6, 61, 6)) and trainer.roles.student.updates == 10
    assert trainer.roles.fake_score.updates == 50
    assert all(("fake_score_loss" in logs) != ("dmd_loss" in logs) for logs in names)


def test_neither_loss_reaches_teacher_or_fake_score() -> None:
    backbone, trainer = trainer_of(fake_score_updates=1)
    trainer.step(PROMPTS[:8], 0)
    trainer.roles.student.update = lambda: 0.0  # type: ignore[method-assign]
    trainer.step(PROMPTS[:8], 1)
    assert all(p.grad is None for p in backbone.parameters("fake_score"))


def test_passes_of_an_update_are_those_of_its_box() -> None:
    backbone, trainer = trainer_of(fake_score_updates=1, first_step=FirstStepConfig(weight=0.05, k_anchor=3))
    calls: list[str] = []
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: calls.append(role) or velocity(role, *a, **k)  # type: ignore
    trainer.step(PROMPTS[:8], 0)
    assert calls == ["student"] * 4 + ["fake_score"]
    calls.clear()
    trainer.step(PROMPTS[:8], 1)
    assert sorted(calls) == ["fake_score"] + ["student"] * 4 + ["teacher"] * (1 + 3)


def test_student_carries_the_double_shifted_levels() -> None:
    _, trainer = trainer_of(sampler=SamplerConfig(sampler="euler", shift=3.0), student_schedule="diffusers_n")
    assert sigma_grid(trainer.protocol()) == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=1e-4)
    assert trainer.protocol().sampler == "euler" and not trainer.protocol().guided


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sampler": {"num_inference_steps": 1}}, "detach_after_first leaves distribution matching no step"),
        ({"fake_score_updates": 0}, "fake_score_updates: Input should be greater than or equal to 1"),
        ({"sampler": {"sampler": "cps"}}, "the student runs a deterministic sampler"),
        ({"first_step": {"k_anchor": 31}}, "k_anchor must lie in"),
        ({"div_weight": 0.05}, "unknown key 'div_weight'"),
    ],
)
def test_contradictory_settings_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DpDmdConfig, table, "x.toml")


def test_levels_of_the_students_own_contradict_the_schedule() -> None:
    with pytest.raises(UserError, match=r"trainer.student_schedule"):
        trainer_of(student_schedule="diffusers_n")


def test_student_reaches_the_teachers_distribution() -> None:
    rate = OptimiserConfig(lr=5e-3)
    backbone, trainer = trainer_of(
        fake_score_updates=1, batch_size=64, student=rate, fake_score=rate, first_step=DIVERSITY,
        ema=EmaConfig(decay=0.98),
    )  # fmt: skip
    for iteration in range(1200):
        trainer.step(PROMPTS, iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(5))
        for t, t_next in zip(LEVELS, (*LEVELS[1:], 0.0), strict=True):
            z = z + (t_next - t) * backbone.networks["student"](z, t)
    assert z.mean(dim=0).tolist() == pytest.approx([1.0, -0.5], abs=0.1)
    assert z.std(dim=0).tolist() == pytest.approx([0.5, 0.5], rel=0.25)


def test_resume_is_bit_exact(pipeline_folder: Any, prompts: list[Prompt]) -> None:
    def tiny() -> DpDmd:
        torch.manual_seed(0)
        backbone = load(
            BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4)), torch.device("cpu")
        )
        first = FirstStepConfig(weight=0.05, k_anchor=2, teacher_steps=4)
        config = DpDmdConfig(batch_size=2, fake_score_updates=1, first_step=first)
        return DpDmd(config, backbone, NO_REWARD, World())

    whole, first, second = tiny(), tiny(), tiny()
    logs = [whole.step(prompts[:2], iteration) for iteration in range(4)]
    assert [first.step(prompts[:2], iteration) for iteration in range(2)] == logs[:2]
    second.load_state_dict(first.state_dict())
    assert [second.step(prompts[:2], iteration) for iteration in (2, 3)] == logs[2:]
