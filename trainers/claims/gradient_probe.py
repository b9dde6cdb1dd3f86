"""How noisy a policy gradient is: a stage that takes RTDMD's gradients at fixed weights, and no step along them.

    tr Cov(g)        over the epochs of the stage, unbiased, logged as gradient_variance

Of all epochs the weights are those that the stage began with. tr Cov(g) of two estimators says something where both
expect the same gradient. So a probe's advantage is the reward less its group's mean and nothing else (a division by
its deviation, which shared noise makes smaller, would change what is expected): SubGRPO with its factor (K-1)/M and
GRPO then both expect (N-1)/N grad J. tr Cov(g) / |E g|^2, which would need no such care, is beyond any
probe of the micro world: after 130 epochs the mean of the gradients is all noise still.
Axes: B images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.config import UserError
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Logs, World, register
from trainers.rewards import RewardBank
from trainers.rtdmd import Rtdmd, RtdmdConfig


@register("gradient_probe")
class GradientProbe(Rtdmd):
    """RTDMD's stage II, whose student gives its gradients to be counted instead of following them."""

    def __init__(self, config: RtdmdConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        c = config.reinforce
        if config.phase != "reinforce" or c.dm_steps != "none" or c.det_term:
            raise UserError(
                'gradient_probe takes the policy gradient alone: set phase = "reinforce", dm_steps = "none" and '
                "det_term = false"
            )
        if c.subset_scale != "paper" or c.advantage != "centred" or c.zero_advantage != "keep":
            raise UserError(
                'gradient_probe compares estimators of one gradient: set subset_scale = "paper", '
                'advantage = "centred" and zero_advantage = "keep"'
            )
        if world.processes > 1:
            raise UserError("gradient_probe counts the gradients of one process: start it in one")
        super().__init__(config, backbone, rewards, world)
        self._count, self._squares = 0, 0.0
        self._sum = [torch.zeros_like(p, dtype=torch.float64) for p in self.roles.student.parameters]
        self.roles.student.update = self._take  # type: ignore[method-assign]  # the one place where weights change

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Take the gradient of one epoch; the log holds the variance from the second one on."""
        logs = super().step(prompts, iteration)
        return logs | ({"gradient_variance": self.variance()} if self._count > 1 else {})

    def variance(self) -> float:
        """Return tr Cov(g) of the gradients taken so far, at least two."""
        of_mean = sum(float((one / self._count).square().sum()) for one in self._sum)
        return (self._squares / self._count - of_mean) * self._count / (self._count - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return super().state_dict() | {"count": self._count, "squares": self._squares, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        super().load_state_dict(state)
        self._count, self._squares = state["count"], state["squares"]
        for mine, stored in zip(self._sum, state["sum"], strict=True):
            mine.copy_(stored)

    def _take(self) -> float:
        """Count the gradient that backward() left and clear it; return its norm."""
        gradients: list[Tensor] = []
        for parameter, total in zip(self.roles.student.parameters, self._sum, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(gradient)
            total += gradient
            parameter.grad = None
        square = sum(float(one.double().square().sum()) for one in gradients)
        self._count, self._squares = self._count + 1, self._squares + square
        return square**0.5
