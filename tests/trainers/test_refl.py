"""ReFL: the hinge's gradient, SRPO's combined feature, the regulariser, and a reward that climbs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError
from benchmarks.protocol import Protocol
from metrics.base import Prompt
from tests.trainers.closed_form import ClosedFormMetric, FirstCoordinate, PointBackbone, reward_bank
from trainers.backbones.base import Role
from trainers.base import SamplerConfig, World
from trainers.draws import Draws
from trainers.flow import RenoiseLaw
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.refl import Refl, ReflConfig, ReflTerm, SrpoConfig, hinge_loss, self_pretrain_loss
from trainers.rewards import RewardBank, RewardConfig

PROMPTS = [Prompt(text=str(n)) for n in range(16)]
RATE = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)


def bank(metric: ClosedFormMetric | None = None, **settings: float) -> RewardBank:
    loaded = {"x1": metric or FirstCoordinate("x1", 0, True)}
    return RewardBank([RewardConfig(id="x1", **settings)], loaded)  # type: ignore[arg-type]


def trainer(rewards: RewardBank | None = None, **settings: object) -> tuple[PointBackbone, Refl]:
    torch.manual_seed(0)
    backbone = PointBackbone((0.0, 0.0), 0.5)
    config = ReflConfig(**{"batch_size": 16, "student": RATE, "ema": EmaConfig(decay=0.0), **settings})
    return backbone, Refl(config, backbone, rewards or bank(), World())


def test_the_hinge_pushes_what_lies_below_the_margin_and_nothing_else() -> None:
    r = torch.tensor([0.2, 0.6, 0.8, 0.9], dtype=torch.float64, requires_grad=True)
    loss = hinge_loss({"x1": r}, bank(weight=3.0), margin=0.7)
    loss.backward()
    assert loss.item() == pytest.approx(3 * (0.5 + 0.1) / 4)
    assert r.grad is not None and r.grad.tolist() == pytest.approx([-0.75, -0.75, 0, 0])


def two(**of_b: float | None) -> RewardBank:
    metrics = {name: FirstCoordinate(name, 0, True) for name in "ab"}
    return RewardBank([RewardConfig(id="a"), RewardConfig(id="b", weight=3.0, **of_b)], metrics)  # type: ignore[arg-type]


def test_a_reward_may_have_a_margin_of_its_own() -> None:
    scores = {name: torch.tensor([0.2, 0.6, 1.6]) for name in "ab"}
    own = hinge_loss(scores, two(margin=0.5, scale=2.0), margin=0.7)
    assert own.item() == pytest.approx((0.5 + 0.1) / 3 + 3 * (0.4 + 0.2) / 3)
    assert torch.equal(hinge_loss(scores, two(margin=0.7), 0.7), hinge_loss(scores, two(), 0.7))


def test_a_margin_that_no_reward_is_held_to_is_refused() -> None:
    own = bank(margin=0.5)
    trainer(own)
    trainer(two(margin=0.5), refl=ReflTerm(margin=0.3))  # of "a"
    with pytest.raises(UserError, match=r"trainer.refl.margin: every reward has a margin of its own"):
        trainer(own, refl=ReflTerm(margin=0.3))


def test_a_rewards_scale_divides_it_before_the_margin() -> None:
    r = torch.tensor([20.0, 30.0], requires_grad=True)
    hinge_loss({"x1": r}, bank(scale=26.0), margin=1.0).backward()
    assert r.grad is not None and r.grad.tolist() == pytest.approx([-1 / 26 / 2, 0.0])


def test_a_reward_above_its_margin_leaves_the_student_alone() -> None:
    backbone, one = trainer(refl=ReflTerm(margin=-100.0))
    before = [p.detach().clone() for p in backbone.parameters("student")]
    logs = one.step(PROMPTS, 0)
    assert logs["rl_loss"] == 0 and logs["student_norm"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters("student"), strict=True))


def test_the_reward_climbs() -> None:
    _, one = trainer(refl=ReflTerm(margin=100.0), sampler=SamplerConfig(num_inference_steps=2))
    rewards = [one.step(PROMPTS, iteration)["reward/x1"] for iteration in range(40)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5


class Reader(ClosedFormMetric):
    """r = x_1 · (length of the text that the metric is shown)."""

    def __init__(self) -> None:
        super().__init__("x1", 0, True)
        self.read: list[str] = []
        self.looks = 0  # at pictures, whatever number of texts they were held against

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.read += [prompt.text for prompt in prompts]
        return images[:, 0] * torch.tensor([float(len(prompt.text)) for prompt in prompts])

    def rewards(self, images: Tensor, several: Sequence[Sequence[Prompt]]) -> list[Tensor]:
        self.looks += 1
        return super().rewards(images, several)


def test_srpo_is_one_plus_k_praised_less_the_dispraised_reward() -> None:
    srpo = SrpoConfig(k=0.1, positive=("++ ", "+ "), negative=("- ",))
    metric = Reader()
    _, one = trainer(bank(metric), refl=ReflTerm(text="srpo", srpo=srpo))
    logs = one.step(PROMPTS, 0)
    praised, dispraised = metric.read[:16], metric.read[16:]
    assert metric.looks == 1
    assert {text.split()[0] for text in praised} == {"++", "+"}
    assert dispraised == [f"- {prompt.text}" for prompt in PROMPTS]
    factors = [1.1 * len(a) - len(b) for a, b in zip(praised, dispraised, strict=True)]
    _, same = trainer(bank(), refl=ReflTerm())
    seen: list[Tensor] = []
    score = same.rewards.score
    same.rewards.score = lambda images, *a, **k: seen.append(images[:, 0]) or score(images, *a, **k)  # type: ignore[method-assign,func-returns-value]
    same.step(PROMPTS, 0)
    combined = seen[0] * torch.tensor(factors)
    assert logs["srpo/x1"] == pytest.approx(combined.mean().item(), rel=1e-5)
    assert logs["srpo_std/x1"] == pytest.approx(combined.std(correction=0).item(), rel=1e-5)
    assert not any(name.startswith("reward") for name in logs)  # the metric's own value was never asked for


def test_a_prefix_is_read_before_every_prompt() -> None:
    metric = Reader()
    rewards = RewardBank([RewardConfig(id="x1", prompt_prefix="Realistic photo ")], {"x1": metric})  # type: ignore[dict-item]
    rewards.score(torch.zeros(2, 2), PROMPTS[:2])
    assert metric.read == ["Realistic photo 0", "Realistic photo 1"] and PROMPTS[0].text == "0"


def test_the_regulariser_holds_the_student_to_what_it_was() -> None:
    def reward(**settings: object) -> float:
        backbone, one = trainer(refl=ReflTerm(margin=100.0, **settings))  # type: ignore[arg-type]
        for iteration in range(25):
            logs = one.step(PROMPTS, iteration)
        assert ("regulariser_loss" in logs) == bool(settings)
        assert all(p.grad is None and not p.requires_grad for p in backbone.parameters("reference"))
        return logs["reward/x1"]

    assert reward(regulariser="self_pretrain", regulariser_weight=20.0) < 0.5 * reward()


def test_both_terms_have_their_weights() -> None:
    def logs(**settings: object) -> dict[str, float]:
        term = ReflTerm(margin=100.0, regulariser="self_pretrain", **settings)  # type: ignore[arg-type]
        return trainer(refl=term)[1].step(PROMPTS, 0)

    plain, weighted = logs(), logs(weight=3.0, regulariser_weight=20.0)
    assert weighted["rl_loss"] == pytest.approx(3 * plain["rl_loss"])
    assert weighted["regulariser_loss"] == pytest.approx(20 * plain["regulariser_loss"]) and plain["rl_loss"] > 0


def test_a_student_of_many_steps_is_guided_and_trained_from_a_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two of four even steps begin at 0.5 and 0.25; each is trained now and then, and no other."""
    sampler = SamplerConfig(sampler="euler", num_inference_steps=4)
    backbone, one = trainer(sampler=sampler, student_guidance=7.0, first_step=3)
    asked, velocity = list[tuple[float, float, bool]](), backbone.velocity

    def seen(role: Role, x_t: Tensor, t: float, *args: object, guidance_scale: float, **named: object) -> Tensor:
        asked.append((t, guidance_scale, torch.is_grad_enabled()))
        return velocity(role, x_t, t, *args, guidance_scale=guidance_scale, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "velocity", seen)
    for iteration in range(12):
        one.step(PROMPTS, iteration)
    assert {guidance for _, guidance, _ in asked} == {7.0}
    assert {t for t, _, trained in asked if trained} == {0.5, 0.25}
    assert (one.protocol().guidance_scale, one.protocol().num_inference_steps) == (7.0, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_step": 5}, "first_step must lie in 1 to sampler.num_inference_steps"),
        ({"first_step": 2, "x0_source": "renoised_rollout"}, "leave one of them out"),
    ],
)
def test_a_first_step_that_is_never_reached_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReflConfig(**settings)  # type: ignore[arg-type]


