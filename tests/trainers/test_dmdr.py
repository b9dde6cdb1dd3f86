"""DMDR: the order of its updates, what each phase adds to plain DMD, and resuming any reward-driven method."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone, reward_bank
from trainers import dmdr
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.base import SamplerConfig, Trainer, World
from trainers.dmdr import Dmdr, DmdrConfig
from trainers.dpo import Dpo, DpoConfig, DpoTerm
from trainers.dynamic import DynaDgConfig, DynaRsConfig
from trainers.first_step import FirstStepConfig
from trainers.grpo import Grpo, GrpoConfig, GrpoTerm
from trainers.learner import OptimiserConfig
from trainers.refl import Refl, ReflConfig, ReflTerm
from trainers.renoised import Simulated
from trainers.rewards import RewardBank, RewardConfig
from trainers.rt_dm import RtDmConfig

PROMPTS = [Prompt(text=str(n)) for n in range(16)]
RATE = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)
POINT = {"guidance_scale": 1.0, "student": RATE, "fake_score": RATE, "fake_score_updates": 1}


class Constant(FirstCoordinate):
    def reward(self, images: Tensor, prompts: Any) -> Tensor:
        return 0.3 + 0 * images[:, 0]


def bank(metric: FirstCoordinate | None = None) -> RewardBank:
    return RewardBank([RewardConfig(id="x1")], {"x1": metric or FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]


def trainer(rewards: RewardBank | None = None, **settings: Any) -> tuple[PointBackbone, Dmdr]:
    torch.manual_seed(0)
    backbone = PointBackbone((1.0, 0.0), 0.5)
    with torch.no_grad():  # a student whose calls matter, so that every term has a gradient
        for parameter in backbone.parameters("student"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    config = DmdrConfig(**{**POINT, **settings})
    return backbone, Dmdr(config, backbone, rewards or bank(), World())


def student_update(rewards: RewardBank | None = None, **settings: Any) -> tuple[dict[str, float], Tensor]:
    """Return the log and the student's gradient of its first update."""
    backbone, one = trainer(rewards, **settings)
    found: list[Tensor] = []
    one.roles.student.update = lambda: (  # type: ignore[method-assign]
        found.append(torch.cat([p.grad.flatten() for p in backbone.parameters("student")]))  # type: ignore[union-attr]
        or 0.0
    )
    return one.step(PROMPTS[:8], 1), found[0]


def test_the_student_moves_at_every_rth_iteration_but_the_first() -> None:
    _, one = trainer(fake_score_updates=5, batch_size=2)
    moved = []
    for iteration in range(60):
        before = one.roles.student.updates
        one.step(PROMPTS[:2], iteration)
        if one.roles.student.updates > before:
            moved.append(iteration)
    assert moved == list(range(5, 60, 5)) and one.roles.fake_score.updates == 60


