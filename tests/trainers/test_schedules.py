"""Levels laid by a rule of their own, and the one place where every method's student is given them."""

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.config import UserError, build
from benchmarks.protocol import Protocol
from benchmarks.samplers import sigma_grid
from trainers.backbones.base import BackboneConfig
from trainers.base import SamplerConfig, Trainer, World, available
from trainers.rehearsal import Rehearsal, rehearsed, rehearsed_rewards
from trainers.rewards import RewardConfig
from trainers.schedules import StudentSampling, laid_out, step_levels

DOUBLE_SHIFTED = [1, 0.8577, 0.6022, 0.0089, 0]  # of 4 steps at shift 3
METHODS = [name for name, kind in available().items() if kind.__module__ == f"trainers.{name}"]
NEEDED: dict[str, dict[str, Any]] = {
    "tdm": {"low": 0.001, "gap": 0.001},  # its levels lie within a step, and the last one is short
    "grpo": {"student_guidance": 4.5, "inference": {"num_inference_steps": 10, "shift": 3.0}},
    "refl": {"student_guidance": 4.5},
}


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_diffusers_n_is_the_stock_schedulers_grid(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert step_levels("diffusers_n", steps, shift) == pytest.approx(scheduler.sigmas.tolist()[:-1], abs=1e-6)


def test_explicit_shift_is_the_protocols_own_grid() -> None:
    protocol = Protocol(sampler="euler", num_inference_steps=4, shift=3.0)
    assert [*step_levels("explicit_shift", 4, 3.0), 0.0] == pytest.approx(sigma_grid(protocol))


def test_students_grid_is_carried_as_sigmas_and_levels_of_its_own_contradict_it() -> None:
    laid = laid_out(SamplerConfig(sampler="euler", shift=3.0), "diffusers_n").protocol(Protocol())
    assert sigma_grid(laid) == pytest.approx(DOUBLE_SHIFTED, abs=1e-4)
    own = SamplerConfig(sampler="euler", sigmas=(1.0, 0.75, 0.5, 0.25))
    assert laid_out(own, "explicit_shift") is own
    with pytest.raises(
        UserError, match=r'student_schedule = "diffusers_n" lays the levels .* sigmas of its own: .* "explicit_shift"'
    ):
        laid_out(own, "diffusers_n")


def student_of(method: str, table: dict[str, Any]) -> Trainer:
    """Return the method's trainer of these settings, on a base without networks."""
    kind = available()[method]
    rewards = rehearsed_rewards([RewardConfig(id="micro_clip")])
    backbone = Rehearsal(BackboneConfig(path=""), Protocol(num_inference_steps=28, guidance_scale=5.0))
    settings = build(kind.Config, NEEDED.get(method, {}) | table, method)
    with rehearsed(kind, settings, backbone, rewards, World()) as trainer:
        return trainer


@pytest.mark.parametrize("method", METHODS)
def test_the_student_of_any_method_is_given_the_double_shifted_levels(method: str) -> None:
    on = {"sampler": {"shift": 3.0}, "student_schedule": "diffusers_n"}
    levels = sigma_grid(student_of(method, on).protocol())
    wanted = [*step_levels("diffusers_n", 10, 3.0), 0.0] if method == "grpo" else DOUBLE_SHIFTED
    assert levels == pytest.approx(wanted, abs=1e-4)
    once = sigma_grid(student_of(method, on | {"student_schedule": "explicit_shift"}).protocol())
    assert once == pytest.approx([*step_levels("explicit_shift", len(levels) - 1, 3.0), 0.0])


def test_no_method_lays_its_students_levels_elsewhere() -> None:
    assert {"dmd", "dmd2", "dmd_gan", "dmd_lpips", "dmdr", "rtdmd", "dp_dmd", "tdm", "refl", "grpo", "dpo"} <= {
        *METHODS
    }
    assert {name for name in METHODS if not issubclass(available()[name].Config, StudentSampling)} == set()


def test_groups_are_rolled_out_on_the_double_shifted_levels_too() -> None:
    trainer = student_of("grpo", {"sampler": {"shift": 3.0}, "student_schedule": "diffusers_n"})
    assert sigma_grid(trainer._rollout) == pytest.approx(DOUBLE_SHIFTED, abs=1e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_that_is_none_is_refused_by_name(shift: float) -> None:
    with pytest.raises(UserError, match=r"x.toml: sampler: shift must be above 0"):
        build(available()["dp_dmd"].Config, {"sampler": {"sampler": "euler", "shift": shift}}, "x.toml")
