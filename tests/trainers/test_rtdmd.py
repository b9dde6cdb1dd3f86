import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError, build
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import (
    ClosedFormMetric,
    Counted,
    FirstCoordinate,
    PointBackbone,
    gaussian_velocity,
    reward_bank,
    shift_pull,
)  # fmt: skip
from trainers import rtdmd, subgrpo
from trainers.ac_dmd import AcDmdConfig
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.base import Roles, SamplerConfig, World
from trainers.first_step import FirstStepConfig
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.reinforce import ReinforceConfig
from trainers.rewards import RewardBank, RewardConfig, reward_logs
from trainers.rtdmd import ColdStartConfig, Rtdmd, RtdmdConfig

PROMPTS = [Prompt(text=str(n)) for n in range(64)]
RATE = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)


def point_rewards(*, differentiable: bool = True) -> RewardBank:
    metric = FirstCoordinate("x1", 0, differentiable)
    if not differentiable:
        metric.__class__ = type("Verdict", (FirstCoordinate,), {"__call__": lambda self, x, p: (x[:, 0] > 0).float()})
    return RewardBank([RewardConfig(id="x1")], {"x1": metric})  # type: ignore[dict-item]


def point_trainer(rewards: RewardBank | None = None, seed: int = 0, **settings: Any) -> tuple[Counted, Rtdmd]:
    torch.manual_seed(seed)
    backbone = Counted((0.0, 0.0), 0.5)
    config = RtdmdConfig(**{"guidance_scale": 1.0, "student": RATE, "fake_score": RATE, **settings})
    return backbone, Rtdmd(config, backbone, rewards or point_rewards(), World(seed))


def weights(backbone: PointBackbone, role: str) -> list[Tensor]:
    return [p.detach().clone() for p in backbone.networks[role].parameters()]


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def reinforce(**settings: Any) -> dict[str, Any]:
    return {"phase": "reinforce", "reinforce": ReinforceConfig(groups=4, group_size=8, **settings)}


def test_cold_start_updates_the_student_at_every_rth_iteration(averaged_at: list[int]) -> None:
    backbone, trainer = point_trainer(cold_start=ColdStartConfig(batch_size=4, fake_score_updates=10))
    student, fake_score = weights(backbone, "student"), weights(backbone, "fake_score")
    for iteration in range(9):
        trainer.step(PROMPTS[:4], iteration)
    assert not moved(student, weights(backbone, "student")) and moved(fake_score, weights(backbone, "fake_score"))
    for iteration in range(9, 60):
        trainer.step(PROMPTS[:4], iteration)
    assert trainer.roles.student.updates == 6 and averaged_at == list(range(60))


@pytest.mark.parametrize("share", [True, False])
def test_a_shared_rollout_saves_its_passes(share: bool) -> None:
    settings = ColdStartConfig(batch_size=8, fake_score_updates=1, share_rollout=share)
    backbone, trainer = point_trainer(cold_start=settings, ac_dmd=AcDmdConfig(gamma=0.0))
    calls = []
    velocity = backbone.velocity
    backbone.velocity = lambda role, *args, **kwargs: calls.append(role) or velocity(role, *args, **kwargs)  # type: ignore[method-assign]
    for iteration in range(50):
        trainer.step(PROMPTS[:8], iteration)
    mean_rollout = calls.count("student") / 50
    assert mean_rollout == pytest.approx(2.5 if share else 5.0, rel=0.15)
    assert calls.count("teacher") == 50 and calls.count("fake_score") == 100


def test_no_term_is_off_by_default() -> None:
    _, trainer = point_trainer(**reinforce())
    logs = trainer.step(PROMPTS[:4], 0)
    assert {"rl_loss", "dmd_loss", "det_loss", "fake_score_loss"} <= logs.keys() and logs["kept"] == 1
    assert all(logs[name] != 0 for name in ("dmd_loss", "det_loss"))