def test_one_rollout_serves_both_updates_and_the_student_is_called_once_more() -> None:
    backbone, one = trainer()
    calls: list[tuple[str, bool]] = []
    velocity = backbone.velocity

    def watched(role: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((role, torch.is_grad_enabled()))
        return velocity(role, *args, **kwargs)

    backbone.velocity = watched  # type: ignore[method-assign]
    one.step(PROMPTS[:8], 1)
    rollout, update = [("student", False)] * 4, [("fake_score", True), ("student", True)]
    assert calls == [*rollout, *update, ("teacher", False), ("fake_score", False)]


def test_scales_levels_and_guidance_reach_the_networks() -> None:
    backbone, one = trainer(
        guidance_scale=7.0, dynadg=DynaDgConfig(scale=0.5, updates=4), dynars=DynaRsConfig(updates=4)
    )
    seen: list[tuple[str, float, Any]] = []
    velocity = backbone.velocity

    def watched(role: Any, x_t: Tensor, t: Level, prompts: int, guidance_scale: float = 1.0, fake_scale: Any = None):
        seen.append((role, guidance_scale, fake_scale))
        return velocity(role, x_t, t, prompts)

    backbone.velocity = watched  # type: ignore[method-assign]
    for iteration in range(1, 6):
        one.step(PROMPTS[:8], iteration)
    teacher = [(guidance, scale) for role, guidance, scale in seen if role == "teacher"]
    assert [scale for _, scale in teacher] == pytest.approx([0.5, 0.426777, 0.25, 0.073223, 0.0], abs=1e-6)
    scales = sorted(guidance for guidance, _ in teacher)
    assert 6.5 <= scales[0] < 7 < scales[-1] <= 7.5 and len(set(scales)) == 5  # to both sides of w
    assert {(guidance, scale) for role, guidance, scale in seen if role == "fake_score"} == {(1.0, 2.0)}


def test_rt_dm_with_a_constant_reward_is_dmd() -> None:
    plain, gradient = student_update(phase="dmd")
    logs, tilted = student_update(bank(Constant("x1", 0, True)), phase="rt_dm")
    assert logs["dmd_loss"] == pytest.approx(plain["dmd_loss"], abs=1e-7)
    assert torch.allclose(tilted, gradient, rtol=0, atol=1e-7) and gradient.any()
    assert not torch.allclose(student_update(phase="rt_dm")[1], gradient, rtol=0, atol=1e-4)
    assert torch.equal(student_update(phase="rt_dm", rt_dm=RtDmConfig(kind="none"))[1], gradient)


def simulations(one: Dmdr) -> list[Simulated]:
    """Return the list in which the trainer's simulated batches will be noted."""
    seen: list[Simulated] = []
    simulate = one._simulate
    one._simulate = lambda prompts: seen.append(simulate(prompts)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    return seen


def test_the_fake_score_learns_on_the_images_that_the_students_input_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, one = trainer(simulation="predictions", sampler=SamplerConfig(sampler="renoise"))
    seen, learnt, loss = simulations(one), [], dmdr.fake_score_loss
    monkeypatch.setattr(dmdr, "fake_score_loss", lambda x0, *rest: learnt.append(x0) or loss(x0, *rest))
    one.step(PROMPTS[:8], 0)
    assert torch.equal(learnt[0], seen[0].x0) and not torch.equal(seen[0].x0, seen[0].x_K)


def test_rt_dm_weighs_by_the_reward_of_the_rollouts_end() -> None:
    judged: list[Tensor] = []

    class Noting(FirstCoordinate):
        def reward(self, images: Tensor, prompts: Any) -> Tensor:
            judged.append(images)
            return images[:, 0]

    _, one = trainer(
        bank(Noting("x1", 0, True)), phase="rt_dm", simulation="predictions", sampler=SamplerConfig(sampler="renoise")
    )
    seen = simulations(one)
    one.step(PROMPTS[:8], 1)
    assert len(judged) == 1 and torch.equal(judged[0], seen[0].x_K) and not torch.equal(seen[0].x0, seen[0].x_K)


def test_joint_training_adds_lambda_times_the_reward_term_to_dmd() -> None:
    refl = ReflTerm(margin=100.0)
    _, dmd = student_update(phase="dmd", refl=refl)
    _, rl = student_update(phase="rl_only", rl_weight=1.0, refl=refl)
    logs, joint = student_update(phase="joint", rl_weight=0.25, refl=refl)
    assert {"dmd_loss", "rl_loss", "fake_score_loss", "reward/x1", "reward_std/x1"} <= logs.keys()
    _, double = student_update(phase="joint", rl_weight=0.5, refl=refl)
    assert torch.allclose(double - joint, joint - dmd, rtol=0, atol=1e-6) and (joint - dmd).abs().max() > 1e-4
    assert rl.any()


def test_the_reward_alone_needs_neither_teacher_nor_fake_score() -> None:
    backbone, one = trainer(phase="rl_only", refl=ReflTerm(margin=100.0), fake_score_updates=5)
    roles: set[str] = set()
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: roles.add(role) or velocity(role, *a, **k)  # type: ignore[method-assign,func-returns-value]
    logs = [one.step(PROMPTS[:8], iteration) for iteration in range(30)]
    assert roles == {"student"} and one.roles.student.updates == 30
    assert "fake_score" not in one.state_dict()
    assert sum(each["reward/x1"] for each in logs[-5:]) > sum(each["reward/x1"] for each in logs[:5]) + 0.5


@pytest.mark.parametrize("rl", ["dpo", "grpo"])
def test_relative_rewards_alone_roll_out_their_groups_and_nothing_else(rl: str) -> None:
    terms = {"dpo": DpoTerm(groups=4, group_size=4), "grpo": GrpoTerm(groups=4, group_size=4, kl_weight=0.04)}
    backbone, one = trainer(phase="rl_only", rl=rl, **terms)
    calls: list[str] = []
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: calls.append(role) or velocity(role, *a, **k)  # type: ignore[method-assign,func-returns-value]
    one.step(PROMPTS[:8], 0)
    assert calls == ["student"] * 4 + {"dpo": ["reference", "student"], "grpo": ["reference"] * 3}[rl]
    assert one.roles.student.updates == 1


@pytest.mark.parametrize("rl", ["refl", "srpo", "dpo", "grpo"])
def test_every_reward_term_joins_distribution_matching(rl: str) -> None:
    terms = {"dpo": DpoTerm(groups=4, group_size=4), "grpo": GrpoTerm(groups=4, group_size=4, kl_weight=0.04)}
    logs, joint = student_update(phase="joint", rl=rl, refl=ReflTerm(margin=100.0), **terms)
    _, twice = student_update(phase="joint", rl=rl, refl=ReflTerm(margin=100.0), rl_weight=2.0, **terms)
    assert "rl_loss" in logs and logs["dmd_loss"] != 0
    # In the gradient: GRPO's loss is 0 where no update came between rollout and loss
    assert (twice - joint).norm() > 1e-2 * joint.norm() > 0


def test_first_step_loss_joins_with_its_weight() -> None:
    first = FirstStepConfig(weight=0.5, k_anchor=2, teacher_steps=4)
    logs, gradient = student_update(dp_first_step=first)
    twice, _ = student_update(dp_first_step=replace(first, weight=1.0))
    assert logs["first_step_loss"] > 0 and twice["first_step_loss"] == pytest.approx(2 * logs["first_step_loss"])
    assert not torch.allclose(gradient, student_update()[1], rtol=0, atol=1e-4)


def test_distribution_matching_reaches_the_teacher() -> None:
    rate = OptimiserConfig(lr=3e-3, betas=(0.5, 0.99), max_grad_norm=0.0)
    backbone, one = trainer(
        student=rate, fake_score=OptimiserConfig(lr=1e-2, betas=(0.5, 0.99)), batch_size=16,
        dynadg=DynaDgConfig(kind="off"), dynars=DynaRsConfig(updates=100), fake_score_updates=2,
    )  # fmt: skip
    for iteration in range(500):
        one.step(PROMPTS, iteration)
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t, t_next in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
            x = x + (t_next - t) * backbone.velocity("student", x, t, len(x))
    assert x.mean(dim=0).tolist() == pytest.approx([1.0, 0.0], abs=0.2)


@pytest.mark.parametrize(
    ("settings", "rewards", "message"),
    [
        ({"phase": "rt_dm"}, RewardBank([], {}), 'trainer.phase = "rt_dm" needs a reward'),
        ({"phase": "joint"}, reward_bank(redness=False, judge=True), "trainer.refl needs a differentiable reward"),
        ({"phase": "joint", "rl": "grpo", "rl_eta": 0.0}, None, "stochastic sampler"),
    ],
)
def test_contradictory_settings_are_refused_by_name(settings: Any, rewards: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(rewards, **settings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"guidance_scale": 1.2}, "guidance_scale - guidance_jitter must be at least 1"),
        ({"sampler": {"sampler": "renoise"}}, 'simulation = "final" is for deterministic samplers'),
        ({"grpo": {"microbatch": 2}}, "here backbone.microbatch cuts the batch"),
    ],
)
def test_settings_that_would_silently_be_others_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DmdrConfig, table, "dmdr.toml")
    allowed = {
        "guidance_scale": {"guidance_jitter": 0.2}, "sampler": {"simulation": "predictions"},
        "grpo": {"grpo": {"groups": 1}},
    }  # fmt: skip
    build(DmdrConfig, table | allowed[next(iter(table))], "dmdr.toml")
    build(DmdrConfig, {"guidance_scale": 1.0}, "dmdr.toml")  # off, whatever the jitter


