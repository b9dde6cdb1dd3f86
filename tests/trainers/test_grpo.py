"""GRPO: KL on a hand case, ratios, what an update trains on, and a verdict that it pushes up."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from benchmarks.protocol import Protocol
from benchmarks.samplers import Transition, flow_sde
from metrics.base import Prompt
from tests.trainers.closed_form import Counted, FirstCoordinate, PointBackbone
from trainers import grpo as grpo_module
from trainers import subgrpo
from trainers.base import SamplerConfig, SdeSamplerConfig, World
from trainers.dmd import DmdConfig
from trainers.dmdr import DmdrConfig
from trainers.dpo import DpoConfig
from trainers.group_rollout import gathered_advantages
from trainers.grpo import Grpo, GrpoConfig, GrpoEpoch, GrpoTerm, ask_again, collect, grpo_loss, kl_to_reference
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.refl import ReflConfig
from trainers.rewards import RewardBank, RewardConfig
from trainers.rollout import Step

PROMPTS = [Prompt(text=str(n)) for n in range(16)]


class Verdict(FirstCoordinate):
    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return (images[:, 0] > 0).float()


def bank(metric: FirstCoordinate | None = None) -> RewardBank:
    return RewardBank([RewardConfig(id="x1")], {"x1": metric or FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]


def trainer(rewards: RewardBank | None = None, seed: int = 0, **settings: Any) -> tuple[PointBackbone, Grpo]:
    torch.manual_seed(seed)
    backbone = PointBackbone((0.0, 0.0), 0.5)
    with torch.no_grad():
        for parameter in backbone.parameters("student"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rate = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)
    base = GrpoConfig(student=rate, ema=EmaConfig(decay=0.0), grpo=GrpoTerm(groups=16, group_size=8))
    return backbone, Grpo(replace(base, **settings), backbone, rewards or bank(), World(seed))


def step_of(mean: Tensor, x_next: Tensor, std: float = 0.5) -> Step:
    return Step(1, 0.8, 0.6, torch.zeros_like(mean), torch.zeros_like(mean), Transition(mean, std), x_next)


def test_kl_is_the_mean_square_of_the_means_over_twice_the_variance() -> None:
    protocol = Protocol(sampler="renoise", num_inference_steps=4)
    x = torch.tensor([[1.0, 2.0]])
    # re-noising: mean = (1 - t') (x - t v) = .4 (x - .8 v); student v = 1, reference v = 0, std .6
    step = Step(1, 0.8, 0.6, x, torch.ones(1, 2), Transition(0.4 * (x - 0.8), 0.6), x)
    kl = kl_to_reference(step, lambda x_t, t: torch.zeros_like(x_t), protocol, "variance")
    assert kl.tolist() == pytest.approx([0.32**2 / (2 * 0.36)])
    kl = kl_to_reference(step, lambda x_t, t: torch.zeros_like(x_t), protocol, "flow_grpo")
    assert kl.tolist() == pytest.approx([0.32**2 / (2 * 0.36 / 0.2)])


def test_flow_grpos_divisor_is_c_squared_of_flow_sde() -> None:
    protocol = Protocol(sampler="flow_sde", eta=0.7, num_inference_steps=4)
    x, v = torch.ones(1, 2), torch.ones(1, 2)
    move = flow_sde(x, v, 0.8, 0.6, 0.7)
    other = flow_sde(x, 0 * v, 0.8, 0.6, 0.7)
    kl = kl_to_reference(Step(1, 0.8, 0.6, x, v, move, x), lambda x_t, t: 0 * x_t, protocol, "flow_grpo")
    c_squared = 0.7**2 * 0.8 / 0.2
    assert kl.tolist() == pytest.approx([((move.mean - other.mean) ** 2).mean().item() / (2 * c_squared)])


def test_mean_log_prob_is_the_exact_one_over_the_dimensions() -> None:
    mean, x_next = torch.zeros(3, 2, 5), torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    step = step_of(mean, x_next)
    expected = torch.distributions.Normal(mean, 0.5).log_prob(x_next).mean(dim=(1, 2))
    assert torch.allclose(subgrpo.log_prob(step, "mean"), expected, rtol=1e-5)


def test_global_advantages_share_one_deviation() -> None:
    scores = {"a": torch.tensor([1.0, 3.0, 10.0, 20.0]), "b": torch.zeros(4)}
    found = subgrpo.advantages(scores, {"a": 2.0, "b": 1.0}, 2, "global_std")
    total = 2 * scores["a"]
    assert torch.allclose(found, torch.tensor([-2.0, 2.0, -10.0, 10.0]) / (total.std() + 1e-4))


def gradient(**settings: Any) -> Tensor:
    backbone, one = trainer(**settings)
    found: list[Tensor] = []
    one.roles.student.update = lambda: (  # type: ignore[method-assign]
        found.append(torch.cat([p.grad.flatten() for p in backbone.parameters("student")]))  # type: ignore[union-attr]
        or 0.0
    )
    one.step(PROMPTS, 0)
    return found[0]


def test_a_single_update_on_the_rollouts_graphs_is_that_of_microbatches_asked_again() -> None:
    term = GrpoTerm(groups=16, group_size=8, kl_weight=0.04)
    whole = gradient(grpo=term)
    assert whole.any() and torch.allclose(gradient(grpo=replace(term, microbatch=24)), whole, rtol=1e-4, atol=1e-8)


def test_no_call_is_of_more_images_than_a_microbatch() -> None:
    backbone = Counted((0.0, 0.0), 0.5)
    term = GrpoTerm(groups=4, group_size=8, kl_weight=0.04, microbatch=5)
    Grpo(GrpoConfig(grpo=term), backbone, bank(), World(0)).step(PROMPTS[:4], 0)
    most = {role: max(count for name, count, _ in backbone.calls if name == role) for role, *_ in backbone.calls}
    assert most == dict.fromkeys(("student", "decoder", "reference"), 5)


def test_at_ratio_1_the_gradient_is_minus_the_advantage_times_that_of_the_log_probability() -> None:
    backbone, one = trainer()
    x_t, x_next = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(3)).unbind()
    v = backbone.velocity("student", x_t, 0.8, 4).detach()
    old = Step(1, 0.8, 0.6, x_t, v, Transition(0.4 * (x_t - 0.8 * v), 0.6), x_next)
    again = ask_again(one.roles.velocity("student", PROMPTS[:4]), old, one.protocol())
    assert again.x_next is x_next and again.v.requires_grad
    new = subgrpo.log_prob(again, "mean")
    assert torch.allclose(new, subgrpo.log_prob(old, "mean"), rtol=0, atol=1e-6)
    advantage = torch.tensor([1.0, -2.0, 0.5, 0.0])
    loss = subgrpo.clipped_loss(new, new.detach(), advantage, 1e-4).sum()
    parameters = backbone.parameters("student")
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    expected = torch.autograd.grad(-(advantage * new).sum(), parameters)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_another_calls_rounding_is_no_move_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 rounds by more than the clip range; the first update's ratio is 1 all the same."""
    term = GrpoTerm(groups=4, group_size=4, clip=1e-6)
    backbone, one = trainer(grpo=term)
    epoch = collect(PROMPTS[:4], one._rollout, one.roles, one.rewards, term, World(), graphs=False)
    again = grpo_module.ask_again

    def rounded(*arguments: Any) -> Step:
        step = again(*arguments)
        return replace(step, move=replace(step.move, mean=step.move.mean + 1e-3))

    def gradient(clip: float, unchanged: bool) -> torch.Tensor:
        c = replace(term, clip=clip)
        loss = grpo_loss(epoch, epoch.kept, one._rollout, one.roles, c, unchanged)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, backbone.parameters("student"))])

    monkeypatch.setattr(grpo_module, "ask_again", rounded)
    whole = gradient(1e-6, unchanged=True)
    assert torch.equal(whole, gradient(1.0, unchanged=True)) and whole.any()
    assert gradient(1e-6, unchanged=False).norm() < 0.9 * whole.norm()  # where it counts as a move, half is clipped


