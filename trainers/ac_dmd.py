"""AC-DMD: distribution matching between the sampler's own levels, with a consistency term (RTDMD's cold start).

The student's step k ends at level s = t_k in the *noisy* sample x_s. The score networks see it noised further, to a
level t of [s, 1], and the gradient compares where each of them would bring it back to, at level s.

    x_t = a x_s + sigma n                                       the path's own kernel from s to t
    u   = -x_s / (1 - s) + (t - sigma^2) / (sigma (1 - t)) n    E[u | x_t] = marginal velocity at t
    L_fake = mean[ min(1, 10 sigma^2) (v_fake - u)^2 ] + gamma L_c
    L_c    = E[ (h(x''_1, t'') - h(x_t, t)) · (h(x''_2, t'') - h(x_t, t)) ],   h(x, t) = x - t v_fake(x, t)
    g      = (xs_fake - xs_teacher) / N,  each xs one CPS(eta) step from x_t to s with the same noise

Source: RTDMD, stage I, and its authors' code where the two differ: the kernel is the exact one (the printed sigma
breaks the marginals; `kernel = "paper"` keeps it for study), the fake score predicts the full path's velocity.
At s = 0 all this is plain DMD. Two independent draws x'' make L_c unbiased: it is no mean square and may be negative.
Switches of that code that none of its configs turns: `anchor = "fixed_boundary"`, where a step that begins above the
level t_b of the student's grid is followed down to it, and any other is noised where it stands, each by one CPS(eta)
move; `weighting = "none"`, a plain (v_fake - u)^2; x'' at the end of several moves, with a gradient through them.
Axes: B samples, then any latent axes; levels are floats or [B, 1, ...].
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import UserError, config
from benchmarks.samplers import Level, Transition, cps
from trainers.dmd import Normaliser, dmd_gradient, dmd_loss
from trainers.draws import Noise
from trainers.flow import Kernel, Velocity, subinterval
from trainers.rollout import Step

Anchor = Literal["next_sigma", "fixed_boundary", "x0_full"]
NEXT_TO_DATA = 1e-6  # a level; from 0 there is no move
FURTHER = 0.01  # above a sample's own level, at least, lies the level t that it is noised to


@config
class AcDmdConfig:
    """Settings of the AC-DMD objective."""

    gamma: float = 0.01  # γ of the consistency loss; 0 = A-DMD
    consistency_samples: Literal[1, 2] = 2  # reverse samples; 1 = mean square
    consistency_transition: Literal["cps", "ancestral"] = "cps"  # ancestral: unbiased for a Gaussian
    consistency_num_steps: int = 1  # moves from x_t to x'', one after the other
    consistency_stopgrad: bool = True  # false: the moves carry the gradient of their own predictions
    max_gap: float = 0.2  # a move leads from t to t - U(0, max_gap]
    weighting: Literal["capped", "none"] = "capped"  # of L_fake: min(1, 10 sigma^2), or 1
    kernel: Kernel = "exact"
    # s = t_k, at the noisy end of step k; min(t_{k-1}, t_b), the code's start_mode fixed_boundary, which is never 0;
    # or 0 at every step, as DMD2
    anchor: Anchor = "next_sigma"
    boundary: int = 2  # b of fixed_boundary: the level that step b + 1 begins at
    normaliser: Normaliser = "x0_teacher"
    low: float = 0.02  # bounds of t
    high: float = 0.98

    def __post_init__(self) -> None:
        if self.gamma < 0 or not 0 < self.max_gap <= 1:
            raise ValueError("gamma must be at least 0 and max_gap in (0, 1]")
        if self.consistency_num_steps < 1 or self.boundary < 1:
            raise ValueError("consistency_num_steps and boundary must be at least 1")
        if self.boundary != 2 and self.anchor != "fixed_boundary":
            raise ValueError(f'boundary is of anchor = "fixed_boundary": anchor = "{self.anchor}" has none')
        if not 0 < self.low < self.high < 1:
            raise ValueError("low and high must satisfy 0 < low < high < 1")
        if self.normaliser == "xt_teacher":
            raise ValueError("normaliser xt_teacher is plain DMD's; AC-DMD knows x0_teacher and none")

    def check(self, levels: Sequence[float], eta: float) -> None:
        """Raise UserError where the student's levels t_0 .. t_K and its sampler leave a fixed boundary no meaning,
        or the levels no room below `high` to noise a sample further."""
        fixed = self.anchor == "fixed_boundary"
        if fixed and self.boundary > len(levels) - 2:
            raise UserError(
                f'trainer.ac_dmd.anchor = "fixed_boundary": of the {len(levels) - 1} steps of the student none begins'
                f" at level {self.boundary}, counted from 0: set trainer.ac_dmd.boundary, or take more steps"
            )
        if fixed and eta == 0:
            raise UserError(
                'trainer.ac_dmd.anchor = "fixed_boundary" needs a stochastic sampler: without noise the steps from '
                "the boundary on would stay where they begin, and learn nothing"
            )
        highest = 0.0 if self.anchor == "x0_full" else levels[self.boundary if fixed else 1]  # of the samples x_s
        if highest + FURTHER > self.high:
            raise UserError(
                f"the student's steps end as high as level {highest:.4g}, and AC-DMD noises their samples to levels "
                f"from {FURTHER} above it up to trainer.ac_dmd.high = {self.high:.4g}: there are none; take fewer "
                "steps or a smaller shift, or set high closer to 1"
            )


def anchor_sample(
    step: Step, levels: Sequence[float], eta: float, c: AcDmdConfig, draws: Noise
) -> tuple[Tensor, float]:
    """Return (x_s, s) of a student's step over its levels t_0 .. t_K; see `AcDmdConfig.anchor`.

    Noise is drawn for a fixed boundary alone."""
    if c.anchor == "fixed_boundary":
        s = min(step.t, levels[c.boundary])
        return cps(step.x_t, step.v, step.t, s, eta).sample(draws.normal_like(step.x_t)), s
    return (step.x_next, step.t_next) if c.anchor == "next_sigma" else (step.x0, 0.0)


def renoise_level(s: float, x: Tensor, c: AcDmdConfig, draws: Noise) -> Tensor:
    """Return t ~ U[s + FURTHER, 1] clamped to the bounds, so that near t = 1 many draws sit at `high` [C]."""
    return draws.uniform(s + FURTHER, 1.0, x).clamp(c.low, c.high)


def velocity_target(x_s: Tensor, noise: Tensor, s: Level, t: Level, sigma: Level) -> Tensor:
    """Return u: the conditional score -n / sigma of the kernel s -> t, written as a velocity of the whole path."""
    return -x_s / (1 - s) + (t - sigma**2) / (sigma * (1 - t)) * noise


def fake_score_loss(fake_score: Velocity, x_s: Tensor, s: float, eta: float, c: AcDmdConfig, draws: Noise) -> Tensor:
    """Return L_fake on the student's samples x_s of level s; they carry no gradient."""
    x_s = x_s.detach()
    # 1. Noise the sample from its own level s to a level t above
    t, noise = renoise_level(s, x_s, c, draws), draws.normal_like(x_s)
    a, sigma = subinterval(s, t, c.kernel)
    x_t = a * x_s + sigma * noise
    # 2. Match the velocity; the weight, min(1, 10 sigma^2), tames the target where the interval is short
    v = fake_score(x_t, t)
    u = velocity_target(x_s, noise, s, t, sigma)
    weight = torch.as_tensor(10 * sigma**2).clamp(max=1) if c.weighting == "capped" else 1.0
    loss = (weight * (v - u) ** 2).mean()
    # 3. Tie its predictions at neighbouring levels together
    if c.gamma > 0:
        loss = loss + c.gamma * consistency_loss(fake_score, x_t, v, levels_below(t, c, draws), eta, c, draws)
    return loss


