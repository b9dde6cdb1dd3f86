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
Axes: B samples, then any latent axes; levels are floats or [B, 1, ...].
"""

from typing import Literal

import torch
from torch import Tensor

from benchmarks.config import config
from benchmarks.samplers import Level, Transition, cps
from trainers.dmd import Normaliser, dmd_gradient, dmd_loss
from trainers.draws import Noise
from trainers.flow import Kernel, Velocity, subinterval
from trainers.rollout import Step


@config
class AcDmdConfig:
    """Settings of the AC-DMD objective."""

    gamma: float = 0.01  # γ of the consistency loss; 0 = A-DMD
    consistency_samples: Literal[1, 2] = 2  # reverse samples; 1 = mean square
    consistency_transition: Literal["cps", "ancestral"] = "cps"  # ancestral: unbiased for a Gaussian
    max_gap: float = 0.2  # t - t'' ~ U(0, max_gap]
    kernel: Kernel = "exact"
    anchor: Literal["next_sigma", "x0_full"] = "next_sigma"  # x0_full: s = 0 at every step, as DMD2
    normaliser: Normaliser = "x0_teacher"
    low: float = 0.02  # bounds of t
    high: float = 0.98

    def __post_init__(self) -> None:
        if self.gamma < 0 or not 0 < self.max_gap <= 1:
            raise ValueError("gamma must be at least 0 and max_gap in (0, 1]")
        if not 0 < self.low < self.high < 1:
            raise ValueError("low and high must satisfy 0 < low < high < 1")
        if self.normaliser == "xt_teacher":
            raise ValueError("normaliser xt_teacher is plain DMD's; AC-DMD knows x0_teacher and none")


def anchor_sample(step: Step, anchor: Literal["next_sigma", "x0_full"]) -> tuple[Tensor, float]:
    """Return (x_s, s) of a student step: its noisy end, or its x0-prediction."""
    return (step.x_next, step.t_next) if anchor == "next_sigma" else (step.x0, 0.0)


def renoise_level(s: float, x: Tensor, config: AcDmdConfig, draws: Noise) -> Tensor:
    """Return t ~ U[s + .01, 1] clamped to the bounds, so that near t = 1 many draws sit at `high` [C]."""
    return draws.uniform(s + 0.01, 1.0, x).clamp(config.low, config.high)


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
    loss = (torch.as_tensor(10 * sigma**2).clamp(max=1) * (v - u) ** 2).mean()
    # 3. Tie its predictions at neighbouring levels together
    if c.gamma > 0:
        t_near = (t - draws.uniform(0.001, c.max_gap, x_t)).clamp(min=0)
        loss = loss + c.gamma * consistency_loss(fake_score, x_t, v, t, t_near, eta, c, draws)
    return loss


def consistency_loss(
    fake_score: Velocity,
    x_t: Tensor,
    v: Tensor,
    t: Level,
    t_near: Level,
    eta: float,
    c: AcDmdConfig,
    draws: Noise,
) -> Tensor:
    """Return L_c between t and t_near < t; v = fake_score(x_t, t) with its graph.

    Gradient flows through every h, none through the moves that lead from x_t to the samples at t_near."""
    h = x_t - t * v
    with torch.no_grad():
        move = cps(x_t, v, t, t_near, eta) if c.consistency_transition == "cps" else ancestral(x_t, v, t, t_near)
        samples = [move.sample(draws.normal_like(x_t)) for _ in range(c.consistency_samples)]
    errors = [x - t_near * fake_score(x, t_near) - h for x in samples]
    return (errors[0] * errors[-1]).mean()


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
