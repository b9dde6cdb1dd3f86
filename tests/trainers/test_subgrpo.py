import math

import pytest
import torch
from torch import Tensor

from benchmarks.samplers import Transition
from trainers import subgrpo
from trainers.draws import Draws
from trainers.rollout import Step
from trainers.subgrpo import advantages, clipped_loss, log_prob, policy_loss


def step_of(mean: Tensor, std: float, x_next: Tensor, k: int = 1) -> Step:
    return Step(k, 1.0, 0.5, x_next, x_next, Transition(mean, std), x_next)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_exact_log_prob_is_the_normal_density_summed() -> None:
    mean, x = draw(5, 4, 3), draw(5, 4, 3, seed=1)
    expected = torch.distributions.Normal(mean, 0.7).log_prob(x).flatten(1).sum(dim=1)
    assert torch.allclose(log_prob(step_of(mean, 0.7, x), "exact"), expected, rtol=1e-5)


def test_simplified_and_exact_gradients_are_proportional() -> None:
    mean, x, std = draw(5, 4, 3).requires_grad_(), draw(5, 4, 3, seed=1), 0.7
    exact, simplified = (
        torch.autograd.grad(log_prob(step_of(mean, std, x), kind).sum(), mean)[0] for kind in ("exact", "simplified")
    )
    assert torch.allclose(exact, 12 / (2 * std**2) * simplified)


def test_log_prob_carries_no_gradient_of_the_sample() -> None:
    mean = draw(2, 3).requires_grad_()
    step = step_of(mean, 0.5, mean + 0.5 * draw(2, 3, seed=1))
    (found,) = torch.autograd.grad(log_prob(step, "exact").sum(), mean)
    assert torch.allclose(found, draw(2, 3, seed=1) / 0.5)  # would be 0 if x_next moved with the mean


def test_clipped_loss_at_ratio_one_has_the_policy_gradient() -> None:
    log_probs, advantage = draw(6).requires_grad_(), draw(6, seed=1)
    loss = clipped_loss(log_probs, log_probs.detach(), advantage, 1e-5)
    assert torch.equal(loss, -advantage)
    (found,) = torch.autograd.grad(loss.sum(), log_probs)
    assert torch.allclose(found, -advantage)
    (flipped,) = torch.autograd.grad(clipped_loss(log_probs, log_probs.detach(), -advantage, 1e-5).sum(), log_probs)
    assert torch.allclose(flipped, -found)


@pytest.mark.parametrize(("advantage", "moved", "alive"), [(1.0, 0.2, False), (1.0, -0.2, True), (-1.0, -0.2, False)])
def test_clipping_stops_moves_that_went_far_enough(advantage: float, moved: float, alive: bool) -> None:
    log_probs = torch.tensor([moved], requires_grad=True)
    loss = clipped_loss(log_probs, torch.zeros(1), torch.tensor([advantage]), 0.1)
    assert bool(torch.autograd.grad(loss.sum(), log_probs)[0].any()) == alive


def test_advantages_have_group_mean_zero() -> None:
    scores = {"a": draw(24), "b": 100 * draw(24, seed=1)}
    for kind in ("per_reward_global_std", "group_std"):
        groups = advantages(scores, {"a": 1.0, "b": 0.5}, 8, kind).view(3, 8)  # type: ignore[arg-type]
        assert groups.mean(dim=1).abs().max() < 1e-9 and groups.std() > 0.5


def test_advantage_forms_differ_in_whose_deviation_divides() -> None:
    reward = torch.tensor([0.0, 1.0, 0.0, 10.0], dtype=torch.float64)
    by_group = advantages({"r": reward}, {"r": 1.0}, 2, "group_std")
    assert by_group.tolist() == pytest.approx([-0.7071, 0.7071, -0.7071, 0.7071], abs=1e-3)
    by_epoch = advantages({"r": reward}, {"r": 1.0}, 2, "per_reward_global_std")
    assert (by_epoch[3] / by_epoch[1]).item() == pytest.approx(10, rel=1e-6)
    assert by_epoch.std().item() == pytest.approx(1, abs=1e-3)  # whitened again over the epoch


def test_rewards_of_different_scale_weigh_by_their_weights_alone() -> None:
    a, b = draw(16), draw(16, seed=1)
    same = [advantages({"a": a, "b": c * b}, {"a": 1.0, "b": 1.0}, 8, "per_reward_global_std") for c in (1.0, 1e3)]
    assert torch.allclose(*same, rtol=0, atol=1e-3)


def test_each_reward_is_divided_by_its_own_deviation_over_all_images() -> None:
    """Between groups too: a reward that mostly differs from prompt to prompt counts for less within them."""
    a, b = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0.0, 2.0, 0.0, 4.0])
    found = advantages({"a": a, "b": b}, {"a": 1.0, "b": 0.5}, 2, "per_reward_global_std")
    parts = torch.tensor([-0.5, 0.5, -0.5, 0.5]) / (a.std() + 1e-4)
    parts = parts + 0.5 * torch.tensor([-1.0, 1.0, -2.0, 2.0]) / (b.std() + 1e-4)
    assert torch.allclose(found, parts / (parts.std() + 1e-4))


def test_centred_advantages_are_divided_by_nothing() -> None:
    found = advantages({"a": torch.tensor([1.0, 3.0, 10.0, 20.0])}, {"a": 2.0}, 2, "centred")
    assert found.tolist() == [-2.0, 2.0, -10.0, 10.0]


