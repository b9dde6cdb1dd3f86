"""The first-step loss: the student's first step goes where the teacher's trajectory from the same noise goes.

    z_a = the teacher's guided ODE (Euler) for K_a of its T steps from z at t_0, down to level t_a
    velocity   v* = (z - z_a) / (t_0 - t_a)                  L = mean (v_student(z, t_0) - v*)^2
    x0         x0* = z_a - t_a v_teacher(z_a, t_a)           L = mean (z - t_0 v_student(z, t_0) - x0*)^2 / scale^2

What is decided at high noise (layout) decides diversity, and distribution matching may narrow it; the anchor holds
the first step to all that the teacher makes of its noise. `velocity` is the flow form: one Euler step of a student
with v = v* lands on z_a, and with K_a = T it aims at the teacher's picture. `x0` is the form for eps models: through
the exact bridge from VP to flow (benchmarks/vp.py) x0 is the same number, so it needs no code of its own.

Source: DP-DMD, its diversity loss in flow and in diffusion form. Departures: the teacher's prediction at the anchor
is guided like its steps, unless `anchor_guided` is false (the paper does not say); the x0 form may be divided by
scale^2, which the paper does not do: with scale = b_T / a_T (14.6 for SDXL) it is a mean square of eps, and a weight
means the same in both families.
Axes: B samples, then any latent axes.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.config import UserError, config
from benchmarks.protocol import Protocol
from benchmarks.samplers import euler, sigma_grid
from trainers.base import Networks
from trainers.flow import Velocity, x0_from_v
from trainers.schedules import Schedule, step_levels


@config
class FirstStepConfig:
    """Settings of the first-step loss."""

    weight: float = 0.0  # λ; 0 = off
    k_anchor: int = 5  # K_a, steps of the teacher; teacher_steps = all the way to its picture
    teacher_steps: int = 30  # T
    schedule: Schedule = "diffusers_n"  # of the teacher's levels
    shift: float = 1.0  # of the teacher's levels; 3 for SD3
    sigmas: tuple[float, ...] = ()  # the levels that its K_a steps end at, instead of schedule and shift
    form: Literal["velocity", "x0"] = "velocity"
    scale: float = 1.0  # of the x0 form
    anchor_guided: bool = True  # of the x0 form: the teacher's prediction at its anchor, like its steps to there
    REPLACES: ClassVar = {"sigmas": ("schedule", "shift"), "k_anchor": ("sigmas",)}

    def __post_init__(self) -> None:
        if self.weight < 0 or self.scale <= 0 or self.shift <= 0:
            raise ValueError("weight must be at least 0, scale and shift above 0")
        if self.sigmas and len(self.sigmas) != self.k_anchor:
            raise ValueError("sigmas must hold k_anchor values")
        if any(not 0 <= after < level for level, after in pairwise((1.0, *self.sigmas))):
            raise ValueError("sigmas must fall strictly within [0, 1)")
        if not 1 <= self.k_anchor <= self.teacher_steps:
            raise ValueError("k_anchor must lie in 1 .. teacher_steps")
        if self.form == "x0" and self.k_anchor == self.teacher_steps:
            raise ValueError('form = "x0" asks the teacher at its anchor: k_anchor must be below teacher_steps')
        if self.form == "velocity" and not self.anchor_guided:
            raise ValueError('anchor_guided is of form = "x0": form = "velocity" asks nothing at the anchor')

    def levels(self, t_0: float) -> list[float]:
        """Return the K_a + 1 levels of the way from t_0 to the anchor."""
        laid = self.sigmas or (*step_levels(self.schedule, self.teacher_steps, self.shift)[1:], 0.0)
        return [t_0, *laid[: self.k_anchor]]

    def check(self, protocol: Protocol) -> None:
        """Raise UserError where the teacher would have to step upwards from the level that the student starts at."""
        t_0, first = self.levels(sigma_grid(protocol)[0])[:2]
        if self.weight and first >= t_0:
            raise UserError(f"first_step: the teacher's first step ends at {first:g}, the student starts at {t_0:g}")


def teacher_anchor(teacher: Velocity, z: Tensor, levels: Sequence[float]) -> Tensor:
    """Return z_a [B, ...]: where the teacher's deterministic ODE leads z through the levels. Without gradient."""
    x = z
    with torch.no_grad():
        for t, t_next in pairwise(levels):
            x = euler(x, teacher(x, t), t, t_next).mean
    return x


def first_step_term(
    networks: Networks, z: Tensor, protocol: Protocol, c: FirstStepConfig, v: Tensor | None = None
) -> dict[str, Tensor]:
    """Return lambda L by its name in a log; {} where lambda is 0, and then no call is made."""
    return {"first_step_loss": c.weight * first_step_loss(networks, z, protocol, c, v)} if c.weight else {}


def first_step_loss(
    networks: Networks, z: Tensor, protocol: Protocol, c: FirstStepConfig, v: Tensor | None = None
) -> Tensor:
    """Return L, not yet weighted, of the student's first step from noise z [B, ...] under its own protocol.

    v: the student's velocity there, with its graph, where a rollout has made that call already; else it is made."""
    t_0 = sigma_grid(protocol)[0]
    levels = c.levels(t_0)
    v = networks.student(z, t_0) if v is None else v
    z_a, t_a = teacher_anchor(networks.teacher, z, levels), levels[-1]
    if c.form == "velocity":
        return ((v - (z - z_a) / (t_0 - t_a)) ** 2).mean()
    with torch.no_grad():
        teacher = networks.teacher if c.anchor_guided else networks.unguided_teacher
        x0_teacher = x0_from_v(z_a, teacher(z_a, t_a), t_a)
    return ((x0_from_v(z, v, t_0) - x0_teacher) ** 2).mean() / c.scale**2