def test_full_copies_have_no_adapter_to_lean_on() -> None:
    torch.manual_seed(0)
    backbone = PointBackbone((1.0, 0.0), 0.5)
    backbone.settings = BackboneConfig(path="", training="full")
    with pytest.raises(UserError, match=r"dynadg.kind = \"off\" and trainer.fake_scale = 1"):
        Dmdr(DmdrConfig(), backbone, bank(), World())
    Dmdr(DmdrConfig(dynadg=DynaDgConfig(kind="off"), fake_scale=1.0), backbone, bank(), World())


def test_a_full_student_may_have_a_fake_score_to_lean_on() -> None:
    backbone = PointBackbone((1.0, 0.0), 0.5)
    backbone.settings = BackboneConfig(path="", training="full", fake_score_training="lora")
    Dmdr(DmdrConfig(), backbone, bank(), World())


def test_guidance_that_is_off_is_not_jittered() -> None:
    backbone, one = trainer(guidance_scale=1.0)
    scales: set[float] = set()
    velocity = backbone.velocity

    def watched(role: Any, x_t: Tensor, t: Level, prompts: int, guidance_scale: float = 1.0, fake_scale: Any = None):
        scales.add(guidance_scale)
        return velocity(role, x_t, t, prompts)

    backbone.velocity = watched  # type: ignore[method-assign]
    for iteration in range(1, 4):
        one.step(PROMPTS[:8], iteration)
    assert scales == {1.0}


