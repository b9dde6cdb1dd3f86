"""What a method asks of its networks: a backbone that notes every call, and what a call may be held to.

A test states the calls of one step as rows of `Asked`, in their order; `check_calls` compares. A law of levels is
written as t = f(u), u uniform in [0, 1]: the levels of a batch, sorted, lie along it.
Axes: B points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.stats
import torch
from torch import Tensor

from benchmarks.samplers import Level
from tests.trainers.closed_form import PointBackbone
from trainers.backbones.base import Role

Law = Callable[[Tensor], Tensor]
SAME = "same"  # the very points and levels of the call before


@dataclass(frozen=True)
class Call:
    """One call of a network, as it was made and answered."""

    role: str
    prompts: tuple[str, ...]
    guidance_scale: float
    fake_scale: float | None
    x_t: Tensor
    t: Tensor  # [B, 1]
    v: Tensor
    graph: bool  # whether a gradient may go back through the answer

    @property
    def x0(self) -> Tensor:
        """The point that the answer leads to, without graph."""
        return self.x_t - self.t * self.v


@dataclass(frozen=True)
class Asked:
    """What one call, or one after the other at several levels, must have been."""

    role: str  # "features": of the fake score's, for a discriminator
    at: tuple[float, ...] | Law | str  # one call for each level; or one whose levels follow a law, or SAME
    w: Any = 1.0  # guidance scale, a number or pytest.approx
    s: Any = None  # scale of the fake score's adapter
    graph: bool = False
    of: tuple[str, ...] | None = None  # prompts; None = those of the batch
    drawn: bool = False  # prompts are some of the batch's, in an order of their own
    one: bool = False  # one level for the whole batch


class RecordingBackbone(PointBackbone):
    """Notes every call. Its teacher is N((1, -1/2), I / 4); no trained network begins at 0, so every call matters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__((1.0, -0.5), 0.5)
        self.calls: list[Call] = []
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for network in self.networks.values():
                for parameter in network.parameters():
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def encode(self, prompts: Sequence[str]) -> Any:
        return tuple(prompts)

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: Any,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        v = super().velocity(role, x_t, t, len(prompts))
        self._note(role, prompts, guidance_scale, fake_scale, x_t, t, v)
        return v

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: Any) -> Tensor:
        assert role == "fake_score"
        found = super().features(role, x_t, t, len(prompts))
        self._note("features", prompts, 1.0, None, x_t, t, found)
        return found

    def _note(
        self, role: str, prompts: Any, w: float, s: float | None, x_t: Tensor, t: Level, answer: Tensor
    ) -> None:
        level = torch.as_tensor(t, dtype=x_t.dtype).reshape(-1, 1).expand(len(x_t), 1)
        graph = answer.requires_grad
        self.calls.append(Call(role, prompts, w, s, x_t.detach(), level, answer.detach(), graph))


def uniform(low: float, high: float, shift: float = 1.0) -> Law:
    """U[low, high], then shifted."""

    def law(u: Tensor) -> Tensor:
        t = low + (high - low) * u
        return shift * t / (1 + (shift - 1) * t)

    return law


def logit_normal(low: float, high: float) -> Law:
    """sigmoid(N(0, 1)), clamped."""
    return lambda u: torch.sigmoid(torch.special.ndtri(u)).clamp(low, high)


def beta(a: float, b: float) -> Law:
    """Beta(a, b) of DMDR, whose levels lie in [0.001, 1]."""
    return lambda u: torch.from_numpy(scipy.stats.beta.ppf(u.numpy(), a, b)).clamp(0.001, 1.0)


def above(s: float) -> Law:
    """AC-DMD's law above level s: U[s + .01, 1], clamped to [.02, .98]."""
    return lambda u: uniform(s + 0.01, 1.0)(u).clamp(0.02, 0.98)


def any_of(*parts: float | Law) -> Law:
    """One of several levels or laws, all of them equally likely; they are given upwards and do not overlap."""

    def law(u: Tensor) -> Tensor:
        scaled = u * len(parts)
        n = scaled.long().clamp(max=len(parts) - 1)
        values = [part(scaled - n) if callable(part) else torch.full_like(u, part) for part in parts]
        return torch.stack(values)[n, torch.arange(len(u))]

    return law


def check_levels(levels: Tensor, law: Law) -> None:
    """Hold levels [B] to a law: the mean distance of its quantiles, and its ends."""
    count = len(levels)
    quantiles = law((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    distance = (levels.double().sort().values - quantiles).abs().mean().item()
    assert distance < 0.75 / count**0.5, f"levels lie {distance:.3f} from their law"
    ends = torch.tensor([0.0, 8 / count, 1 - 8 / count, 1.0], dtype=torch.float64)
    low, low_by, high_by, high = law(ends).tolist()  # that no level of so many lies beyond 8 / count: e^-8
    assert low - 1e-6 <= levels.min() <= low_by + 1e-6 and high_by - 1e-6 <= levels.max() <= high + 1e-6


def check_calls(calls: Sequence[Call], asked: Sequence[Asked], batch: tuple[str, ...]) -> None:
    """Hold the calls of a step over the prompts `batch` to a table."""
    rows = [(row, at) for row in asked for at in (row.at if isinstance(row.at, tuple) else (row.at,))]
    seen = [(call.role, call.graph, call.guidance_scale, call.fake_scale) for call in calls]
    assert seen == [(row.role, row.graph, row.w, row.s) for row, _ in rows]
    for n, (call, (row, at)) in enumerate(zip(calls, rows, strict=True)):
        where = f"call {n}, {row.role}"
        if row.drawn:
            assert set(call.prompts) <= set(batch) and call.prompts != batch, where
        else:
            assert call.prompts == (batch if row.of is None else row.of), where
        if at == SAME:
            assert torch.equal(call.x_t, calls[n - 1].x_t) and torch.equal(call.t, calls[n - 1].t), where
        elif callable(at) and not row.one:
            check_levels(call.t[:, 0], at)
        elif callable(at):
            low, high = at(torch.tensor([0.0, 1.0])).tolist()
            assert len(call.t.unique()) == 1 and low <= call.t[0, 0] <= high, where
        else:
            assert torch.allclose(call.t, torch.tensor(at), atol=1e-4), f"{where}: {call.t.unique()}, not {at}"
