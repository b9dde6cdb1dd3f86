"""What every method asks of teacher, fake score and student in a step, and what it makes of the answers.

The expected values stand here, as the papers and their authors' codes have them: who is guided and by how much, at
which levels, about which prompts, with which graph, and by what the DMD gradient is divided.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import build
from metrics.base import Prompt
from tests.trainers.calls import (
    SAME,
    Asked,
    Call,
    RecordingBackbone,
    above,
    any_of,
    beta,
    check_calls,
    check_levels,
    logit_normal,
    uniform,
)  # fmt: skip
from tests.trainers.closed_form import FirstCoordinate
from trainers import dmd_lpips
from trainers.base import World, find
from trainers.rewards import RewardBank, RewardConfig

B = 512
TEXTS = tuple(str(n) for n in range(B))
GRID = (1.0, 0.75, 0.5, 0.25)  # four steps without shift
TWICE_SHIFTED = (1.0, 0.8577, 0.6022, 0.0089)  # diffusers' own grid: DP-DMD's student
ANCHOR = (1.0, 0.9883, 0.9760, 0.9631, 0.9495)  # its teacher's first 5 steps of 30
THIRDS = (1.0, 2 / 3, 1 / 3)
ONE_LEVEL = uniform(0.003, 1.0, shift=3.0)
GROUPS = tuple(text for text in TEXTS[: B // 8] for _ in range(8))  # 64 prompts, 8 images each
SPREAD = TEXTS[::8]  # 64 prompts of a larger batch
TWO_STEPS = {"weight": 0.1, "k_anchor": 2, "teacher_steps": 4, "schedule": "explicit_shift", "shift": 1.0}  # 1, 3/4
OWN_LAW = {"low": 0.3, "high": 0.4, "shift": 1.0, "per": "sample"}
STRETCHES = any_of(*(uniform(low, high) for low, high in ((0.02, 0.24), (0.25, 0.49), (0.5, 0.74), (0.75, 0.99))))
SAMPLES = {"count": B, "steps": 3, "schedule": "explicit_shift"}  # of the teacher, at the levels of THIRDS
JITTERED = pytest.approx(7.0, abs=0.5)


def student(*levels: float, **asked: Any) -> Asked:
    return Asked("student", levels, **asked)


def fake_score(at: Any, **asked: Any) -> Asked:
    return Asked("fake_score", at, graph=True, **asked)


def scores(law: Any, w: Any, s: Any = None, of_fake: Any = None, **asked: Any) -> tuple[Asked, Asked]:
    """The guided teacher, and the fake score about the same points."""
    return Asked("teacher", law, w=w, s=s, **asked), Asked("fake_score", SAME, s=of_fake, of=asked.get("of"))


def dmdr(law: Any, lean: float, *more: Asked) -> tuple[Asked, ...]:
    """DMDR's iteration: a rollout, the fake score at twice its adapter, the student, and both scores about it."""
    return (
        student(*GRID), fake_score(law, s=2.0), Asked("student", any_of(*GRID[::-1]), graph=True),
        *scores(law, w=JITTERED, s=pytest.approx(lean), of_fake=2.0), *more,
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A method's settings, and the calls of one of its iterations."""

    method: str
    table: dict[str, Any]
    asked: tuple[Asked, ...]
    iteration: int = 0
    k: int = 3  # the step that methods draw which train on one step of the student's sampler
    normaliser: str = ""  # what divides the DMD gradient
    weight: float = 1.0  # of the DMD loss


R1 = {"batch_size": B, "fake_score_updates": 1}
COLD = {"cold_start": {"batch_size": B, "fake_score_updates": 1}, "ac_dmd": {"gamma": 0.0}}
EPOCH = {
    "phase": "reinforce", "reinforce": {"groups": B // 8, "group_size": 8, "rl": "grpo"}, "ac_dmd": {"gamma": 0.0}
}  # fmt: skip
ANNEALED = {"dynadg": {"updates": 2}, "dynars": {"updates": 2}}
JOINT = R1 | {"phase": "joint"}
RELATIVE = {"groups": B // 8, "group_size": 8}
SPREAD_GROUPS = tuple(text for text in SPREAD for _ in range(8))
START, MIDDLE = beta(4.0, 1.5), beta(2.5, 1.25)  # DynaRS at the first update, and half way
LOGIT = logit_normal(0.001, 1.0)
FEATURES = Asked("features", uniform(0.0, 1.0), graph=True)
REAL = replace(FEATURES, drawn=True)

CASES = {
    "dmd": Case("dmd", R1, (
        student(*GRID[:3]), fake_score(logit_normal(0.02, 0.98)),
        student(*GRID[:2]), student(GRID[2], graph=True), *scores(uniform(0.02, 0.98), w=5.0),
    ), normaliser="x0"),
    "dmd, one rollout": Case("dmd", R1 | {"share_rollout": True, "x0_source": "renoised_rollout"}, (
        student(*GRID), Asked("student", any_of(*GRID[::-1]), graph=True),
        fake_score(logit_normal(0.02, 0.98)), *scores(uniform(0.02, 0.98), w=5.0),
    ), normaliser="x0"),
    "dmd2": Case("dmd2", R1 | {"teacher_samples": SAMPLES}, (
        student(*GRID[:3]), fake_score(uniform(0.0, 1.0)),
        Asked("teacher", THIRDS, w=8.0), REAL, FEATURES,
        student(*GRID[:2]), student(GRID[2], graph=True), *scores(uniform(0.02, 0.98), w=8.0), FEATURES,
    ), normaliser="x0"),
    "dmd_gan": Case("dmd_gan", R1 | {"teacher_samples": SAMPLES}, (
        student(*TWICE_SHIFTED), fake_score(ONE_LEVEL, one=True),
        Asked("teacher", THIRDS, w=3.5), REAL, FEATURES,
        student(*TWICE_SHIFTED, graph=True), *scores(ONE_LEVEL, w=3.5, one=True), FEATURES,
    ), normaliser="x_t"),
    "dmd_lpips": Case("dmd_lpips", R1 | {"teacher_samples": SAMPLES, "lpips": {"batch_size": B}}, (
        student(*TWICE_SHIFTED), fake_score(ONE_LEVEL, one=True),
        student(*TWICE_SHIFTED, graph=True), *scores(ONE_LEVEL, w=3.5, one=True),
        Asked("teacher", THIRDS, w=3.5), student(*TWICE_SHIFTED, graph=True, drawn=True),
    ), normaliser="x_t"),
    "dp_dmd": Case("dp_dmd", R1, (
        student(*TWICE_SHIFTED, graph=True), *scores(ONE_LEVEL, w=3.5, one=True), Asked("teacher", ANCHOR, w=3.5),
    ), iteration=1, normaliser="x_t"),
    "dp_dmd, fake score": Case("dp_dmd", R1, (
        student(*TWICE_SHIFTED), fake_score(ONE_LEVEL, one=True),
    )),
    "dp_dmd, fake score, two laws": Case("dp_dmd", R1 | {"fake_score_renoise": OWN_LAW}, (
        student(*TWICE_SHIFTED), fake_score(uniform(0.3, 0.4)),
    )),
    "dp_dmd, x0": Case("dp_dmd", R1 | {"first_step": TWO_STEPS | {"form": "x0"}}, (
        student(*TWICE_SHIFTED, graph=True), *scores(ONE_LEVEL, w=3.5, one=True),
        Asked("teacher", GRID[:3], w=3.5),
    ), iteration=1, normaliser="x_t"),
    "dp_dmd, two laws": Case("dp_dmd", R1 | {"renoise": OWN_LAW}, (
        student(*TWICE_SHIFTED, graph=True), *scores(uniform(0.3, 0.4), w=3.5), Asked("teacher", ANCHOR, w=3.5),
    ), iteration=1, normaliser="x_t"),
    "tdm": Case("tdm", {"batch_size": B}, (
        student(*GRID), fake_score(STRETCHES),
        Asked("student", any_of(*GRID[::-1]), graph=True), *scores(STRETCHES, w=4.5),
    )),
    "dmdr": Case("dmdr", R1 | ANNEALED, dmdr(START, 0.5), iteration=1, normaliser="x0"),
    "dmdr, rt_dm": Case("dmdr", R1 | {"phase": "rt_dm"}, dmdr(START, 0.5), iteration=1),
    "dmdr, refl": Case("dmdr", JOINT | {"refl": {"regulariser": "self_pretrain"}}, dmdr(
        START, 0.5, Asked("reference", GRID), Asked("student", LOGIT, graph=True),
    ), iteration=1, normaliser="x0"),
    "dmdr, srpo": Case("dmdr", JOINT | {"rl": "srpo"}, dmdr(START, 0.5), iteration=1, normaliser="x0"),
    "dmdr, dpo": Case("dmdr", JOINT | {"rl": "dpo", "dpo": RELATIVE}, dmdr(
        START, 0.5, student(*GRID, of=SPREAD_GROUPS),
        Asked("reference", LOGIT, of=SPREAD * 2), Asked("student", SAME, graph=True, of=SPREAD * 2),
    ), iteration=1, normaliser="x0"),
    "dmdr, grpo": Case("dmdr", JOINT | {"rl": "grpo", "grpo": RELATIVE}, dmdr(
        START, 0.5, student(*GRID[:3], graph=True, of=SPREAD_GROUPS), student(GRID[3], of=SPREAD_GROUPS),
    ), iteration=1, normaliser="x0"),
    "dmdr, rl_only": Case("dmdr", R1 | {"phase": "rl_only"}, (
        student(*GRID), Asked("student", any_of(*GRID[::-1]), graph=True),
    )),
    "dmdr, first step": Case("dmdr", R1 | {"dp_first_step": TWO_STEPS}, dmdr(
        START, 0.5, student(1.0, graph=True), Asked("teacher", GRID[:2], w=7.0),
    ), iteration=1, normaliser="x0"),
    "rtdmd I": Case("rtdmd", COLD | {"dp_first_step": TWO_STEPS}, (
        student(*GRID[:3]), fake_score(above(0.25)),
        student(*GRID[:2]), student(GRID[2], graph=True), *scores(above(0.25), w=5.0),
        student(1.0, graph=True), Asked("teacher", GRID[:2], w=5.0),
    )),
    "rtdmd I, last step": Case("rtdmd", COLD, (
        student(*GRID), fake_score(above(0.0)),
        student(*GRID[:3]), student(GRID[3], graph=True), *scores(above(0.0), w=5.0),
    ), k=4, normaliser="x0"),
    "rtdmd II": Case("rtdmd", EPOCH | {"dp_first_step": TWO_STEPS}, (
        student(*GRID, graph=True, of=GROUPS), fake_score(above(0.0), of=GROUPS),
        *scores(above(0.0), w=5.0, of=GROUPS),
        student(1.0, graph=True, of=GROUPS), Asked("teacher", GRID[:2], w=5.0, of=GROUPS),
    ), normaliser="x0", weight=1e-3),
    "refl": Case("refl", {"batch_size": B, "refl": {"regulariser": "self_pretrain"}}, (
        student(*GRID[:2]), student(GRID[2], graph=True),
        Asked("reference", GRID), Asked("student", LOGIT, graph=True),
    )),
    "grpo": Case("grpo", {"grpo": RELATIVE | {"kl_weight": 0.04}, "student_guidance": 4.5}, (
        student(*GRID[:3], graph=True, of=GROUPS, w=4.5), student(GRID[3], of=GROUPS, w=4.5),
        Asked("reference", GRID[:3], of=GROUPS, w=4.5),
    )),
    "grpo, two updates": Case("grpo", {"grpo": RELATIVE | {"kl_weight": 0.0}, "updates": 2}, (
        student(*GRID, of=GROUPS),
        student(*GRID[:3], graph=True, of=GROUPS[::2]), student(*GRID[:3], graph=True, of=GROUPS[1::2]),
    )),
    "dpo": Case("dpo", {"dpo": RELATIVE}, (
        student(*GRID, of=GROUPS),
        Asked("reference", LOGIT, of=TEXTS[: B // 8] * 2), Asked("student", SAME, graph=True, of=TEXTS[: B // 8] * 2),
    )),
}  # fmt: skip


@pytest.fixture(autouse=True)
def distance_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmd_lpips, "load_perceptual", lambda kind, device: lambda a, b: ((a - b) ** 2).sum(dim=1))
    monkeypatch.setattr(dmd_lpips, "reduced", lambda images, size: images)


def trainer_of(method: str, table: dict[str, Any], folder: Path, k: int = 3) -> tuple[RecordingBackbone, Any]:
    """Return a method at work on points, with the reward x_1, whose step is k wherever it draws one."""
    torch.manual_seed(0)
    kind, backbone = find(method), RecordingBackbone()
    if "teacher_samples" in table:
        table = table | {"teacher_samples": table["teacher_samples"] | {"folder": str(folder)}}
    rewards = RewardBank([RewardConfig(id="x1")], {"x1": FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]
    trainer = kind(build(kind.Config, table, "test"), backbone, rewards, World())
    trainer.roles.draws.index = lambda count: k - 1  # type: ignore[method-assign]
    return backbone, trainer


def calls_of(backbone: RecordingBackbone, trainer: Any, iteration: int) -> tuple[list[Call], dict[str, float]]:
    """Return the calls of one iteration, and its log."""
    backbone.calls.clear()
    logs = trainer.step([Prompt(text=text) for text in TEXTS[: trainer.prompts_per_step]], iteration)
    return list(backbone.calls), logs


@pytest.mark.parametrize("name", CASES)
def test_the_calls_of_a_step(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    backbone, trainer = trainer_of(case.method, case.table, tmp_path, case.k)
    calls, _ = calls_of(backbone, trainer, case.iteration)
    check_calls(calls, case.asked, TEXTS[: trainer.prompts_per_step])


@pytest.mark.parametrize(("method", "iteration"), [("dp_dmd", 1), ("dmd_gan", 0), ("dmd_lpips", 0)])
def test_one_level_of_the_shifted_law_serves_a_batch(method: str, iteration: int, tmp_path: Path) -> None:
    """DP-DMD's law for both networks: t = shift_3(u), u ~ U[.003, 1]."""
    table = {"batch_size": 2, "fake_score_updates": 1}
    if method != "dp_dmd":
        table["teacher_samples"] = SAMPLES | {"count": 2}
    backbone, trainer = trainer_of(method, table, tmp_path)
    levels: dict[str, list[float]] = {"teacher": [], "fake_score": []}
    for _ in range(100):
        for n in {0, iteration}:
            calls, _ = calls_of(backbone, trainer, n)
            levels["fake_score"] += [one.t[0, 0].item() for one in calls if one.role == "fake_score" and one.graph]
            shown = [one for one, after in pairwise(calls) if (one.role, after.role) == ("teacher", "fake_score")]
            levels["teacher"] += [one.t[0, 0].item() for one in shown]
    for role, found in levels.items():
        assert len(found) == 100, role
        check_levels(torch.tensor(found), ONE_LEVEL)


def test_dmdr_anneals_lean_and_law_by_the_students_updates(tmp_path: Path) -> None:
    """s_r = 1/2, 1/4, 0 and t ~ Beta(4, 1.5), Beta(2.5, 1.25), U of both networks, at updates 0, 1, 2 with T = 2."""
    backbone, trainer = trainer_of("dmdr", R1 | ANNEALED, tmp_path)
    for law, lean in ((START, 0.5), (MIDDLE, 0.25), (uniform(0.001, 1.0), 0.0)):
        check_calls(calls_of(backbone, trainer, 1)[0], dmdr(law, lean), TEXTS)


NORMALISERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x0": lambda x0, x_t, x0_teacher: (x0 - x0_teacher).abs().mean(dim=1, keepdim=True),
    "x_t": lambda x0, x_t, x0_teacher: (x_t - x0_teacher).abs().mean(dim=1, keepdim=True),
    "none": lambda x0, x_t, x0_teacher: torch.ones(()),
}
SETTINGS = {"x0": "x0_teacher", "x_t": "xt_teacher", "none": "none"}


def divided() -> list[Any]:
    """Return (case, its table, what divides its gradient): by default, and by each other setting it has."""
    found = []
    for name, case in CASES.items():
        if case.normaliser:
            found.append(pytest.param(name, case.table, case.normaliser, id=name))
    for name in ("dmd", "dmdr", "dp_dmd"):
        found += [
            pytest.param(name, CASES[name].table | {"normaliser": setting}, kind, id=f"{name}, {setting}")
            for kind, setting in SETTINGS.items()
        ]
    none = COLD | {"ac_dmd": {"gamma": 0.0, "normaliser": "none"}}
    return [*found, pytest.param("rtdmd I, last step", none, "none", id="rtdmd I, none")]


@pytest.mark.parametrize(("name", "table", "normaliser"), divided())
def test_the_dmd_loss_is_half_the_mean_square_of_the_divided_difference(
    name: str, table: dict[str, Any], normaliser: str, tmp_path: Path
) -> None:
    """L = mean(((x0_fake - x0_teacher) / N)^2) / 2 of the very answers that the networks gave."""
    case = CASES[name]
    calls, logs = calls_of(*trainer_of(case.method, table, tmp_path, case.k), case.iteration)
    roles = [call.role for call in calls]
    n = next(n for n, two in enumerate(pairwise(roles)) if two == ("teacher", "fake_score"))
    x0 = next(call.x0 for call in reversed(calls[:n]) if call.role == "student" and call.graph)
    teacher, fake = calls[n : n + 2]
    divisor = NORMALISERS[normaliser](x0, teacher.x_t, teacher.x0)
    expected = 0.5 * ((fake.x0 - teacher.x0) / divisor).square().mean().item()
    assert logs["dmd_loss"] == pytest.approx(case.weight * expected, rel=1e-4)


@pytest.mark.parametrize(("k", "s"), [(1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)])
@pytest.mark.parametrize(("sampler", "cosine"), [("cps", math.cos(0.45 * math.pi)), ("euler", 1.0), ("renoise", 0.0)])
def test_ac_dmd_brings_both_scores_back_to_the_level_of_the_step_by_the_samplers_own_move(
    k: int, s: float, sampler: str, cosine: float, tmp_path: Path
) -> None:
    """xs_fake - xs_teacher = -[t (1 - s) - s (1 - t) cos(eta pi / 2)] (v_fake - v_teacher)."""
    table = COLD | {"sampler": {"sampler": sampler}, "ac_dmd": {"gamma": 0.0, "normaliser": "none"}}
    calls, logs = calls_of(*trainer_of("rtdmd", table, tmp_path, k), 0)
    teacher, fake = calls[-2:]
    t = teacher.t
    difference = (t * (1 - s) - s * (1 - t) * cosine) * (teacher.v - fake.v)
    assert logs["dmd_loss"] == pytest.approx(0.5 * difference.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize(("sampler", "sine"), [("cps", math.sin(0.45 * math.pi)), ("euler", 0.0), ("renoise", 1.0)])
def test_the_consistency_term_moves_by_the_samplers_own_noise(sampler: str, sine: float, tmp_path: Path) -> None:
    """Its two samples at level t'' differ by t'' sin(eta pi / 2) (n_1 - n_2)."""
    table = COLD | {"sampler": {"sampler": sampler}, "ac_dmd": {"gamma": 0.01}}
    calls, _ = calls_of(*trainer_of("rtdmd", table, tmp_path), 0)
    one, two = [call for call in calls if call.role == "fake_score" and call.graph][1:]
    assert torch.equal(one.t, two.t)
    apart = ((one.x_t - two.x_t) / one.t).std().item()
    assert apart == pytest.approx(math.sqrt(2) * sine, rel=0.08, abs=1e-5)


def test_tdms_loss_is_divided_by_the_distance_to_the_guided_teacher(tmp_path: Path) -> None:
    calls, logs = calls_of(*trainer_of("tdm", {"batch_size": B}, tmp_path), 0)
    student, teacher, fake = calls[-3:]
    d, c = fake.x0 - teacher.x0, 1e-3
    divisor = (student.x0 - teacher.x0).abs().mean(dim=1, keepdim=True)
    expected = (((d**2 + c**2).sqrt() - c) / divisor).mean().item()
    assert logs["tdm_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_student_is_compared_with_the_teacher_from_the_pairs_own_noise_and_prompts(tmp_path: Path) -> None:
    table = CASES["dmd_lpips"].table
    calls, _ = calls_of(*trainer_of("dmd_lpips", table, tmp_path), 0)
    drawn = next(call for call in calls if call.role == "teacher" and call.t[0, 0] == 1 and call.prompts == TEXTS)
    made = dict(zip(drawn.prompts, drawn.x_t.tolist(), strict=True))
    asked = calls[-4]
    assert [made[text] for text in asked.prompts] == asked.x_t.tolist() and len(set(asked.prompts)) > B // 2