def test_groups_larger_than_the_batch_are_refused_by_name() -> None:
    table = {"phase": "joint", "rl": "dpo", "batch_size": 2}
    with pytest.raises(UserError, match=r"dpo.groups are prompts of the batch"):
        build(DmdrConfig, table, "x.toml")


JOINT = {"phase": "joint", "batch_size": 4, "fake_score_updates": 1, "guidance_scale": 2.0}
SMALL = {"dpo": DpoTerm(groups=2, group_size=2), "grpo": GrpoTerm(groups=2, group_size=4, kl_weight=0.1)}
METHODS: dict[str, tuple[type[Trainer], Any]] = {
    "dmdr rt_dm": (Dmdr, DmdrConfig(phase="rt_dm", batch_size=4, fake_score_updates=1)),
    "dmdr refl": (Dmdr, DmdrConfig(**JOINT, refl=ReflTerm(margin=9.0, regulariser="self_pretrain"))),
    "dmdr dpo": (Dmdr, DmdrConfig(**JOINT, **SMALL, rl="dpo")),
    "dmdr grpo": (
        Dmdr,
        DmdrConfig(**JOINT, **SMALL, rl="grpo", sampler=SamplerConfig(sampler="renoise"), simulation="predictions"),
    ),
    "refl": (Refl, ReflConfig(batch_size=4, refl=ReflTerm(text="srpo", regulariser="self_pretrain"))),
    "dpo": (Dpo, DpoConfig(dpo=DpoTerm(groups=2, group_size=4, reference_every=2))),
    "grpo": (Grpo, GrpoConfig(grpo=SMALL["grpo"], updates=2)),
}


