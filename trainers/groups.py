"""Groups for relative advantages: N images of each prompt, and the noise that members share.

SubGRPO trains on a subset S of the stochastic steps. Steps outside S give every member of a group the same noise, so
that a difference in reward comes from the steps that are trained.

Source: RTDMD, stage II. The shared noise depends on (seed, epoch, step, prompt) alone, so members that live on
different processes share it as well. Axes: P prompts, N members, B = P N images in prompt order, K steps.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainers.draws import Draws, seeded

T = TypeVar("T")


def repeat_members(prompts: Sequence[T], group_size: int) -> list[T]:
    """Return each prompt N times in a row."""
    return [prompt for prompt in prompts for _ in range(group_size)]


def spread(prompts: Sequence[T], count: int) -> list[T]:
    """Return `count` prompts, evenly spread: those that processes choose from their shares are those of the whole."""
    return [prompts[n * len(prompts) // count] for n in range(count)]


def group_noise(
    texts_P: Sequence[str],
    group_size: int,
    shape: tuple[int, ...],
    independent_PK: Tensor,
    draws: Draws,
    epoch: int,
    device: torch.device,
) -> Callable[[int], Tensor]:
    """Return noise(k) -> [B, *shape]: drawn per member where independent_PK[p, k], else shared within the group.

    Column 0 is the initial noise, column k that of step k. Prompts must differ: equal ones would form two groups
    with the same shared noise."""

    def noise(k: int) -> Tensor:
        noise_PN = draws.rows(len(texts_P), lambda n, own: torch.randn(n, group_size, *shape, generator=own))
        for p, text in enumerate(texts_P):
            if not independent_PK[p, k]:
                noise_PN[p] = torch.randn(shape, generator=seeded(draws.seed, epoch, k, text))
        return noise_PN.flatten(0, 1).to(device)

    return noise