def levels_below(t: Tensor, c: AcDmdConfig, draws: Noise) -> list[Tensor]:
    """Return t and the levels that the consistency moves lead to, each below the one before and none below 0."""
    levels = [t]
    for left in reversed(range(c.consistency_num_steps)):
        lowest = NEXT_TO_DATA if left else 0
        levels.append((levels[-1] - draws.uniform(0.001, c.max_gap, t)).clamp(min=lowest))
    return levels


def consistency_loss(
    fake_score: Velocity,
    x_t: Tensor,
    v: Tensor,
    levels: Sequence[Level],
    eta: float,
    c: AcDmdConfig,
    draws: Noise,
) -> Tensor:
    """Return L_c between the first and the last of the levels t > ... > t''; v = fake_score(x_t, t) with its graph.

    Gradient flows through every h; with `consistency_stopgrad` none through the moves from x_t to the samples x''."""
    t, t_near = levels[0], levels[-1]
    h = x_t - t * v
    with torch.no_grad() if c.consistency_stopgrad else nullcontext():
        samples = [moved(fake_score, x_t, v, levels, eta, c, draws) for _ in range(c.consistency_samples)]
    errors = [x - t_near * fake_score(x, t_near) - h for x in samples]
    return (errors[0] * errors[-1]).mean()


def moved(
    fake_score: Velocity,
    x: Tensor,
    v: Tensor,
    levels: Sequence[Level],
    eta: float,
    c: AcDmdConfig,
    draws: Noise,
) -> Tensor:
    """Return a draw x'' of one reverse move after the other through the levels, from x with its velocity v."""
    for n, (t, t_next) in enumerate(pairwise(levels)):
        v = fake_score(x, t) if n else v
        move = cps(x, v, t, t_next, eta) if c.consistency_transition == "cps" else ancestral(x, v, t, t_next)
        x = move.sample(draws.normal_like(x))
    return x


def ancestral(x_t: Tensor, v: Tensor, t: Level, t_near: Level) -> Transition:
    """Return the reverse kernel q(x_{t''} | x_t, x0 = h) of the path: exact where h is."""
    h = x_t - t * v
    a, sigma = subinterval(t_near, t)
    mean = (a * t_near**2 * x_t + sigma**2 * (1 - t_near) * h) / t**2
    return Transition(mean, sigma * t_near / t)


def student_loss(
    x_s: Tensor, s: float, teacher: Velocity, fake_score: Velocity, eta: float, c: AcDmdConfig, draws: Noise
) -> Tensor:
    """Return the AC-DMD loss of the student's samples x_s of level s; the gradient reaches x_s alone."""
    with torch.no_grad():
        # 1. Noise the sample from its own level s to a level t above
        t, noise = renoise_level(s, x_s, c, draws), draws.normal_like(x_s)
        a, sigma = subinterval(s, t, c.kernel)
        x_t = a * x_s + sigma * noise
        # 2. Let both score networks bring it back to level s, with the same noise
        back = draws.normal_like(x_s)
        xs_teacher = cps(x_t, teacher(x_t, t), t, s, eta).sample(back)
        xs_fake = cps(x_t, fake_score(x_t, t), t, s, eta).sample(back)
        # 3. The DMD gradient, at level s
        gradient = dmd_gradient(x_s, xs_teacher, xs_fake, c.normaliser)
    return dmd_loss(x_s, gradient)