def test_detector_reward_trains_by_subgrpo_alone_and_drops_groups_without_contrast() -> None:
    backbone, trainer = point_trainer(point_rewards(differentiable=False), **reinforce(det_term=False))
    before = weights(backbone, "student")
    logs = trainer.step(PROMPTS[:4], 0)
    assert "det_loss" not in logs and 0 < logs["kept"] <= 1 and moved(before, weights(backbone, "student"))

    class Never(FirstCoordinate):
        def __call__(self, images: Tensor, prompts: Any) -> Tensor:
            return torch.zeros(len(images))

    never = RewardBank([RewardConfig(id="x1")], {"x1": Never("x1", 0, False)})  # type: ignore[dict-item]
    backbone, trainer = point_trainer(never, **reinforce(det_term=False))
    before = weights(backbone, "student")
    logs = trainer.step(PROMPTS[:4], 0)
    assert logs["kept"] == 0 and not moved(before, weights(backbone, "student"))


def gradient_of(role: str, rewards: RewardBank | None = None, seed: int = 0, **settings: Any) -> Tensor:
    """Return a role's gradient of one iteration, before the optimiser."""
    backbone, trainer = point_trainer(rewards, seed, **settings)
    with torch.no_grad():  # a student whose calls matter, so that every term has a gradient
        for parameter in backbone.parameters("student"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found: list[Tensor] = []
    getattr(trainer.roles, role).update = lambda: (
        found.append(
            torch.cat([p.grad.flatten() for p in backbone.networks[role].parameters() if p.grad is not None])
        )
        or 0.0
    )
    trainer.step(PROMPTS[: trainer.prompts_per_step], 0)
    return found[0]


student_gradient = partial(gradient_of, "student")


def test_microbatches_give_the_gradient_of_the_whole_epoch() -> None:
    terms = {"dm_steps": "none"}  # distribution matching draws its noise per microbatch
    whole = student_gradient(**reinforce(**terms))
    assert torch.allclose(student_gradient(**reinforce(microbatch=8, **terms)), whole, rtol=1e-4, atol=1e-8)
    assert whole.any()


def test_microbatches_give_the_fake_scores_gradient_of_the_whole_epoch() -> None:
    whole = gradient_of("fake_score", **reinforce(microbatch=32))
    assert torch.allclose(gradient_of("fake_score", **reinforce(microbatch=7)), whole, rtol=1e-4, atol=1e-8)
    assert whole.any()


def test_no_call_is_of_more_images_than_a_microbatch() -> None:
    """Nor does any network or the decoder keep the graph of more: of 32 images here, of 144 as published."""
    backbone, trainer = point_trainer(**reinforce(microbatch=5))
    trainer.step(PROMPTS[:4], 0)
    most = {role: max(count for name, count, _ in backbone.calls if name == role) for role, *_ in backbone.calls}
    assert most == dict.fromkeys(("student", "decoder", "fake_score", "teacher"), 5)


def test_steps_that_other_processes_train_are_called_alike_and_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sharded base all processes must make calls of one kind, whatever subsets their prompts have."""
    alone = student_gradient(**reinforce(subset_size=1, dm_steps="none"))
    monkeypatch.setattr(Roles, "anywhere", lambda self, numbers: {*numbers, 1, 2, 3})
    assert torch.allclose(student_gradient(**reinforce(subset_size=1, dm_steps="none")), alone, rtol=1e-4, atol=1e-8)
    backbone, trainer = point_trainer(**reinforce(subset_size=1, dm_steps="none"))
    trainer.step(PROMPTS[:4], 0)
    assert backbone.calls.count(("student", 32, True)) == 4


def test_grpo_is_subgrpo_with_all_stochastic_steps() -> None:
    terms = {"dm_steps": "none", "det_term": False}
    grpo = student_gradient(**reinforce(rl="grpo", **terms))
    assert torch.equal(grpo, student_gradient(**reinforce(rl="subgrpo", subset_size=3, **terms)))
    assert not torch.equal(grpo, student_gradient(**reinforce(rl="subgrpo", subset_size=2, **terms)))


def test_paper_scale_multiplies_the_policy_gradient_by_k_minus_one_over_m() -> None:
    terms = {"dm_steps": "none", "det_term": False, "subset_size": 2}
    plain = student_gradient(**reinforce(**terms))
    assert torch.allclose(student_gradient(**reinforce(subset_scale="paper", **terms)), 1.5 * plain, rtol=1e-4)


def test_terms_add_up_with_their_weights() -> None:
    def term(**chosen: Any) -> Tensor:
        off = {"rl": "none", "det_term": False, "dm_steps": "none"}
        return student_gradient(**reinforce(zero_advantage="keep", noise="independent", **{**off, **chosen}))

    weighted = term(det_term=True, det_weight=2.0)
    assert torch.allclose(weighted, 2.0 * term(det_term=True, det_weight=1.0), rtol=1e-4)
    together = student_gradient(
        **reinforce(zero_advantage="keep", rl_weight=3.0, det_weight=2.0, dm_steps="none", noise="independent")
    )
    assert torch.allclose(together, weighted + 3.0 * term(rl="subgrpo"), rtol=1e-3, atol=1e-7)


def test_distribution_matching_alone_needs_no_reward() -> None:
    backbone, trainer = point_trainer(RewardBank([], {}), **reinforce(rl="none", det_term=False))
    before = weights(backbone, "student")
    logs = trainer.step(PROMPTS[:4], 0)
    assert moved(before, weights(backbone, "student")) and logs["kept"] == 1 and "dmd_loss" in logs


def test_direct_term_pushes_the_reward_up_through_the_last_call_only() -> None:
    seen: list[bool] = []
    backbone, trainer = point_trainer(**reinforce(rl="none", dm_steps="none", det_weight=1.0))
    velocity = backbone.velocity

    def watched(role: str, x_t: Tensor, t: Level, prompts: int, guidance_scale: float = 1.0) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return velocity(role, x_t, t, prompts, guidance_scale)  # type: ignore[arg-type]

    backbone.velocity = watched  # type: ignore[method-assign]
    rewards = [trainer.step(PROMPTS[:4], iteration)["reward/x1"] for iteration in range(40)]
    assert seen[:4] == [False, False, False, True]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_subgrpo_alone_pushes_a_verdict_up() -> None:
    settings = reinforce(det_term=False, dm_steps="none", rl="subgrpo")
    settings["reinforce"] = replace(settings["reinforce"], groups=16)
    _, trainer = point_trainer(point_rewards(differentiable=False), **settings)
    rewards = [trainer.step(PROMPTS[:16], iteration)["reward/x1"] for iteration in range(60)]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.15


@pytest.mark.parametrize("microbatch", [0, 5])
@pytest.mark.parametrize(("dm_steps", "trained"), [("last", {4}), ("all", {1, 2, 3, 4})])
def test_the_loss_is_a_mean_over_the_kept_images(microbatch: int, dm_steps: str, trained: set[int]) -> None:
    """Every part's loss is replaced by a parameter: its gradient is the sum of the parts' weights."""

    class FirstGroupAlike(FirstCoordinate):
        def reward(self, images: Tensor, prompts: Any) -> Tensor:
            return images[:, 0] * torch.tensor([float(prompt.text != "0") for prompt in prompts])

    bank = RewardBank([RewardConfig(id="x1")], {"x1": FirstGroupAlike("x1", 0, True)})  # type: ignore[dict-item]
    backbone, trainer = point_trainer(bank, **reinforce(microbatch=microbatch, dm_steps=dm_steps, det_term=False))
    parameter, steps = backbone.networks["student"].head.bias, []
    trainer._losses = lambda epoch, k_dm: steps.append(k_dm) or {"x": parameter.sum()}  # type: ignore
    weights: list[Tensor] = []
    trainer.roles.student.update = lambda: (  # type: ignore[method-assign]
        weights.append(parameter.grad.clone()) or trainer.roles.student._optimiser.zero_grad() or 0.0
    )
    for iteration in range(20):
        assert trainer.step(PROMPTS[:4], iteration)["kept"] == 0.75
    assert all(torch.allclose(weight, torch.ones(2)) for weight in weights) and set(steps) == trained


def test_advantages_lie_within_their_limit_on_both_sides() -> None:
    _, trainer = point_trainer(**reinforce(advantage_limit=0.5))
    advantage, kept, share = trainer._advantages(
        {"x1": torch.randn(32, generator=torch.Generator().manual_seed(0))}, 32
    )
    assert (advantage.min(), advantage.max()) == (-0.5, 0.5) and kept.all() and share == 1


def test_the_direct_term_holds_the_differentiable_rewards_alone() -> None:
    metrics = {"x1": FirstCoordinate("x1", 0, True), "verdict": point_rewards(differentiable=False)._metrics["x1"]}
    bank = RewardBank([RewardConfig(id="x1"), RewardConfig(id="verdict", weight=7.0)], metrics)  # type: ignore[arg-type]
    terms = {"rl": "none", "dm_steps": "none", "det_weight": 2.0, "det_margin": 100.0}
    logs = point_trainer(bank, **reinforce(**terms))[1].step(PROMPTS[:4], 0)
    assert logs["det_loss"] == pytest.approx(2 * (100 - logs["reward/x1"])) and logs["reward/verdict"] > 0


@pytest.mark.parametrize("share_init", [True, False])
def test_steps_outside_the_subset_share_their_noise_and_the_start_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, share_init: bool
) -> None:
    _, trainer = point_trainer(**reinforce(share_init=share_init, subset_per="prompt", subset_size=1))
    independent, subsets, draw, choose = [], [], rtdmd.group_noise, rtdmd.choose_subset
    monkeypatch.setattr(rtdmd, "group_noise", lambda *a: independent.append(a[3]) or draw(*a))
    monkeypatch.setattr(rtdmd, "choose_subset", lambda *a: subsets.append(choose(*a)) or subsets[-1])
    trainer.step(PROMPTS[:4], 0)
    assert torch.equal(independent[0][:, 1:-1], subsets[0]) and subsets[0].sum() == 4
    assert independent[0][:, 0].tolist() == [not share_init] * 4


def test_distribution_matching_has_its_weight_in_stage_two() -> None:
    one, three = (point_trainer(**reinforce(dm_weight=w))[1].step(PROMPTS[:4], 0)["dmd_loss"] for w in (1.0, 3.0))
    assert three == pytest.approx(3 * one) and one > 0


def test_reward_tilt_shifts_a_gaussian_student_by_its_closed_form() -> None:
    """Teacher N(0, tau^2), r = x_1: on the last step alone the balance of both terms is a shift of x_1 by
    2 w_det / (w_dm E[t^2 / V(t)]); weights are chosen to make it beta tau^2 with beta = 2, tau = 0.5."""
    tau, beta = 0.5, 2.0
    det_weight = beta * tau**2 * shift_pull(tau) / 2
    settings = reinforce(rl="none", det_weight=det_weight, dm_weight=1.0, det_margin=100.0)
    settings["reinforce"] = replace(settings["reinforce"], groups=32)
    rate = OptimiserConfig(lr=2e-3, betas=(0.5, 0.99), max_grad_norm=0.0)
    backbone, trainer = point_trainer(
        **settings, sampler=SamplerConfig(num_inference_steps=1), student=rate, fake_score=replace(rate, lr=5e-3),
        ac_dmd=AcDmdConfig(normaliser="none", gamma=0.0), ema=EmaConfig(decay=0.99),
    )  # fmt: skip
    for iteration in range(700):
        trainer.step(PROMPTS[:32], iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
        points = x - backbone.velocity("student", x, 1.0, len(x))
    assert points.mean(dim=0)[0].item() == pytest.approx(beta * tau**2, rel=0.15)
    assert abs(points.mean(dim=0)[1]) < 0.15 * beta * tau**2
    assert points.std(dim=0).tolist() == pytest.approx([tau, tau], rel=0.15)


class Shifted(nn.Module):
    """A student in two steps, of eta = .9 by level 1/2, that is N(p, tau^2 I) at every p = q / (1 - (1 - s) slope).

    Step 1 makes x0 = p + b z of noise z, with the b that gives x_s the teacher's spread at level s; step 2 makes
    x0 = slope x_s + q. A change of p or q is a shift."""

    def __init__(self, tau: float, p: float, s: float = 0.5, eta: float = 0.9) -> None:
        super().__init__()
        self.s, kept = s, s * math.cos(eta * math.pi / 2)
        self.spread = math.sqrt((1 - s) ** 2 * tau**2 + s**2)
        self.b = (math.sqrt(kept**2 + (1 - s) ** 2 * tau**2) - kept) / (1 - s)
        self.slope = tau / self.spread
        self.p = nn.Parameter(torch.tensor([p, 0.0]))
        self.q = nn.Parameter(torch.tensor([p * (1 - (1 - s) * self.slope), 0.0]))

    def forward(self, x: Tensor, t: Level) -> Tensor:
        return x - (self.p + self.b * x) if t == 1 else (x - (self.slope * x + self.q)) / self.s


class ExactScore(nn.Module):
    """The fake score of N((p, 0), tau^2 I), in closed form."""

    def __init__(self, tau: float, p: float) -> None:
        super().__init__()
        self.p, self.nothing = torch.tensor([p, 0.0]), nn.Parameter(torch.zeros(()))
        self._velocity = gaussian_velocity(0.0, tau)

    def forward(self, x: Tensor, t: Level) -> Tensor:
        return self._velocity(x - (1 - t) * self.p, t) - self.p + self.nothing


def test_policy_gradient_and_direct_term_balance_distribution_matching_at_the_tilted_gaussian() -> None:
    """Teacher N(0, tau^2), r = x_1, two steps: SubGRPO moves the first, the direct term the second, AC-DMD both.

    With the weights at which a tilt of beta tau^2 is the balance of each step, all gradients are 0 there. They are
    linear in the shift, and at no shift those of the rewards alone: so two batches tell where they vanish."""
    tau, beta, s, members = 0.5, 2.0, 0.5, 8
    tilt = beta * tau**2
    slope = Shifted(tau, 0.0).slope
    # Of x_s the first step's gradient is (1 - s) dm (1 - s) tilt pull / 2 numel, of the reward rl (1 - s) slope; the
    # mean within the group takes 1 / N of the latter. One k of {1, 2} per epoch: half the epochs each.
    rl_weight = (1 - s) * tilt * shift_pull(tau, s) / 4 / (slope * (1 - 1 / members))
    det_weight = tilt * shift_pull(tau) / 4
    prompts = [Prompt(text=str(n)) for n in range(2048)]

    def gradients(p: float) -> tuple[Tensor, Tensor]:
        """Return those of p and q, mean over both k that distribution matching may draw."""
        total = torch.zeros(2, 2)
        for k in (1, 2):
            torch.manual_seed(0)
            backbone = PointBackbone((0.0, 0.0), tau)
            backbone.networks = {"student": Shifted(tau, p), "fake_score": ExactScore(tau, p)}  # type: ignore[dict-item]
            paper = {"logprob": "exact", "advantage": "centred", "subset_scale": "paper", "subset_size": 1}
            settings = ReinforceConfig(
                groups=len(prompts), group_size=members, **paper, advantage_limit=100.0, rl_weight=rl_weight,
                det_weight=det_weight, det_margin=100.0, dm_weight=1.0, dm_steps="all",
            )  # fmt: skip
            config = RtdmdConfig(
                phase="reinforce", guidance_scale=1.0, sampler=SamplerConfig(num_inference_steps=2),
                reinforce=settings, ac_dmd=AcDmdConfig(normaliser="none", gamma=0.0),
            )  # fmt: skip
            trainer = Rtdmd(config, backbone, point_rewards(), World(0))
            trainer.roles.draws.index = lambda count, k=k: k - 1  # type: ignore[method-assign,misc]
            for learner in (trainer.roles.student, trainer.roles.fake_score):
                learner.update = lambda: 0.0  # type: ignore[method-assign]
            trainer.step(prompts, 0)
            total += torch.stack([one.grad for one in backbone.networks["student"].parameters()]) / 2  # type: ignore[arg-type]
        return total[0], total[1]

    for at_0, at_1 in zip(gradients(0.0), gradients(1.0), strict=True):
        assert at_0[0] < 0 < at_1[0]  # descent raises the shift from 0, and lowers it from 1
        assert (at_0[0] / (at_0[0] - at_1[0])).item() == pytest.approx(tilt, rel=0.05)
        assert max(at_0[1].abs(), at_1[1].abs()) < 0.1 * at_1[0]


@pytest.mark.parametrize(
    ("settings", "bank", "message"),
    [
        ({"det_term": True}, {"redness": False, "judge": True}, r"det_term needs a differentiable reward"),
        ({}, {"redness": False}, r"add a .*rewards.* table"),
        ({"subset_size": 4}, {}, "only 3 steps are stochastic"),
    ],
)
def test_contradictory_settings_are_refused_by_name(settings: dict, bank: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        point_trainer(reward_bank(**bank), **reinforce(**settings))


def test_reinforcement_needs_a_stochastic_sampler() -> None:
    with pytest.raises(UserError, match="stochastic sampler"):
        point_trainer(**reinforce(), sampler=SamplerConfig(eta=0.0))
    one = SamplerConfig(num_inference_steps=1)
    with pytest.raises(UserError, match=r"trains steps before the last: set sampler\.num_inference_steps above 1"):
        point_trainer(**reinforce(rl="grpo"), sampler=one)
    point_trainer(**reinforce(rl="none"), sampler=one)  # the direct term is of the last step


def test_wrong_keys_and_types_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown key 'reinforce\.subset_sise'; did you mean 'subset_size'"):
        build(RtdmdConfig, {"reinforce": {"subset_sise": 1}}, "x.toml")
    with pytest.raises(UserError, match=r"reinforce\.groups"):
        build(RtdmdConfig, {"reinforce": {"groups": "4"}}, "x.toml")
    with pytest.raises(UserError, match="every term is off"):
        build(RtdmdConfig, {"reinforce": {"rl": "none", "det_term": False, "dm_steps": "none"}}, "x.toml")


def test_teacher_stays_frozen_and_gradients_stay_in_their_roles(pipeline_folder: Any, prompts: list[Prompt]) -> None:
    torch.manual_seed(0)
    settings = BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4))
    backbone = load(settings, torch.device("cpu"))
    digest = backbone.teacher_digest()
    for config in (
        RtdmdConfig(cold_start=ColdStartConfig(batch_size=4, fake_score_updates=1)),
        RtdmdConfig(phase="reinforce", reinforce=ReinforceConfig(groups=2, group_size=4)),
    ):
        trainer = Rtdmd(config, backbone, reward_bank(redness=True, judge=True), World())
        before = {role: [p.detach().clone() for p in backbone.parameters(role)] for role in ("student", "fake_score")}
        strays: list[str] = []
        for learner, other in ((trainer.roles.student, "fake_score"), (trainer.roles.fake_score, "student")):

            def watched(update: Any = learner.update, other: Any = other, strays: list[str] = strays) -> float:
                strays.extend(other for p in backbone.parameters(other) if p.grad is not None)
                return update()

            learner.update = watched  # type: ignore[method-assign]
        for iteration in range(2):
            trainer.step(prompts[: trainer.prompts_per_step], iteration)
        assert not strays
        for role, old in before.items():
            assert moved(old, [p.detach() for p in backbone.parameters(role)])  # type: ignore[arg-type]
    assert backbone.teacher_digest() == digest


def test_both_forms_of_stage_two_run(prompts: list[Prompt]) -> None:
    paper = ReinforceConfig(
        groups=4, group_size=8, logprob="exact", advantage="group_std", subset_scale="paper", subset_per="prompt",
        dm_steps="all", share_init=True, noise="independent",
    )  # fmt: skip
    for settings in (paper, ReinforceConfig(groups=4, group_size=8)):
        backbone, trainer = point_trainer(phase="reinforce", reinforce=settings)
        before = weights(backbone, "student")
        logs = trainer.step(PROMPTS[:4], 0)
        assert moved(before, weights(backbone, "student")) and all(abs(v) < 1e6 for v in logs.values())


@pytest.mark.parametrize("stage", [{}, reinforce(), reinforce(dm_steps="all"), reinforce(microbatch=8)])
def test_a_fixed_boundary_moves_the_student_in_both_stages(stage: dict[str, Any]) -> None:
    settings = {"cold_start": ColdStartConfig(batch_size=4, fake_score_updates=1), **stage}
    fixed = student_gradient(ac_dmd=AcDmdConfig(anchor="fixed_boundary", consistency_num_steps=2), **settings)
    assert fixed.isfinite().all() and not torch.equal(fixed, student_gradient(**settings))


def test_a_boundary_that_no_step_begins_at_is_refused() -> None:
    short = SamplerConfig(num_inference_steps=2)
    with pytest.raises(UserError, match=r"of the 2 steps of the student none begins at level 2"):
        point_trainer(sampler=short, ac_dmd=AcDmdConfig(anchor="fixed_boundary"))
    point_trainer(sampler=short, ac_dmd=AcDmdConfig(anchor="fixed_boundary", boundary=1))
    with pytest.raises(UserError, match="needs a stochastic sampler"):
        point_trainer(sampler=SamplerConfig(sampler="euler"), ac_dmd=AcDmdConfig(anchor="fixed_boundary"))


def test_rewards_are_weighted_and_scaled() -> None:
    loaded = {"a": ClosedFormMetric("a", 0, True), "b": ClosedFormMetric("b", 1, True)}
    bank = RewardBank([RewardConfig(id="a", weight=2.0), RewardConfig(id="b", scale=10.0)], loaded)  # type: ignore[arg-type]
    images = torch.rand(3, 3, 4, 4)
    scores = bank.score(images, [])
    assert torch.allclose(bank.total(scores), 2 * scores["a"] + scores["b"] / 10)
    assert torch.allclose(bank.total(scores, only=["b"]), scores["b"] / 10)
    assert subgrpo.advantages(scores, bank.weights, 3, "group_std").shape == (3,)


@pytest.mark.parametrize("stage", [{}, reinforce(), reinforce(microbatch=8, dm_steps="none")])
def test_first_step_loss_is_one_more_term_and_draws_nothing_where_it_is_off(stage: dict[str, Any]) -> None:
    fixed = {"cold_start": ColdStartConfig(batch_size=4, fake_score_updates=1), **stage}
    off = student_gradient(**fixed)
    on = student_gradient(dp_first_step=FirstStepConfig(weight=0.3), **fixed)
    twice = student_gradient(dp_first_step=FirstStepConfig(weight=0.6), **fixed)
    assert (on - off).abs().max() > 1e-5
    assert torch.allclose(twice - off, 2 * (on - off), rtol=1e-3, atol=1e-6)
    assert torch.equal(student_gradient(dp_first_step=FirstStepConfig(k_anchor=3), **fixed), off)


def test_reward_spread_is_logged_beside_the_mean() -> None:
    _, trainer = point_trainer(**reinforce())
    logs = trainer.step(PROMPTS[:4], 0)
    assert logs["reward_std/x1"] > 0 and "reward/x1" in logs
    assert reward_logs({"r": torch.tensor([1.0, 3.0])}, lambda rows: rows) == {"reward/r": 2.0, "reward_std/r": 1.0}