def test_later_updates_of_an_epoch_are_clipped_where_the_policy_has_moved() -> None:
    term = GrpoTerm(groups=16, group_size=8, clip=1e-9)
    backbone, one = trainer(grpo=term, updates=2)
    calls: list[bool] = []
    velocity = backbone.velocity
    backbone.velocity = lambda role, *a, **k: calls.append(torch.is_grad_enabled()) or velocity(role, *a, **k)  # type: ignore[method-assign,func-returns-value]
    one.step(PROMPTS, 0)
    assert one.roles.student.updates == 2
    assert calls == [False] * 4 + [True] * 6  # K rollout calls, then K - 1 calls for each half


def test_the_last_step_is_not_trained_and_groups_without_contrast_are_dropped() -> None:
    class Never(FirstCoordinate):
        def __call__(self, images: Tensor, prompts: Any) -> Tensor:
            return torch.zeros(len(images))

    backbone, one = trainer(bank(Never("x1", 0, False)))
    before = [p.detach().clone() for p in backbone.parameters("student")]
    assert one.step(PROMPTS, 0)["kept"] == 0 and one.roles.student.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters("student"), strict=True))


def test_weights_make_every_update_a_mean_over_the_kept_images() -> None:
    advantage = torch.tensor([1.0, -1.0, 0.0, 0.0, 2.0, -1.0, -1.0, 0.0])
    epoch = GrpoEpoch(None, advantage, everyone=advantage)  # type: ignore[arg-type]
    assert epoch.kept.tolist() == [0, 1, 4, 5, 6] and epoch.weight(5, 1) == pytest.approx(1)
    assert sum(epoch.weight(len(rows), 1) for rows in epoch.kept.split(2)) == pytest.approx(1)
    assert [part.tolist() for part in epoch.parts(2)] == [[0, 4, 6], [1, 5]]
    halves = [epoch.weight(len(part), 2) for part in epoch.parts(2)]
    assert halves == pytest.approx([6 / 5, 4 / 5])


