"""Online DPO: its value at the reference, its sign, its pairs, and a verdict that it pushes up."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone
from trainers import dpo
from trainers.base import World
from trainers.dpo import Dpo, DpoConfig, DpoTerm, choose_pairs, dpo_loss
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank, RewardConfig

PROMPTS = [Prompt(text=str(n)) for n in range(8)]


class Shift(nn.Module):
    """v = theta, whatever the sample."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, t: Level) -> Tensor:
        return self.theta + 0 * x


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    winner, loser, eps = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return winner, loser, torch.rand(6, 1, generator=generator, dtype=torch.float64), eps


def test_at_the_reference_the_loss_is_ln_2_and_swapping_flips_the_gradient() -> None:
    winner, loser, t, eps = pairs()
    student, reference = Shift(0.3), Shift(0.3)
    loss = dpo_loss(student, reference, winner, loser, t, eps, 100.0)
    (gradient,) = torch.autograd.grad(loss, student.parameters())
    (swapped,) = torch.autograd.grad(dpo_loss(student, reference, loser, winner, t, eps, 100.0), student.parameters())
    assert loss.item() == pytest.approx(math.log(2)) and gradient.abs() > 0.1
    assert torch.allclose(swapped, -gradient)
    # d/dtheta -log sigmoid(-b/2 D) = b/4 dD/dtheta at D = 0, dD/dtheta = 2 mean(winner - loser)
    assert gradient.item() == pytest.approx(100 / 4 * 2 * (winner - loser).mean().item())


def test_off_the_reference_the_loss_is_its_formula() -> None:
    winner, loser, t, eps = pairs()

    def error(theta: float, x: Tensor) -> Tensor:
        return ((theta - (eps - x)) ** 2).mean(dim=1)

    delta = error(0.4, winner) - error(0.3, winner) - error(0.4, loser) + error(0.3, loser)
    expected = torch.log1p(torch.exp(0.5 * 7.0 * delta)).mean()
    assert torch.allclose(dpo_loss(Shift(0.4), Shift(0.3), winner, loser, t, eps, 7.0), expected)


def test_both_networks_see_winner_and_loser_at_the_same_level_with_the_same_noise() -> None:
    winner, loser, t, eps = pairs()
    seen: list[tuple[Tensor, Level]] = []
    network = lambda x, level: seen.append((x, level)) or 0 * x  # type: ignore[func-returns-value] # noqa: E731
    dpo_loss(network, network, winner, loser, t, eps, 1.0)
    assert len(seen) == 2
    for x_t, level in seen:
        assert torch.equal(torch.as_tensor(level), torch.cat([t, t]))
        assert torch.allclose(x_t, torch.cat([(1 - t) * winner + t * eps, (1 - t) * loser + t * eps]))


def test_pairs_are_best_and_worst_of_each_group_and_equal_ones_are_members_1_and_0() -> None:
    winner, loser = choose_pairs(torch.tensor([0.1, 0.9, 0.5, 2.0, 2.0, 2.0, 3.0, 1.0, 2.0]), 3)
    assert winner.tolist() == [1, 4, 6] and loser.tolist() == [0, 3, 7]


def trainer(rewards: RewardBank | None = None, **settings: Any) -> tuple[PointBackbone, Dpo]:
    torch.manual_seed(0)
    backbone = PointBackbone((0.0, 0.0), 0.5)
    bank = RewardBank([RewardConfig(id="x1")], {"x1": FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]
    rate = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)
    config = DpoConfig(student=rate, ema=EmaConfig(decay=0.0), dpo=DpoTerm(groups=8, beta=2.0, **settings))
    return backbone, Dpo(config, backbone, rewards or bank, World())


def test_the_preferred_side_grows_likelier_and_the_reference_stays() -> None:
    backbone, one = trainer()
    logs = [one.step(PROMPTS, iteration) for iteration in range(60)]
    assert logs[0]["rl_loss"] == pytest.approx(math.log(2), abs=1e-4)
    rewards = [each["reward/x1"] for each in logs]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.15
    assert not any(p.any() for p in backbone.networks["reference"].head.parameters())  # as at the start


def test_online_dpo_brings_the_reference_up_every_n_updates() -> None:
    backbone, one = trainer(reference_every=3)
    for iteration in range(3):
        one.step(PROMPTS, iteration)
    for mine, student in zip(backbone.parameters("reference"), backbone.parameters("student"), strict=True):
        assert torch.equal(mine, student)
    one.step(PROMPTS, 3)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(backbone.parameters("reference"), backbone.parameters("student"), strict=True)
    )


class Numbered(PointBackbone):
    """Student and reference make (n, n) of any noise for the prompt "n"."""

    def encode(self, prompts: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor([[float(prompt)] for prompt in prompts])

    def velocity(self, role: Any, x_t: Tensor, t: Level, prompts: Any, *rest: Any, **more: Any) -> Tensor:
        return (x_t - prompts) / t + 0 * self.networks["student"].head.bias


def test_winner_and_loser_are_images_of_one_prompt_and_both_are_asked_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(dpo, "dpo_loss", lambda *arguments: seen.append(arguments) or dpo_loss(*arguments))
    backbone = Numbered((0.0, 0.0), 0.5)
    bank = RewardBank([RewardConfig(id="x1")], {"x1": FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]
    Dpo(DpoConfig(dpo=DpoTerm(groups=8, group_size=3)), backbone, bank, World()).step(PROMPTS, 0)
    student, reference, winner, loser, *_ = seen[0]
    numbers = torch.arange(8.0)[:, None].expand(8, 2)
    assert torch.allclose(winner, numbers, rtol=0, atol=1e-5) and torch.allclose(loser, numbers, rtol=0, atol=1e-5)
    for network in (student, reference):  # at level 1 a sample's velocity is its distance from its prompt's image
        assert network(torch.cat([winner, loser]), 1.0).abs().max() < 1e-5


def test_no_reward_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"trainer.dpo needs a reward"):
        trainer(RewardBank([], {}))
