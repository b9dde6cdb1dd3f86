"""RT-DM's weights: mean 1, no gradient, clamped; and the running statistics behind them."""

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from tests.trainers.closed_form import ClosedFormMetric
from trainers.dmd import student_loss
from trainers.flow import Velocity
from trainers.rewards import RewardBank, RewardConfig, RunningStatistics
from trainers.rt_dm import RtDmConfig, reward_weights, unclamped_weights

BANK = RewardBank(
    [RewardConfig(id="a", weight=2.0, scale=4.0), RewardConfig(id="b")],
    {"a": ClosedFormMetric("a", 0, True), "b": ClosedFormMetric("b", 1, True)},  # type: ignore[dict-item]
)
SCORES = {"a": torch.tensor([0.1, 0.4, 0.3, 0.9]), "b": torch.tensor([5.0, 1.0, 2.0, 7.0])}


def weights(kind: str, scores: dict[str, Tensor] = SCORES, **settings: float) -> Tensor:
    statistics = RunningStatistics()
    statistics.update(scores)
    return unclamped_weights(scores, BANK, statistics, RtDmConfig(kind=kind, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["exp", "linear", "none"])
def test_weights_have_mean_1_before_clamping_and_a_constant_reward_leaves_them_at_1(kind: str) -> None:
    assert weights(kind).mean().item() == pytest.approx(1, abs=1e-6)
    constant = {name: torch.full((4,), 0.3) for name in SCORES}
    assert torch.allclose(weights(kind, constant), torch.ones(4), rtol=0, atol=1e-6)


def test_exp_weights_are_softmax_of_the_normalised_total() -> None:
    def z(score: Tensor) -> Tensor:
        return (score - score.mean()) / (score.std(correction=0) + 1e-4)

    r = (2 * z(SCORES["a"]) + z(SCORES["b"])) / 0.5
    assert torch.allclose(weights("exp", temperature=0.5), 4 * r.exp() / r.exp().sum(), rtol=0, atol=1e-5)


def test_the_other_forms_use_raw_rewards_on_their_scales() -> None:
    total = 0.5 * SCORES["a"] + SCORES["b"]
    assert torch.allclose(weights("linear"), total / total.mean())
    assert torch.allclose(weights("raw_exp", temperature=2.0), (total / 2).exp())
    with pytest.raises(UserError, match=r'rt_dm.kind = "linear" needs rewards above 0'):
        weights("linear", {name: -score for name, score in SCORES.items()})


def test_weights_are_clamped_and_carry_no_gradient() -> None:
    scores = {name: score.clone().requires_grad_() for name, score in SCORES.items()}
    statistics = RunningStatistics()
    statistics.update(scores)
    w = reward_weights(scores, BANK, statistics, RtDmConfig(low=0.5, high=1.5))
    assert not w.requires_grad and w.min() == 0.5 and w.max() == 1.5


def gradient(weight: Tensor | float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    teacher: Velocity = lambda x, t: 0.5 * x  # noqa: E731
    fake: Velocity = lambda x, t: 0.2 * x + 1  # noqa: E731
    x0.requires_grad_()
    t = torch.rand(4, 1, generator=generator, dtype=torch.float64)
    loss = student_loss(x0, teacher, fake, t, eps, weight=weight)
    (found,) = torch.autograd.grad(loss, x0)
    return loss.detach(), found


def test_a_weight_of_1_is_plain_dmd_and_doubling_one_doubles_its_row() -> None:
    (loss, plain), (loss_1, ones) = gradient(1.0), gradient(torch.ones(4, 1))
    assert torch.allclose(loss, loss_1, rtol=0, atol=1e-7) and torch.allclose(plain, ones, rtol=0, atol=1e-7)
    doubled = gradient(torch.tensor([[1.0], [2.0], [1.0], [1.0]]))[1]
    assert torch.allclose(doubled[1], 2 * plain[1], rtol=0, atol=1e-9) and plain[1].any()
    assert torch.equal(doubled[[0, 2, 3]], plain[[0, 2, 3]])


def test_running_statistics_are_decayed_means_without_bias() -> None:
    statistics = RunningStatistics(decay=0.5)
    statistics.update({"a": torch.tensor([1.0, 3.0])})
    assert statistics.mean_and_std("a") == pytest.approx((2.0, 1.0))
    statistics.update({"a": torch.tensor([8.0, 8.0])})
    mean = (0.25 * 2 + 0.5 * 8) / 0.75
    square = (0.25 * 5 + 0.5 * 64) / 0.75
    assert statistics.mean_and_std("a") == pytest.approx((mean, (square - mean**2) ** 0.5))
    resumed = RunningStatistics(decay=0.5)
    resumed.load_state_dict(statistics.state_dict())
    assert resumed.mean_and_std("a") == statistics.mean_and_std("a")


def test_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="low <= 1 <= high"):
        build(RtDmConfig, {"low": 2.0}, "x.toml")