def test_the_regularisers_samples_are_the_references() -> None:
    """The reference makes x0 = 3 of everything; a student that predicts v = 0 misses eps - 3 by 1 + 9 in the mean."""
    protocol = SamplerConfig(sampler="euler", num_inference_steps=2).protocol(Protocol())
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    loss = self_pretrain_loss(
        lambda x, t: torch.zeros_like(x), lambda x, t: (x - 3) / t, z, protocol, Draws(0), RenoiseLaw(), torch.clone
    )
    assert loss.item() == pytest.approx(10, rel=0.05)


def test_a_metric_of_which_less_is_better_is_negated() -> None:
    metric = FirstCoordinate("x1", 0, True)
    metric.card = replace(metric.card, higher_is_better=False)
    points = torch.tensor([[0.3, 0.0], [-2.0, 0.0]])
    assert bank(metric).score(points, PROMPTS[:2])["x1"].tolist() == pytest.approx([-0.3, 2.0])


def test_rewards_without_gradient_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"trainer.refl needs a differentiable reward"):
        trainer(reward_bank(redness=False, judge=True))
    with pytest.raises(UserError, match=r"no gradient reaches reward judge: leave it out, or train by grpo"):
        trainer(reward_bank(judge=True))  # it would be called trained on, and was not
    with pytest.raises(UserError, match=r"srpo.rewards: 'hps' is not among"):
        trainer(refl=ReflTerm(srpo=SrpoConfig(rewards=("hps",))))
