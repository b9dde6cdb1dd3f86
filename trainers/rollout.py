"""Running the student through its own sampler, step by step, as it will be benchmarked.

Every step's input is detached, so a gradient reaches the student through the one call that made the step: the
score-function term must not see the steps before (they have terms of their own), and the direct term through
earlier steps would count their noise twice. A chained rollout keeps the graph from step to step instead: for losses
on the end of a deterministic one.
Axes: B images, then any latent axes. Steps count from 1 to K, step k from level t_{k-1} to t_k.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.protocol import Protocol
from benchmarks.samplers import Transition, sigma_grid, transition
from trainers.flow import Velocity


@dataclass(frozen=True)
class Step:
    """Step k of a rollout: the call's input and output, and the Gaussian move it led to."""

    k: int
    t: float
    t_next: float
    x_t: Tensor  # detached, unless chained
    v: Tensor
    move: Transition
    x_next: Tensor  # carries the gradient of this step's call where one was asked for

    @property
    def x0(self) -> Tensor:
        """The x0-prediction of this step."""
        return self.x_t - self.t * self.v

    def rows(self, rows: Tensor) -> "Step":
        """Return the step of some images only; rows is an index tensor."""
        move = Transition(self.move.mean[rows], self.move.std)
        return replace(self, x_t=self.x_t[rows], v=self.v[rows], move=move, x_next=self.x_next[rows])


def rollout(
    velocity: Velocity,
    x: Tensor,
    protocol: Protocol,
    noise: Callable[[int], Tensor],
    last: int | None = None,
    grad: Collection[int] = (),
    chain: bool = False,
    cut: Collection[int] = (),
) -> list[Step]:
    """Sample from x [B, ...] at the first level; return steps 1 .. `last` (default: all).

    noise(k) gives step k's noise [B, ...]; calls of the steps in `grad` keep their graph. With `chain` a step's input
    keeps the graph of the step before as well, where that one is in `grad` and not in `cut`."""
    levels = sigma_grid(protocol)
    steps: list[Step] = []
    for k in range(1, (last or len(levels) - 1) + 1):
        t, t_next = levels[k - 1], levels[k]
        with torch.set_grad_enabled(k in grad):
            v = velocity(x, t)
            move = transition(protocol, x, v, t, t_next)
            x_next = move.sample(noise(k)) if move.stochastic else move.mean
        steps.append(Step(k, t, t_next, x, v, move, x_next))
        x = x_next if chain and k in grad and k not in cut else x_next.detach()
    return steps


def rollout_in_parts(
    velocity: Callable[[Tensor], Velocity],
    x: Tensor,
    protocol: Protocol,
    noise: Callable[[int], Tensor],
    size: int,
    grad: Collection[int] = (),
) -> list[Step]:
    """Return all steps of `rollout` from x [B, ...], made of at most `size` images at a time; their draws are one.

    velocity(rows): the network with the prompts of the images bound that an index tensor names."""
    drawn = cache(noise)
    parts = [
        rollout(velocity(rows), x[rows], protocol, lambda k, rows=rows: drawn(k)[rows], grad=grad)  # type: ignore[misc]
        for rows in torch.arange(len(x)).split(size)
    ]
    return parts[0] if len(parts) == 1 else [_joined(steps) for steps in zip(*parts, strict=True)]


def _joined(parts: Sequence[Step]) -> Step:
    move = Transition(torch.cat([part.move.mean for part in parts]), parts[0].move.std)
    x_t, v, x_next = (torch.cat([getattr(part, name) for part in parts]) for name in ("x_t", "v", "x_next"))
    return replace(parts[0], x_t=x_t, v=v, move=move, x_next=x_next)


def replay(velocity: Velocity, step: Step, protocol: Protocol) -> Step:
    """Return the step with its call made again, now with a graph; the images stay what they were.

    For networks whose graphs of a whole rollout do not fit into memory."""
    v = velocity(step.x_t, step.t)
    move = transition(protocol, step.x_t, v, step.t, step.t_next)
    # the same draw, written as mean + what the noise added, so that x_next follows the mean's gradient
    return replace(step, v=v, move=move, x_next=move.mean + (step.x_next - step.move.mean).detach())
