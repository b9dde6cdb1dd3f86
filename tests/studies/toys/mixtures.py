"""Mixtures with exact scores: what the reverse KL forgets, what RL does to modes, where DMD's gradient points.

Losses, gradients and trainers are the product's own; only teacher and (where said) fake score are closed forms:

    p = mean_m N(mu_m, tau^2 I)     E[x0 | x_t] = sum_m r_m (mu_m + (1-t) tau^2 / V (x_t - (1-t) mu_m)),
    V = (1-t)^2 tau^2 + t^2         r_m ~ exp(-|x_t - (1-t) mu_m|^2 / 2V)

Axes: B samples, M modes, D = 1 or 2 dimensions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.config import build
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone
from trainers.base import World
from trainers.dmd import student_loss
from trainers.dmdr import Dmdr, DmdrConfig
from trainers.flow import RenoiseLaw, Velocity
from trainers.rewards import RewardBank, RewardConfig
from trainers.rollout import rollout

LEVELS = {"all levels": RenoiseLaw(low=0.02, high=0.98), "low levels": RenoiseLaw(low=0.02, high=0.2)}
BEYOND = 2.0  # of the reward, where the hinge ends: the best mode has 1.5
NEAR = 3.0  # deviations within which a sample belongs to a mode


def mixture_velocity(means_MD: Tensor, tau: float) -> Velocity:
    """Return the exact velocity of the mixture."""

    def velocity(x_t: Tensor, t: Level) -> Tensor:
        level = torch.as_tensor(t, dtype=x_t.dtype).reshape(-1, 1).expand(len(x_t), 1)
        variance = (1 - level) ** 2 * tau**2 + level**2
        off_BMD = x_t[:, None] - (1 - level[:, None]) * means_MD
        share_BM = torch.softmax(-(off_BMD**2).sum(dim=2) / (2 * variance), dim=1)
        x0_BMD = means_MD + ((1 - level) * tau**2 / variance)[:, None] * off_BMD
        return (x_t - (share_BM[:, :, None] * x0_BMD).sum(dim=1)) / level

    return velocity


def fit_gaussian(
    distance: float, law: RenoiseLaw, tau: float = 0.25, start: tuple[float, float] = (0.3, 0.25), updates: int = 800
) -> tuple[float, float]:
    """Return (mean, deviation) of a student N(m, s^2) that DMD's gradient brings to modes at ± distance / 2.

    The fake score is the student's own, exactly; so what is descended is the reverse KL of noised distributions.
    start: mean and deviation. A student as wide as both modes together is a local minimum, too: it starts narrow."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.tensor([start[0]], requires_grad=True)
    log_s = torch.tensor([math.log(start[1])], requires_grad=True)
    teacher = mixture_velocity(torch.tensor([[-distance / 2], [distance / 2]]), tau)
    optimiser = torch.optim.Adam([mean, log_s], lr=1e-2)
    for _ in range(updates):
        x0 = mean + log_s.exp() * torch.randn(256, 1, generator=draw)
        fake = mixture_velocity(mean.detach()[None], log_s.detach().exp().item())
        t = law.sample(len(x0), draw)[:, None]
        loss = student_loss(x0, teacher, fake, t, torch.randn(x0.shape, generator=draw), "none")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return mean.item(), log_s.exp().item()


def moments(distance: float, tau: float = 0.25) -> tuple[float, float]:
    """Return (mean, deviation) of the Gaussian that the forward KL would choose: the mixture's own."""
    return 0.0, math.sqrt(tau**2 + distance**2 / 4)


def gradient_field(
    points_BD: Tensor, means_MD: Tensor, tau: float, spread: float, t: float, draws: int = 256
) -> Tensor:
    """Return minus DMD's gradient at points of a student N(0, spread^2 I), averaged over noise at level t."""
    draw = torch.Generator().manual_seed(0)
    x0 = points_BD.clone().requires_grad_()
    teacher, fake = mixture_velocity(means_MD, tau), mixture_velocity(torch.zeros(1, points_BD.shape[1]), spread)
    for _ in range(draws):
        eps = torch.randn(x0.shape, generator=draw)
        student_loss(x0, teacher, fake, torch.full((len(x0), 1), t), eps, "none").backward()
    assert x0.grad is not None
    return -x0.grad * x0.numel() / draws


def towards(points_BD: Tensor, means_MD: Tensor) -> Tensor:
    """Return the way from each point to the nearest of the means, the teacher's support."""
    nearest = torch.cdist(points_BD, means_MD).argmin(dim=1)
    return means_MD[nearest] - points_BD


def ring(count: int, radius: float) -> Tensor:
    """Return means on a circle; the first lies at the right, where the first coordinate is largest."""
    angle = 2 * math.pi * torch.arange(count) / count
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


class MixtureBackbone(PointBackbone):
    """Two-dimensional points whose teacher is a mixture."""

    def __init__(self, means_MD: Tensor, tau: float, hidden: int = 64) -> None:
        super().__init__((0.0, 0.0), tau, hidden)
        self._teacher = mixture_velocity(means_MD, tau)  # PointBackbone shifts it by its mean, 0


PHASES = {
    "DMD": ("dmd", "dmd"),
    "DMD + RL": ("dmd", "joint"),
    "RL alone": ("dmd", "rl_only"),
    "RL alone, no cold start": ("", "rl_only"),
}


def train_student(
    phases: Sequence[str], means_MD: Tensor, tau: float, seed: int, updates: int, rl_weight: float = 0.1
) -> Tensor:
    """Return samples [4096, 2] of a 4-step student after one stage of DMDR for each phase; reward: x_1."""
    torch.manual_seed(seed)
    backbone = MixtureBackbone(means_MD, tau)
    bank = RewardBank([RewardConfig(id="x")], {"x": FirstCoordinate("x", 0, True)})  # type: ignore[dict-item]
    prompts = [Prompt(text="a")] * 128
    for phase in phases:
        table = {
            "phase": phase, "guidance_scale": 1.0, "batch_size": len(prompts), "fake_score_updates": 2,
            "fake_scale": 1.0, "dynadg": {"kind": "off"}, "dynars": {"kind": "off"}, "rl_weight": rl_weight,
            "refl": {"margin": BEYOND}, "student": {"lr": 1e-3}, "fake_score": {"lr": 2e-3},
        }  # fmt: skip
        trainer = Dmdr(build(DmdrConfig, table, "toy"), backbone, bank, World(seed=f"{seed}/{phase}"))  # type: ignore[arg-type]
        for iteration in range(updates if phase == "rl_only" else 2 * updates):
            trainer.step(prompts, iteration)
    with torch.no_grad():
        student = trainer.roles.velocity("student", [Prompt(text="a")] * 4096)
        return rollout(student, trainer.roles.noise(4096), trainer.protocol(), lambda _: torch.zeros(4096, 2))[
            -1
        ].x_next


def coverage(samples_BD: Tensor, means_MD: Tensor, tau: float) -> dict[str, float]:
    """Return modes covered (by a quarter of an equal share), the largest share, what lies off support, and x_1."""
    distance_BM = torch.cdist(samples_BD, means_MD)
    near = distance_BM.amin(dim=1) < NEAR * tau
    counts_M = torch.bincount(distance_BM.argmin(dim=1)[near], minlength=len(means_MD)).double()
    share_M = counts_M / len(samples_BD)
    return {
        "modes": float((share_M >= 0.25 / len(means_MD)).sum()),
        "largest_share": float(share_M.max()),
        "off_support": 1 - float(near.double().mean()),
        "reward": float(samples_BD[:, 0].mean()),
    }