@pytest.mark.parametrize("kind", ["per_reward_global_std", "group_std"])
def test_equal_rewards_in_a_group_give_exact_zeros(kind: subgrpo.Advantage) -> None:
    generator = torch.Generator().manual_seed(0)
    for constant in torch.rand(
        50, generator=generator
    ).tolist():  # the mean of equal numbers is often not that number
        score = torch.cat([torch.full((24,), constant), torch.rand(24, generator=generator)])
        found = advantages({"r": score}, {"r": 1.0}, 24, kind)
        assert not found[:24].any() and found[24:].all()
    assert not advantages({"r": torch.full((48,), 0.3)}, {"r": 1.0}, 24, kind).any()


def test_equal_rewards_leave_the_student_unchanged() -> None:
    mean = draw(8, 3).requires_grad_()
    step = step_of(mean, 0.5, draw(8, 3, seed=1))
    nothing = advantages({"r": torch.ones(8)}, {"r": 1.0}, 4, "group_std")
    (found,) = torch.autograd.grad(
        policy_loss([step], torch.ones(8, 1, dtype=torch.bool), nothing, "exact", 1e-5), mean
    )
    assert not found.any()


def test_subsets_have_their_size_and_are_drawn_per_epoch_or_prompt() -> None:
    draws = Draws(0)
    epochs = torch.stack([subgrpo.choose_steps(5, 3, 2, "epoch", draws) for _ in range(300)])
    assert (epochs.sum(dim=2) == 2).all() and (epochs == epochs[:, :1]).all()
    assert epochs[:, 0].float().mean(dim=0).tolist() == pytest.approx([2 / 3] * 3, abs=0.1)
    prompts = subgrpo.choose_steps(300, 3, 1, "prompt", draws)
    assert (prompts.sum(dim=1) == 1).all() and prompts.float().mean(dim=0).min() > 0.25


# Toy of three steps: x_k = x_{k-1} + theta + sigma eps, r = x_3^2, J = 9 theta^2 + 3 sigma^2, dJ/dtheta = 18 theta.
THETA, STEPS = 0.3, 3


def toy_gradients(m: int, n: int, sigma: float, shared: bool, baseline: str, groups: int = 30_000) -> Tensor:
    """Return the estimator's value for each of many groups of n."""
    generator = torch.Generator().manual_seed(m)
    draws = Draws(m)
    subset_PK = subgrpo.choose_steps(groups, STEPS, m, "prompt", draws)
    eps = torch.randn(groups, n, STEPS, dtype=torch.float64, generator=generator)
    if shared:
        eps = torch.where(subset_PK[:, None, :], eps, eps[:, :1])
    theta_B = torch.full((groups * n, 1), THETA, dtype=torch.float64, requires_grad=True)
    x, steps = torch.zeros(groups * n, 1, dtype=torch.float64), []
    for k in range(STEPS):
        mean = x + theta_B
        x = (mean + sigma * eps[:, :, k].reshape(-1, 1)).detach()
        steps.append(step_of(mean, sigma, x, k + 1))
    reward = x.square().view(groups, n)
    centred = {
        "none": reward,
        "group": reward - reward.mean(dim=1, keepdim=True),
        "leave_one_out": (reward - reward.mean(dim=1, keepdim=True)) * n / (n - 1),
    }[baseline]
    subset_BK = subset_PK.repeat_interleave(n, dim=0)
    loss = policy_loss(steps, subset_BK, centred.flatten(), "exact", 1e-5, scale=STEPS / m)
    (gradient,) = torch.autograd.grad(-loss, theta_B)
    return (gradient * len(theta_B)).view(groups, n).mean(dim=1)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("baseline", "expected"), [("none", 5.4), ("leave_one_out", 5.4), ("group", 4.05)])
def test_subgrpo_is_unbiased(m: int, shared: bool, baseline: str, expected: float) -> None:
    found = toy_gradients(m, 4, 0.5, shared, baseline)
    assert abs(found.mean() - expected) < 3 * found.std() / math.sqrt(len(found))


def test_all_steps_chosen_is_grpo_for_the_same_draws() -> None:
    assert torch.equal(toy_gradients(3, 4, 0.5, True, "group", 500), toy_gradients(3, 4, 0.5, False, "group", 500))


@pytest.mark.parametrize(
    ("m", "shared", "variance"), [(1, True, 55.44), (1, False, 65.88), (2, True, 46.44), (2, False, 44.55)]
)
def test_shared_noise_changes_the_variance_as_computed(m: int, shared: bool, variance: float) -> None:
    found = toy_gradients(m, 4, 0.5, shared, "leave_one_out", groups=150_000)
    squares = (found - found.mean()).square()
    assert abs(squares.mean() - variance) < 3 * squares.std() / math.sqrt(len(found))


@pytest.mark.parametrize(("through", "expected"), [(False, 2.0), (True, 3.0)])
def test_score_function_and_pathwise_parts_add_up_only_if_the_last_input_is_detached(
    through: bool, expected: float
) -> None:
    """x_1 ~ N(theta, sigma^2), x_0 = theta x_1, r = x_0: J = theta^2; gradient through x_1 too counts it twice."""
    theta = torch.full((400_000, 1), 0.8, dtype=torch.float64, requires_grad=True)
    sigma, noise = 0.5, draw(400_000, 1)
    step = step_of(theta.expand_as(noise), sigma, theta + sigma * noise)
    reward = theta * (step.x_next if through else step.x_next.detach())
    advantage = (reward - reward.mean()).detach().flatten()
    stochastic = policy_loss([step], torch.ones(len(theta), 1, dtype=torch.bool), advantage, "exact", 1e-5)
    (gradient,) = torch.autograd.grad(reward.mean() - stochastic, theta)
    per_sample = gradient.flatten() * len(theta)
    assert abs(per_sample.mean() - expected * 0.8) < 4 * per_sample.std() / math.sqrt(len(theta))