def test_processes_put_an_image_into_the_update_that_one_process_would() -> None:
    """Of the kept images 0, 1, 3, 4, 5 and 6 every second one."""
    advantage = torch.tensor([1.0, -1.0, 0.0, 0.5, 2.0, -1.0, -1.0, 0.0])
    own = [GrpoEpoch(None, advantage[n : n + 4], advantage, first=n) for n in (0, 4)]  # type: ignore[arg-type]
    assert [[part.tolist() for part in one.parts(2)] for one in own] == [[[0, 3], [1]], [[1], [0, 2]]]
    for update in range(2):
        together = [one.weight(len(one.parts(2)[update]), 2) for one in own]
        assert sum(together) / 2 == pytest.approx(1)  # processes' gradients are averaged


def test_every_process_has_images_in_every_update() -> None:
    advantage = torch.ones(24)
    for first in range(0, 24, 6):
        one = GrpoEpoch(None, advantage[:6], advantage, first=first)  # type: ignore[arg-type]
        assert [len(part) for part in one.parts(2)] == [3, 3]


def test_advantages_lie_within_their_limit() -> None:
    scores = {"x1": torch.tensor([0.0, 0.0, 0.0, 8.0, 8.0, 8.0, 8.0, 0.0])}
    found, everyone = gathered_advantages(scores, bank(), 4, "global_std", 0.5, World())
    assert found.min() == -0.5 and found.max() == 0.5 and torch.equal(everyone, found)


@pytest.mark.parametrize("kind", ["global_std", "group_std", "centred"])
def test_advantages_are_of_rewards_on_one_scale(kind: subgrpo.Advantage) -> None:
    settings = [RewardConfig(id="x1"), RewardConfig(id="pick", weight=2.0, scale=26.0)]
    both = RewardBank(settings, {"x1": FirstCoordinate("x1", 0, True), "pick": FirstCoordinate("pick", 1, True)})  # type: ignore[dict-item]
    scores = {"x1": torch.tensor([0.1, 0.3, 0.2, 0.2]), "pick": torch.tensor([20.0, 20.0, 21.0, 22.0])}
    found, _ = gathered_advantages(scores, both, 2, kind, 5.0, World())
    total = scores["x1"] + 2 / 26 * scores["pick"]
    alone, _ = gathered_advantages({"x1": total}, bank(), 2, kind, 5.0, World())
    assert torch.allclose(found, alone, atol=1e-6)


def test_a_verdict_climbs_and_the_kl_holds_it_back() -> None:
    def climb(kl_weight: float) -> float:
        _, one = trainer(bank(Verdict("x1", 0, False)), grpo=GrpoTerm(groups=16, group_size=8, kl_weight=kl_weight))
        rewards = [one.step(PROMPTS, iteration)["reward/x1"] for iteration in range(50)]
        return sum(rewards[-10:]) / 10 - sum(rewards[:5]) / 5

    free = climb(0.0)
    assert free > 0.15 and climb(100.0) < 0.5 * free


def test_a_guided_student_is_guided_everywhere_and_may_be_used_otherwise_than_trained() -> None:
    backbone, one = trainer(
        student_guidance=4.5,
        sampler=SdeSamplerConfig(sampler="flow_sde", eta=0.7, num_inference_steps=3),
        inference=SamplerConfig(sampler="euler", num_inference_steps=8),
    )
    scales: list[float] = []
    velocity = backbone.velocity

    def watched(role: Any, x_t: Tensor, t: Any, prompts: int, guidance_scale: float = 1.0, fake_scale: Any = None):
        scales.append(guidance_scale)
        return velocity(role, x_t, t, prompts, guidance_scale, fake_scale)

    backbone.velocity = watched  # type: ignore[method-assign]
    assert math.isfinite(one.step(PROMPTS, 0)["rl_loss"]) and set(scales) == {4.5}
    use = one.protocol()
    assert (use.sampler, use.num_inference_steps, use.guidance_scale) == ("euler", 8, 4.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": SamplerConfig(sampler="euler")}, "stochastic sampler"),
        ({"sampler": SdeSamplerConfig(sampler="flow_sde", eta=0.0)}, "stochastic sampler"),
        ({"sampler": SamplerConfig(sampler="renoise", num_inference_steps=1)}, "num_inference_steps to 2"),
    ],
)
def test_samplers_that_leave_nothing_to_train_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(**settings)


def test_flow_sde_is_for_rollouts_of_grpo_alone() -> None:
    table = {"sampler": {"sampler": "flow_sde", "eta": 0.7}}
    assert build(GrpoConfig, table, "grpo.toml").sampler.sampler == "flow_sde"
    for other in (DmdConfig, DpoConfig, ReflConfig, DmdrConfig):
        with pytest.raises(UserError, match=r"sampler: Input should be 'cps', 'euler' or 'renoise', not 'fl"):
            build(other, table, "other.toml")
