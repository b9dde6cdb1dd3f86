"""One trained network: its parameters, AdamW, and an exponential moving average (EMA) of the weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.config import UserError, config

BUCKET = 2**24  # numbers that travel between processes at once: few messages, little memory
MENDS = {  # a training that diverged
    "student": "lower trainer.student.lr or look at the rewards",
    # a student that diverges shows here first where the fake score is trained before it
    "fake_score": "lower trainer.fake_score.lr, or trainer.student.lr, for it learns the student's samples",
}


@config
class OptimiserConfig:
    """AdamW at a constant rate."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # of all gradients together; 0 = no clipping
    warmup_updates: int = 0  # the rate rises linearly over so many updates

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.max_grad_norm < 0 or self.warmup_updates < 0:
            raise ValueError("lr must be above 0, max_grad_norm and warmup_updates at least 0")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("betas must lie in [0, 1), eps be above 0 and weight_decay at least 0")


@config
class EmaConfig:
    """EMA of the student; what is exported. decay 0 = the raw weights."""

    decay: float = 0.99
    every: int = 1  # iterations
    warmup: bool = False  # decay_n = min((1 + n) / (10 + n), decay) after n updates of the weights (Flow-GRPO's code)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.every < 1:
            raise ValueError("decay must lie in [0, 1) and every be at least 1")


class Learner:
    """Steps the parameters of the role `role`; `reduce` averages a tensor over processes, where there are several."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        settings: OptimiserConfig,
        ema: EmaConfig | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        role: Literal["student", "fake_score"] = "student",
    ) -> None:
        self.parameters = list(parameters)
        self.settings = settings
        self.ema = ema if ema and ema.decay > 0 else None
        self.updates = 0
        self._reduce = reduce
        self._role = role
        self._average = [p.detach().clone() for p in self.parameters] if self.ema else []
        self._optimiser = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self) -> float:
        """Take one step along the gradients that backward() left, clear them; return their norm before clipping.

        Raises UserError where that is not finite, in all processes alike; the weights are then as they were."""
        if self._reduce:
            self._average_gradients(self._reduce)
        limit = self.settings.max_grad_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):  # one step along it, and every weight is NaN
            raise UserError(f"the {self._name}'s gradient is not finite; {MENDS[self._role]}")
        self.updates += 1
        warm = min(1.0, self.updates / max(1, self.settings.warmup_updates))
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.lr * warm
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return norm

    def check(self) -> None:
        """Raise UserError where a weight is not finite: what the last update did shows in no later gradient."""
        if not all(p.isfinite().all() for p in self.parameters):
            raise UserError(f"the {self._name} has weights that are not finite; {MENDS[self._role]}")

    def average(self, iteration: int) -> None:
        """Update the EMA where it is due; call once per iteration, counted from 0."""
        if self.ema is None or (iteration + 1) % self.ema.every:
            return
        decay = self.ema.decay
        if self.ema.warmup:
            decay = min((1 + self.updates) / (10 + self.updates), decay)
        torch._foreach_lerp_(self._average, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the parameters hold their EMA, where there is one."""
        raw = [p.detach().clone() for p in self.parameters]
        self._copy(self._average or raw)
        try:
            yield
        finally:
            self._copy(raw)

    def adopt_average(self) -> None:
        """Continue from the EMA, as the next stage does."""
        self._copy(self._average or [p.detach() for p in self.parameters])

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser and EMA; resuming from it is bit-exact."""
        return {
            "parameters": [p.detach() for p in self.parameters],
            "optimiser": self._optimiser.state_dict(),
            "average": self._average,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._copy(state["parameters"])
        self._optimiser.load_state_dict(state["optimiser"])
        for mine, stored in zip(self._average, state["average"], strict=True):
            mine.copy_(stored)
        self.updates = state["updates"]

    def _average_gradients(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Replace every gradient by its mean over processes.

        One that is missing in some of them counts as 0 there (all images of a process may have been dropped), one
        that is missing in all stays missing."""
        missing = [p.grad is None for p in self.parameters]
        share = reduce(torch.tensor(missing, dtype=torch.float32, device=self.parameters[0].device))
        for bucket in _buckets(p for p, absent in zip(self.parameters, share.tolist(), strict=True) if absent < 1):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, part in zip(bucket, mean.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    @property
    def _name(self) -> str:
        return self._role.replace("_", " ")

    @torch.no_grad()
    def _copy(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Cut a list of parameters into runs of at most BUCKET numbers; a larger parameter is a run of its own."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
