"""What every training of the micro world shares: draws that depend on (seed, step) alone, and checkpoints.

A run that was killed continues from its last checkpoint with the draws that the uninterrupted run would have made.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def numpy_rng(seed: int, step: int) -> np.random.Generator:
    """Return the numpy generator of one step."""
    return np.random.default_rng((seed, step))


def torch_rng(seed: int, step: int) -> torch.Generator:
    """Return the torch generator of one step."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
    )


def save_checkpoint(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the state after `step` steps, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Load the parts where a checkpoint exists; return the number of steps done."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def warm_stable_decay(step: int, steps: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Return the learning rate's factor: linear warm-up, constant, then linear to 0 over the last `decay`."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def set_rate(optimizers: Mapping[str, torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times the one it was made with."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


class Log:
    """Appends lines with the seconds since its making to a file, and prints them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._start = path, time.monotonic()

    def __call__(self, line: str) -> None:
        line = f"{time.monotonic() - self._start:7.0f} s  {line}"
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def to_floats(pictures_BHWC: np.ndarray) -> Tensor:
    """Return uint8 pictures [B, 64, 64, 3] as float32 [B, 3, 64, 64] in [-1, 1], as the autoencoder takes them."""
    return torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)