def run(make: Any, iterations: range, state: Any = None) -> tuple[list[dict[str, float]], Any]:
    one: Trainer = make()
    if state:
        one.load_state_dict(state)
    logs = [one.step(PROMPTS[: one.prompts_per_step], iteration) for iteration in iterations]
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    return logs, torch.load(buffer, weights_only=True)


def check_resume(make: Any) -> None:
    logs, whole = run(make, range(4))
    first, state = run(make, range(2))
    second, resumed = run(make, range(2, 4), state)
    assert first + second == logs
    flat, again = (torch.utils._pytree.tree_flatten(one)[0] for one in (whole, resumed))
    for a, b in zip(flat, again, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_for_bit_the_whole_one(method: str) -> None:
    kind, config = METHODS[method]
    made = iter(range(100))

    def make() -> Trainer:
        torch.manual_seed(next(made))  # what the adapters or the reference begin with must not matter
        backbone = PointBackbone((1.0, 0.0), 0.5)
        for role in ("student", "fake_score"):
            backbone.networks[role].load_state_dict(start[role])
        return kind(config, backbone, bank(), World())

    start = copy.deepcopy({role: net.state_dict() for role, net in PointBackbone((1.0, 0.0), 0.5).networks.items()})
    check_resume(make)


@pytest.mark.parametrize("method", ["dmdr refl", "dpo"])
def test_a_resumed_run_on_a_real_backbone_is_bit_for_bit_the_whole_one(
    method: str, pipeline_folder: Path, prompts: list[Prompt]
) -> None:
    kind, config = METHODS[method]
    settings = BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4))

    backbones = []

    def make() -> Trainer:
        torch.manual_seed(0)
        backbones.append(load(settings, torch.device("cpu")))
        return kind(config, backbones[-1], reward_bank(), World())

    check_resume(make)
    fresh = load(settings, torch.device("cpu"))
    assert all(backbone.teacher_digest() == fresh.teacher_digest() for backbone in backbones)


def leaning(folder: Path, scale: float) -> tuple[Any, Dmdr]:
    """A student of adapters without guidance, and a teacher that leans on the fake score's at `scale`."""
    torch.manual_seed(0)
    backbone = load(BackboneConfig(path=str(folder), lora=LoraConfig(rank=2, alpha=4)), torch.device("cpu"))
    config = DmdrConfig(
        batch_size=2, guidance_scale=1.0, fake_score_updates=1, fake_score=OptimiserConfig(lr=1e-2),
        dynadg=DynaDgConfig(kind="fixed", scale=scale),
    )  # fmt: skip
    return backbone, Dmdr(config, backbone, reward_bank(), World())


def first_update(backbone: Any, one: Dmdr) -> tuple[float, Tensor]:
    """Return L_dmd of the student's first update, and its gradient."""
    found: list[Tensor] = []
    one.roles.student.update = lambda: (  # type: ignore[method-assign]
        found.append(torch.cat([p.grad.flatten() for p in backbone.parameters("student")])) or 0.0
    )
    return one.step(PROMPTS[:2], 1)["dmd_loss"], found[0]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_with_adapters_that_begin_at_0_teacher_and_fake_score_agree(pipeline_folder: Path, scale: float) -> None:
    backbone, one = leaning(pipeline_folder, scale)
    one.roles.fake_score.update = lambda: 0.0  # type: ignore[method-assign]
    loss, gradient = first_update(backbone, one)
    assert loss == 0 and len(gradient) > 1000 and not gradient.any()


@pytest.mark.parametrize(("scale", "learns"), [(0.5, True), (2.0, False)])
def test_a_teacher_that_leans_as_far_as_the_fake_score_goes_teaches_nothing(
    pipeline_folder: Path, scale: float, learns: bool
) -> None:
    """With s_r = s_f = 2 the gradient stays 0, whatever the adapter has learnt."""
    backbone, one = leaning(pipeline_folder, scale)
    one.step(PROMPTS[:2], 0)  # the fake score alone
    loss, gradient = first_update(backbone, one)
    assert (loss > 0) == learns and bool(gradient.any()) == learns
