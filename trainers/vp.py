"""Variance-preserving (VP) algebra of eps- and v_prediction-models such as SDXL, and its bridge to flow.

    x_t = a x0 + b eps,  a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t)      score s = -eps_hat / b
    v_prediction = a eps - b x0    hence x0 = a x_t - b v_prediction, eps = b x_t + a v_prediction

Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4; v_prediction: Salimans and Ho 2022, arXiv:2202.00512, App. D.
Dividing by a amplifies rounding (1 / a is about 14.6 at t = 999): pass float32 or float64.
Axes: B samples, then any latent axes; a and b are floats or [B, 1, ...] tensors.
"""

from torch import Tensor

from benchmarks.samplers import Level


def x0_from_eps(x_t: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:
    """Return the clean sample of a noise prediction."""
    return (x_t - b * eps) / a


def eps_from_x0(x_t: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """Return the noise of an x0-prediction."""
    return (x_t - a * x0) / b


def v_prediction(x0: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:
    """Return what a v_prediction-model is trained to give."""
    return a * eps - b * x0


def x0_from_v_prediction(x_t: Tensor, v: Tensor, a: Level, b: Level) -> Tensor:
    """Return the clean sample of a v_prediction."""
    return a * x_t - b * v


def eps_from_v_prediction(x_t: Tensor, v: Tensor, a: Level, b: Level) -> Tensor:
    """Return the noise of a v_prediction."""
    return b * x_t + a * v


def score_from_eps(eps: Tensor, b: Level) -> Tensor:
    """Return the score of a noise prediction."""
    return -eps / b


def to_flow(x_t: Tensor, a: Level, b: Level) -> tuple[Tensor, Level]:
    """Return (x, t) of the flow path with the same x0 and eps: x = x_t / (a + b), t = b / (a + b)."""
    return x_t / (a + b), b / (a + b)
