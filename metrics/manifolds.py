"""Precision and recall: how much of one set lies in the manifold of the other, balls around its points.

    r_i = distance of point i to its k-th nearest neighbour in its own set, itself left out
    precision = share of generated points inside the ball of at least one reference point
    recall    = share of reference points inside the ball of at least one generated point

Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2, k = 3, <= as in its code. Departure: distances in
float64, where ADM's evaluator takes float16. Distances are squared, and taken block by block.
Axes: N, M points, D feature size.
"""

import numpy as np

from metrics.base import UserError

BLOCK = 2048
NEIGHBOURS = 3


def squared_distances(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Return ||x - y||^2 [N, M] in float64."""
    squares_NM = -2 * (x_ND @ y_MD.T)
    squares_NM += (x_ND**2).sum(axis=1)[:, None]
    squares_NM += (y_MD**2).sum(axis=1)
    return squares_NM.clip(min=0, out=squares_NM)


def squared_radii(points_ND: np.ndarray, k: int = NEIGHBOURS, block: int = BLOCK) -> np.ndarray:
    """Return r^2 [N]. Raises UserError where there are not more than k points."""
    n = len(points_ND)
    if n <= k:
        raise UserError(f"precision and recall need more than {k} images on both sides, found {n}")
    radii_N = np.empty(n)
    for start in range(0, n, block):
        rows = points_ND[start : start + block].astype(np.float64)
        nearest = np.full((len(rows), k), np.inf)
        for other in range(0, n, block):
            squares = squared_distances(rows, points_ND[other : other + block].astype(np.float64))
            index = np.arange(max(start, other), min(start + len(rows), other + squares.shape[1]))
            squares[index - start, index - other] = np.inf  # by index: a twin at distance 0 is a neighbour
            both = np.concatenate([nearest, squares], axis=1)
            nearest = np.partition(both, k - 1, axis=1)[:, :k]
        radii_N[start : start + len(rows)] = nearest.max(axis=1)
    return radii_N


def covered_share(
    points_ND: np.ndarray, centres_MD: np.ndarray, squared_radii_M: np.ndarray, block: int = BLOCK
) -> float:
    """Return the share of points inside at least one ball, the border included."""
    covered = 0
    for start in range(0, len(points_ND), block):
        rows = points_ND[start : start + block].astype(np.float64)
        inside = np.zeros(len(rows), bool)
        for other in range(0, len(centres_MD), block):
            squares = squared_distances(rows, centres_MD[other : other + block].astype(np.float64))
            inside |= (squares <= squared_radii_M[other : other + block]).any(axis=1)
        covered += int(inside.sum())
    return covered / len(points_ND)


def precision(generated_ND: np.ndarray, reference_MD: np.ndarray, k: int = NEIGHBOURS, block: int = BLOCK) -> float:
    """Return precision in [0, 1]. Raises UserError as `squared_radii`."""
    return covered_share(generated_ND, reference_MD, squared_radii(reference_MD, k, block), block)


def recall(generated_ND: np.ndarray, reference_MD: np.ndarray, k: int = NEIGHBOURS, block: int = BLOCK) -> float:
    """Return recall in [0, 1]: precision with the two sets swapped. Raises UserError as `squared_radii`."""
    return precision(reference_MD, generated_ND, k, block)
