"""SubGRPO: policy gradient over a random subset of the sampler's stochastic steps.

    grad J = (K-1)/M · 1/N sum_i sum_{k in S} A_i grad log pi_k(x_k | x_{k-1}),   |S| = M

A step is a Gaussian policy N(mu, sigma^2) with mu from the student's call. With S = all K - 1 steps it is GRPO.
Source: RTDMD, stage II ("paper" forms), and its authors' code ("code" forms): clipped ratio (PPO), log-probability
without 1 / (2 sigma^2) as a mean over dimensions, advantages per reward by the standard deviation of the whole epoch,
no factor (K-1)/M. The two log-probabilities differ by D / (2 sigma^2) per step, so weights do not carry over. "mean"
is the exact one divided by D, and "global_std" one deviation for the total reward: Flow-GRPO's forms of both.
Axes: P prompts, N members of a group, B = P N images, K steps.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from trainers.draws import Draws
from trainers.rollout import Step

LogProb = Literal["simplified", "exact", "mean"]
Advantage = Literal["per_reward_global_std", "global_std", "group_std", "centred"]
EPSILON = 1e-4  # added to standard deviations, as Flow-GRPO does


def choose_steps(prompts: int, stochastic: int, size: int, per: Literal["epoch", "prompt"], draws: Draws) -> Tensor:
    """Return a mask [P, K-1] of S: `size` of the stochastic steps, one subset for all prompts or one for each."""
    if per == "epoch":
        return draws.subset(stochastic, size).expand(prompts, -1)
    return draws.subsets(prompts, stochastic, size)


def advantages(
    scores: Mapping[str, Tensor], weights: Mapping[str, float], group_size: int, kind: Advantage
) -> Tensor:
    """Return A [B] of rewards [B] whose groups are consecutive; its mean over every group is 0.

    per_reward_global_std: each reward is centred in its group and divided by its deviation over all images, the
    weighted sum is divided by its own. global_std and group_std: the weighted reward is centred in its group and
    divided by its deviation over all images or within the group. centred: it is divided by nothing (Dr. GRPO), which
    alone leaves the policy gradient unbiased but for the factor (N-1)/N. Deviations have n - 1 in the denominator;
    Flow-GRPO's code has n, which group_std alone would notice: A times sqrt((N-1)/N)."""
    if kind != "per_reward_global_std":
        total_PN = torch.stack([weights[name] * scores[name] for name in scores]).sum(dim=0).view(-1, group_size)
        if kind == "centred":
            return _centred(total_PN).flatten()
        std = total_PN.std(dim=1, keepdim=True) if kind == "group_std" else total_PN.std()
        return (_centred(total_PN) / (std + EPSILON)).flatten()
    parts = []
    for name, score in scores.items():
        centred = _centred(score.view(-1, group_size)).flatten()
        parts.append(weights[name] * centred / (score.std() + EPSILON))
    total = torch.stack(parts).sum(dim=0)
    return total / (total.std() + EPSILON)


def log_prob(step: Step, kind: LogProb) -> Tensor:
    """Return log pi(x_next) [B] of a stochastic step; the gradient reaches the mean, never the sample."""
    x_next = step.x_next.detach()
    if kind != "simplified":
        return step.move.log_prob(x_next) / (x_next[0].numel() if kind == "mean" else 1)
    return -((x_next - step.move.mean) ** 2).flatten(1).mean(dim=1)


def clipped_loss(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """Return PPO's clipped loss per image; at the first update (ratio 1) its gradient is -A grad log pi."""
    ratio = torch.exp(log_prob_B - old_log_prob_B)
    return torch.maximum(-advantage_B * ratio, -advantage_B * ratio.clamp(1 - clip, 1 + clip))


def policy_loss(
    steps: Iterable[Step], subset_BK: Tensor, advantage_B: Tensor, kind: LogProb, clip: float, scale: float = 1.0
) -> Tensor:
    """Return the loss whose gradient is -scale · mean_B sum_{k in S} A grad log pi_k.

    Images whose S lacks a step count as 0 in that step's mean. scale = (K-1)/M makes the gradient that of all steps,
    in expectation over S."""
    losses = []
    for step in steps:
        log_prob_B = log_prob(step, kind)
        # One update per rollout: the old policy is the present one, so the ratio is exactly 1 here.
        loss_B = clipped_loss(log_prob_B, log_prob_B.detach(), advantage_B.to(log_prob_B), clip)
        losses.append((subset_BK[:, step.k - 1].to(loss_B) * loss_B).mean())
    return scale * torch.stack(losses).sum()


def _centred(reward_PN: Tensor) -> Tensor:
    # A group of equal rewards must give exact zeros: the rounding of its mean would be blown up by the division.
    equal_P1 = reward_PN.amax(dim=1, keepdim=True) == reward_PN.amin(dim=1, keepdim=True)
    return torch.where(equal_P1, 0.0, reward_PN - reward_PN.mean(dim=1, keepdim=True))
