"""Fréchet distance of two Gaussians, and their moments, gathered in parts that merge exactly.

    FD = ||m1 - m2||^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)        C = M / (n - 1)

With factors C = F F^T the last trace is the sum of the singular values of F1^T F2: no complex numbers, no square root
of a product, and no loss of digits where the spectrum is wide. A factor is the Cholesky factor, that of
an eigendecomposition where C is singular, or the centred features themselves where there are fewer than D of them.

Parts merge by the pairwise rule (Chan, Golub, LeVeque 1979), which keeps its digits where the mean is large:

    d = m2 - m1    m = m1 + d n2 / n    M = M1 + M2 + d d^T n1 n2 / n

Source: Heusel et al. 2017, arXiv:1706.08500, Eq. 6. Axes: N images, D feature size; all in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, eigvalsh, svdvals  # copy less than numpy's

from metrics.base import UserError


@dataclass(frozen=True)
class Moments:
    """What a Fréchet distance needs of N features: mean [D] and centred scatter M [D, D]."""

    n: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Moments":
        """Return the moments of N features; of none, those of an empty set."""
        exact_ND = features_ND.astype(np.float64)
        n, d = exact_ND.shape
        mean_D = exact_ND.mean(axis=0) if n else np.zeros(d)
        exact_ND -= mean_D
        return cls(n, mean_D, exact_ND.T @ exact_ND)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together. Raises UserError where features differ in size."""
        if self.mean_D.shape != other.mean_D.shape:
            raise UserError(f"features of {len(self.mean_D)} and {len(other.mean_D)} numbers cannot be one set")
        n = self.n + other.n
        if not n:
            return self
        delta_D = other.mean_D - self.mean_D
        between_DD = np.outer(delta_D, delta_D) * (self.n * other.n / n)
        return Moments(n, self.mean_D + delta_D * (other.n / n), self.scatter_DD + other.scatter_DD + between_DD)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The covariance, divisor n - 1. Raises UserError below two features."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least two images, found {self.n}")
        return self.scatter_DD / (self.n - 1)


def moments_of_parts(parts: Iterable[np.ndarray]) -> Moments:
    """Return the moments of features that arrive in parts. Raises UserError where there are none."""
    total: Moments | None = None
    for part_ND in parts:
        of_part = Moments.of(part_ND)
        total = of_part if total is None else total.merge(of_part)
    if total is None:
        raise UserError("no features to take moments of")
    return total


def factor(covariance_DD: np.ndarray) -> np.ndarray:
    """Return F with F F^T = C, of a positive semidefinite C; eigenvalues that rounding made negative count as 0."""
    try:
        triangle_DD: np.ndarray = cholesky(covariance_DD, lower=True)
        return triangle_DD
    except LinAlgError:
        values_D, vectors_DD = eigh(covariance_DD)
        factor_DD: np.ndarray = vectors_DD * np.sqrt(values_D.clip(min=0))
        return factor_DD


def trace_sqrt_product(factor1: np.ndarray, factor2: np.ndarray) -> float:
    """Return tr (C1 C2)^(1/2) from factors [D, any] of both: the sum of the singular values s of A = F1^T F2.

    The eigenvalues of A A^T are their squares, in a third of the time, and none is off by more than rounding, r
    (Weyl): so no root by more than min(r / s, r^(1/2)). Where that may change the sum by 1e-8, A itself is asked."""
    product = factor1.T @ factor2
    squares = eigvalsh(product @ product.T).clip(min=0)
    roots = np.sqrt(squares)
    rounding = np.finfo(np.float64).eps * np.sqrt(len(squares)) * squares[-1]
    lost = np.minimum(rounding / roots.clip(min=np.finfo(np.float64).tiny), np.sqrt(rounding))
    return float((roots if lost.sum() <= 1e-8 * roots.sum() else svdvals(product)).sum())


def frechet_distance(
    mean1_D: np.ndarray, covariance1_DD: np.ndarray, mean2_D: np.ndarray, covariance2_DD: np.ndarray
) -> float:
    """Return FD of two Gaussians, as computed: never clamped, so rounding may leave it below 0.

    Raises: UserError where they differ in size or hold a NaN."""
    if mean1_D.shape != mean2_D.shape:
        raise UserError(f"moments of {len(mean1_D)} and {len(mean2_D)} features: not of the same encoder")
    if not all(np.isfinite(part).all() for part in (mean1_D, covariance1_DD, mean2_D, covariance2_DD)):
        raise UserError("the moments hold a NaN or an infinity")
    trace = trace_sqrt_product(factor(covariance1_DD), factor(covariance2_DD))
    delta_D = mean1_D - mean2_D
    return float(delta_D @ delta_D + np.trace(covariance1_DD) + np.trace(covariance2_DD) - 2 * trace)


def frechet_distance_of_features(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Return FD of two sets of features, exact for fewer features than dimensions, too.

    Raises: UserError as `frechet_distance`, and below two features."""
    moments = Moments.of(first_ND), Moments.of(second_ND)
    covariances = [one.covariance_DD for one in moments]
    if min(one.n for one in moments) > first_ND.shape[1]:
        return frechet_distance(moments[0].mean_D, covariances[0], moments[1].mean_D, covariances[1])
    factors = [
        (features_ND - one.mean_D).T / np.sqrt(one.n - 1)
        for features_ND, one in zip((first_ND.astype(np.float64), second_ND.astype(np.float64)), moments, strict=True)
    ]
    delta_D = moments[0].mean_D - moments[1].mean_D
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(delta_D @ delta_D + traces - 2 * trace_sqrt_product(*factors))
