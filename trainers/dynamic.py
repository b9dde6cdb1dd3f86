"""Dynamic schedules of DMDR's cold start: a teacher that leans on the fake score (DynaDG), an annealed re-noising law
(DynaRS). Both go from one end to the other along half a cosine of the student's updates i:

    d(i) = (1 + cos(pi min(i / T, 1))) / 2        1 at i = 0, 1/2 at T / 2, 0 from T on
    DynaDG   teacher = frozen base + s_r(i) · adapter of the fake score,   s_r(i) = s_r0 d(i)
    DynaRS   t ~ Beta(1 + (alpha - 1) d, 1 + (beta - 1) d)                 Beta(4, 1.5) -> Beta(1, 1)

At first the teacher is asked where it and the student still agree: near the student's distribution, at high noise.
Source: DMDR, Sec. 3.3, and its authors' code: the values, and the law, which is a Beta law (the code's option for it
is named logit_normal). Departure: levels lie in [0.001, 1], where the code's Beta law can return 0.
"""

import math
from typing import Literal

from benchmarks.config import config
from trainers.flow import RenoiseLaw

Kind = Literal["off", "dynamic", "fixed"]
LOW, HIGH = 0.001, 1.0  # of every law of t, the uniform one as well


@config
class DynaDgConfig:
    """How far the teacher leans on the fake score's adapter; which it needs unless it is off."""

    kind: Kind = "dynamic"  # fixed = s_r0 for the whole run
    scale: float = 0.5  # s_r0; 0.75 for SiT
    updates: int = 2000  # T_dyn, of the student

    def __post_init__(self) -> None:
        if self.scale < 0 or self.updates < 1:
            raise ValueError("scale must be at least 0 and updates 1")

    def lean(self, i: int) -> float | None:
        """Return s_r at the student's i-th update; None = no adapter is asked for."""
        if self.kind == "off":
            return None
        return self.scale * (decay(i, self.updates) if self.kind == "dynamic" else 1.0)


@config
class DynaRsConfig:
    """The law of the level t for both updates of a DMDR iteration."""

    kind: Kind = "dynamic"  # off = uniform; fixed = Beta(alpha, beta) for the whole run
    alpha: float = 4.0
    beta: float = 1.5
    updates: int = 2000  # T_dyn, of the student
    on: Literal["levels", "timesteps"] = "levels"  # what t is, see `trainers.flow.RenoiseLaw`; timesteps for SDXL

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) <= 0 or self.updates < 1:
            raise ValueError("alpha and beta must be above 0 and updates at least 1")

    def law(self, i: int) -> RenoiseLaw:
        """Return the law at the student's i-th update."""
        if self.kind == "off":
            return RenoiseLaw(low=LOW, high=HIGH, on=self.on)
        d = decay(i, self.updates) if self.kind == "dynamic" else 1.0
        return RenoiseLaw(
            kind="beta", a=1 + (self.alpha - 1) * d, b=1 + (self.beta - 1) * d, low=LOW, high=HIGH, on=self.on
        )


def decay(i: int, updates: int) -> float:
    """Return d(i) of the module's docstring."""
    return (1 + math.cos(math.pi * i / updates)) / 2 if i < updates else 0.0
