"""All randomness of a training run, in generators whose state a checkpoint holds: a resumed run draws on.

Noise is drawn on the CPU, so that the same seed gives the same run on any device. Every process draws the rows of all
of them and keeps its own: so n processes train on what one process would with n times the batch, and their generators
stay equal.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.samplers import Level


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator seeded by any tuple; sha256, because Python's own hash changes with every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Noise(Protocol):
    """What an objective draws for the samples of a batch."""

    def normal_like(self, x: Tensor) -> Tensor:
        """Return unit Gaussian noise of the shape, device and dtype of x."""
        ...

    def uniform(self, low: Level, high: Level, x: Tensor) -> Tensor:
        """Return levels in [low, high), one per sample of x, shaped [B, 1, ...]."""
        ...


class Draws:
    """Two streams: `own` for what differs between samples, `shared` for what is the same for all of them."""

    def __init__(self, seed: int | str, rank: int = 0, processes: int = 1) -> None:
        self.seed, self.rank, self.processes = seed, rank, processes
        self.own = seeded(seed, "own", 0)
        self.shared = seeded(seed, "shared")

    def rows(self, count: int, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """Return this process's `count` rows of those that draw(rows, generator) gives for all processes.

        All of them must ask for equally many."""
        return draw(count * self.processes, self.own)[self._own_rows(count)]

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return unit Gaussian noise, float32."""
        count, *latent = shape
        return self.rows(count, lambda n, own: torch.randn(n, *latent, generator=own)).to(device)

    def normal_like(self, x: Tensor) -> Tensor:
        """Return unit Gaussian noise of the shape, device and dtype of x."""
        return self.normal(tuple(x.shape), x.device).to(x.dtype)

    def uniform(self, low: Level, high: Level, x: Tensor) -> Tensor:
        """Return levels in [low, high), one per sample of x, shaped [B, 1, ...]."""
        return _levels(self.rows(len(x), lambda n, own: torch.rand(n, generator=own)), low, high, x)

    def indices(self, rows: int, count: int) -> Tensor:
        """Return whole numbers in [0, count), one for each of `rows` samples, on the CPU."""
        return self.rows(rows, lambda n, own: torch.randint(count, (n,), generator=own))

    def index(self, count: int) -> int:
        """Return a whole number in [0, count), the same in every process."""
        return int(torch.randint(count, (1,), generator=self.shared))

    def subset(self, count: int, size: int) -> Tensor:
        """Return a mask [1, count] with `size` random places set, the same in every process."""
        return torch.rand(1, count, generator=self.shared).argsort(dim=1) < size

    def subsets(self, rows: int, count: int, size: int) -> Tensor:
        """Return a mask [rows, count] with `size` random places set in each row."""
        u = torch.rand(rows * self.processes, count, generator=self.shared)[self._own_rows(rows)]
        return u.argsort(dim=1) < size

    def by_row(self, count: int, *key: int | str) -> "RowDraws":
        """Return draws of which each of `count` rows has its own, a function of (seed, key, row) alone.

        For batches that are cut apart or thinned out: what a row gets depends on neither."""
        rows = range(count * self.processes)[self._own_rows(count)]
        return RowDraws([seeded(self.seed, *key, row) for row in rows])

    def state_dict(self) -> dict[str, Tensor]:
        """Return both generators' states."""
        return {"own": self.own.get_state(), "shared": self.shared.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the states that `state_dict` gave."""
        self.own.set_state(state["own"])
        self.shared.set_state(state["shared"])

    def _own_rows(self, count: int) -> slice:
        return slice(self.rank * count, (self.rank + 1) * count)


class RowDraws:
    """One generator per sample; see `Draws.by_row`."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def select(self, rows: Tensor) -> "RowDraws":
        """Return the draws of some samples only; rows is an index tensor."""
        return RowDraws([self._generators[row] for row in rows.tolist()])

    def normal_like(self, x: Tensor) -> Tensor:
        """Return unit Gaussian noise of the shape, device and dtype of x."""
        return self._stack(lambda own: torch.randn(x.shape[1:], generator=own)).to(x)

    def uniform(self, low: Level, high: Level, x: Tensor) -> Tensor:
        """Return levels in [low, high), one per sample of x, shaped [B, 1, ...]."""
        return _levels(self._stack(lambda own: torch.rand((), generator=own)), low, high, x)

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self._generators])


def _levels(u: Tensor, low: Level, high: Level, x: Tensor) -> Tensor:
    return low + (high - low) * u.to(x).view(-1, *[1] * (x.ndim - 1))
