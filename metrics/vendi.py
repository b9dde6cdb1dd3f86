"""Vendi score: the effective number of different pictures; Inception Score: that of classes drawn with certainty.

    VS = exp(-sum_i l_i ln l_i)        l_i: eigenvalues of K / n, K_ij = <u_i, u_j>, u = f / ||f||
    IS = exp(mean_i sum_c p_ic ln p_ic - sum_c p_c ln p_c)        p_c = mean_i p_ic, 0 ln 0 = 0, mean over splits

K and U^T U have the same eigenvalues but for zeros, so the smaller one is taken; sums of U^T U merge.

Source: Friedman and Dieng 2023, arXiv:2210.02410, Def. 3.1 (order 1; order q: (sum l^q)^(1/(1-q))). Salimans et al.
2016, arXiv:1606.03498, Sec. 4; splits as torch-fidelity: 10, after a permutation with seed 2020, because sorted
classes would give 1. Axes: N images, D feature size, C classes.
"""

import numpy as np
from scipy.special import softmax, xlogy

from metrics.base import UserError

SPLITS, SPLIT_SEED = 10, 2020


def unit_rows(features_ND: np.ndarray) -> np.ndarray:
    """Return float64 rows of unit length. Raises UserError for a row of zeros."""
    exact_ND = features_ND.astype(np.float64)
    norms_N1 = np.linalg.norm(exact_ND, axis=1, keepdims=True)
    if not (norms_N1 > 0).all():
        raise UserError("a picture's feature is 0 everywhere: it has no direction")
    return exact_ND / norms_N1


def vendi_of_eigenvalues(eigenvalues: np.ndarray, order: float = 1.0) -> float:
    """Return VS of the eigenvalues of K / n; those that rounding made negative count as 0."""
    weights = eigenvalues.clip(min=0)
    weights = weights / weights.sum()
    if order == 1:
        return float(np.exp(-xlogy(weights, weights).sum()))
    if np.isinf(order):
        return float(1 / weights.max())
    return float((weights**order).sum() ** (1 / (1 - order)))


def vendi_score(features_ND: np.ndarray, order: float = 1.0) -> float:
    """Return VS in [1, N]. Raises UserError for no picture, or a feature that is 0."""
    n, d = features_ND.shape
    if n == 0:
        raise UserError("the Vendi score needs at least one image")
    unit_ND = unit_rows(features_ND)
    kernel = unit_ND @ unit_ND.T if n <= d else unit_ND.T @ unit_ND
    return vendi_of_eigenvalues(np.linalg.eigvalsh(kernel / n), order)


def inception_score(
    logits_NC: np.ndarray, splits: int = SPLITS, seed: int | None = SPLIT_SEED
) -> tuple[float, float]:
    """Return mean and standard deviation of IS over splits; seed None: consecutive splits, as ADM's evaluator.

    Raises: UserError where there are fewer images than splits."""
    n = len(logits_NC)
    if n < splits:
        raise UserError(f"the Inception Score takes {splits} splits and found {n} images")
    order_N = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    values = []
    for split in range(splits):
        chosen = order_N[split * n // splits : (split + 1) * n // splits]
        p_NC = softmax(logits_NC[chosen].astype(np.float64), axis=1)
        p_C = p_NC.mean(axis=0)
        values.append(np.exp(xlogy(p_NC, p_NC).sum(axis=1).mean() - xlogy(p_C, p_C).sum()))
    return float(np.mean(values)), float(np.std(values))
