"""Protocol: all that decides the pixels besides the weights; hashed, and carried by every checkpoint.

A checkpoint folder holds its own `protocol.json` (how the model is meant to be sampled); a suite's task and the
command line override single fields. Samplers and schedules: `benchmarks/samplers.py`.
"""

import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Literal

from benchmarks.config import UserError, as_table, build, config

FILE_NAME = "protocol.json"
Sampler = Literal["euler", "cps", "renoise", "flow_sde", "native"]
Dtype = Literal["float32", "bfloat16", "float16"]


@config
class Protocol:
    """How a (prompt, seed) becomes an image. Raises ValueError for values out of range."""

    sampler: Sampler = "native"  # native = the scheduler that the model's folder configures
    num_inference_steps: int = 28
    guidance_scale: float = 1.0  # s in uncond + s (cond - uncond); 1 = off, one network pass per step
    eta: float = 0.0  # of CPS: 0 = Euler ODE, 1 = consistency re-noising; of Flow-SDE: its noise level
    sigmas: tuple[float, ...] = ()  # explicit noise levels, first > ... > last > 0, the final 0 left out
    shift: float = 1.0  # t' = k t / (1 + (k - 1) t); of the evenly spaced grid when `sigmas` is empty
    height: int = 64  # pixels
    width: int = 64
    dtype: Dtype = "float32"
    negative_prompt: str = ""
    # Arguments of the pipeline's own call, such as max_sequence_length
    call_arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    seed: int = 0  # the suite's seed: an image's noise is drawn from (seed, prompt id, image index)

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError("num_inference_steps must be at least 1")
        if not 0 <= self.eta <= 1:
            raise ValueError("eta must lie in [0, 1]")
        if self.guidance_scale < 0 or self.shift <= 0:
            raise ValueError("guidance_scale must be at least 0 and shift above 0")
        if self.sigmas:
            falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
            if not falling or self.sigmas[-1] <= 0 or self.sigmas[0] > 1:
                raise ValueError("sigmas must fall strictly within (0, 1]")
            if len(self.sigmas) != self.num_inference_steps:
                raise ValueError("sigmas must hold num_inference_steps values")

    @property
    def guided(self) -> bool:
        """Whether a step takes two network passes: guidance is off at 0 and at 1, as in the authors' code."""
        return self.guidance_scale > 1

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical JSON form."""
        text = json.dumps(as_table(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_protocol(folder: Path) -> Protocol | None:
    """Return the protocol a checkpoint carries, None where it carries none. Raises UserError for a bad file."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected an object of protocol fields")
    return build(Protocol, table, str(path))


def write_protocol(protocol: Protocol, folder: Path) -> None:
    """Write `protocol.json` into a checkpoint folder."""
    text = json.dumps(as_table(protocol), indent=2, sort_keys=True)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
