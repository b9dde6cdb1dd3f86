"""Maximum mean discrepancy of two sets of features, block by block in float64.

    KID    unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3: mean over x != x', plus y != y', minus 2 x mean over x, y
    CMMD   biased MMD^2 with k(x, y) = exp(-||x - y||^2 / (2 s^2)), s = 10, of unit vectors, times 1000

CMMD's kernel differs from 1 by at most 0.02, and the constants cancel: k - 1 is computed instead, by expm1.

Source: KID: Bińkowski et al. 2018, arXiv:1801.01401, Sec. 4; CMMD: Jayasumana et al. 2024, arXiv:2401.09603, Eq. 3.
Axes: N, M images, D feature size.
"""

from collections.abc import Callable

import numpy as np

from metrics.base import UserError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of [n, D] and [m, D]; [n, m]
BLOCK = 4096
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def cubic_kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return k [N, M] of KID."""
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def gaussian_kernel_less_one(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return k - 1 [N, M] of CMMD, of unit vectors: ||x - y||^2 = 2 (1 - cos)."""
    return np.expm1((x_ND @ y_MD.T - 1) / CMMD_SIGMA**2)


def kernel_sum(kernel: Kernel, x_ND: np.ndarray, y_MD: np.ndarray, block: int = BLOCK) -> float:
    """Return the sum of k over all pairs; no more than block x block values are held at a time."""
    total = 0.0
    for start in range(0, len(x_ND), block):
        rows = x_ND[start : start + block].astype(np.float64)
        for other in range(0, len(y_MD), block):
            total += float(kernel(rows, y_MD[other : other + block].astype(np.float64)).sum())
    return total


def diagonal_sum(kernel: Kernel, x_ND: np.ndarray) -> float:
    """Return the sum of k(x, x)."""
    return sum(float(kernel(row, row)[0, 0]) for row in x_ND.astype(np.float64)[:, None])


def kid(x_ND: np.ndarray, y_MD: np.ndarray, block: int = BLOCK) -> float:
    """Return KID over all pairs; negative values are as valid as positive ones. Raises UserError below two images."""
    n, m = len(x_ND), len(y_MD)
    if min(n, m) < 2:
        raise UserError(f"KID needs at least two images on both sides, found {n} and {m}")
    within_x = kernel_sum(cubic_kernel, x_ND, x_ND, block) - diagonal_sum(cubic_kernel, x_ND)
    within_y = kernel_sum(cubic_kernel, y_MD, y_MD, block) - diagonal_sum(cubic_kernel, y_MD)
    across = kernel_sum(cubic_kernel, x_ND, y_MD, block)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def kid_of_subsets(
    x_ND: np.ndarray, y_MD: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Return mean and standard deviation of KID over random subsets, drawn as torch-fidelity draws them.

    Raises: UserError where a set is smaller than a subset."""
    if min(len(x_ND), len(y_MD)) < size:
        raise UserError(f"KID's subsets have {size} images, the sets {len(x_ND)} and {len(y_MD)}")
    generator = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        chosen = [generator.choice(len(features), size, replace=False) for features in (x_ND, y_MD)]
        values.append(kid(x_ND[chosen[0]], y_MD[chosen[1]]))
    return float(np.mean(values)), float(np.std(values))


def cmmd(x_ND: np.ndarray, y_MD: np.ndarray, block: int = BLOCK) -> float:
    """Return CMMD of unit vectors, diagonals included, as published. Raises UserError for an empty set."""
    if not (len(x_ND) and len(y_MD)):
        raise UserError("CMMD needs at least one image on both sides")
    within = [kernel_sum(gaussian_kernel_less_one, each, each, block) / len(each) ** 2 for each in (x_ND, y_MD)]
    across = kernel_sum(gaussian_kernel_less_one, x_ND, y_MD, block) / (len(x_ND) * len(y_MD))
    return CMMD_SCALE * (within[0] + within[1] - 2 * across)
