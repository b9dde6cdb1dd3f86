"""All randomness of a training run, in generators whose state a checkpoint holds: a resumed run draws on.

Noise is drawn on the CPU, so that the same seed gives the same run on any device.
"""

import hashlib

import torch
from torch import Tensor

from benchmarks.samplers import Level


def seeded(*parts: int | str) -> torch.Generator:
    """Return a generator seeded by any tuple; sha256, because Python's own hash changes with every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Draws:
    """Two streams: `own` differs between processes (noise), `shared` is equal on all (which step to train)."""

    def __init__(self, seed: int | str, rank: int = 0) -> None:
        self.seed = seed
        self.own = seeded(seed, "own", rank)
        self.shared = seeded(seed, "shared")

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return unit Gaussian noise, float32."""
        return torch.randn(shape, generator=self.own).to(device)

    def normal_like(self, x: Tensor) -> Tensor:
        """Return unit Gaussian noise of the shape, device and dtype of x."""
        return self.normal(tuple(x.shape), x.device).to(x.dtype)

    def uniform(self, low: Level, high: Level, x: Tensor) -> Tensor:
        """Return levels in [low, high), one per sample of x, shaped [B, 1, ...]."""
        u = torch.rand(len(x), generator=self.own).to(x)
        return low + (high - low) * u.view(-1, *[1] * (x.ndim - 1))

    def index(self, count: int) -> int:
        """Return a whole number in [0, count), the same in every process."""
        return int(torch.randint(count, (1,), generator=self.shared))

    def subsets(self, rows: int, count: int, size: int) -> Tensor:
        """Return a mask [rows, count] with `size` random places set in each row, the same in every process."""
        order = torch.rand(rows, count, generator=self.shared).argsort(dim=1)
        return order < size

    def state_dict(self) -> dict[str, Tensor]:
        """Return both generators' states."""
        return {"own": self.own.get_state(), "shared": self.shared.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the states that `state_dict` gave."""
        self.own.set_state(state["own"])
        self.shared.set_state(state["shared"])
