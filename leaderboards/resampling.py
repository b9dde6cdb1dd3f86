"""Random draws over prompts: bootstrap, sign flips, max-T, with the same bits on every machine.

Sums are taken over whole numbers below 2^53, exact in any order of addition (so neither BLAS nor SIMD width shows),
and draws come from the raw bits of PCG64, the only stream that numpy promises to keep.

    value       BCa interval (Efron & Tibshirani 1993, Eq. 14.9-14.15): on skewed and on nearly perfect scores it
                misses equally often on both sides, where the percentile interval does not. n - 1 of n prompts are
                drawn per stratum, so the variance is the unbiased s² / n, not s² (n - 1) / n² (Rao & Wu 1988,
                Sec. 2), at levels expanded to Student's t, Phi(t_{alpha, n-1}) for alpha (Hesterberg 2015, Sec. 4.3)
    difference  symmetric bootstrap-t interval, d ± q s with q the 95 % point of |d* - d| / s* (Efron & Tibshirani
                1993, Sec. 12.5; Hall 1988, Sec. 2). Paired differences are nearly symmetric, with heavy tails that
                make BCa's estimated acceleration noise, and those of yes and no have 0 as a step, which an interval
                that ends on steps holds too often
    p           Monte Carlo, never 0 (Phipson & Smyth 2010, Eq. 2), ties half: mid-p (Lancaster 1961), for yes and no
                McNemar's mid-p (Fagerland, Lydersen & Laake 2013); max-T: Westfall & Young 1993, ch. 2

Axes: P prompts, R replicates, M models.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
_CHUNK = 2**21  # draws held in memory at once
_KEPT = 6 * 2**20  # draws of one kind that are remembered: 48 MiB, twelve kinds at most
_NORMAL = NormalDist()
Interval = tuple[float, float] | tuple[None, None]


def bca_interval(means_P: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> Interval:
    """Return the BCa interval of the mean over strata 0, 1, ... of the mean over their prompts.

    None where it would be a guess: a stratum of one prompt, prompts that all agree, replicates = 0."""
    if _is_guess(means_P, strata_P, replicates):
        return None, None
    ordered_R = np.sort(bootstrap(means_P, strata_P, seed, replicates))
    if ordered_R[0] == ordered_R[-1]:  # prompts vary between categories only
        return None, None
    # The observed value by the same arithmetic as the replicates, so that equal ones compare as equal.
    whole_P, scale = whole_numbers(means_P)
    strata = enumerate(np.bincount(strata_P))
    point = float(np.mean([whole_P[strata_P == s].sum() / n for s, n in strata])) * scale
    low, high = bca_levels(ordered_R, point, means_P, strata_P)
    index = [min(max(math.floor((replicates + 1) * level) - 1, 0), replicates - 1) for level in (low, high)]
    return float(ordered_R[index[0]]), float(ordered_R[index[1]])


def difference_margins(means_PM: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> list[float | None]:
    """Return of each column, the paired differences of two models, half the width of the interval of its mean.

    Strata and None as in `bca_interval`. Where more than 5 % of the resamples hold no two prompts that differ, q is
    Student's, with the degrees of freedom of `expanded_z`."""
    sizes = np.bincount(strata_P)
    if replicates == 0 or sizes.min() < 2:
        return [None] * means_PM.shape[1]
    found: list[float | None] = []
    for part in _chunks(means_PM.shape[1], replicates):
        told = [_about_centre(means_P, strata_P) for means_P in means_PM[:, part].T]
        about_PM = np.stack([about_P for about_P, _ in told], axis=1)
        t_RM = _bootstrap_t(about_PM, strata_P, seed, replicates)
        place = min(math.ceil(LEVEL * (replicates + 1)), replicates) - 1
        for about_P, (_, scale), q in zip(about_PM.T, told, np.partition(t_RM, place, axis=0)[place], strict=True):
            error = math.sqrt(_variance(about_P, strata_P)) * scale / len(sizes)
            if error and not np.isfinite(q):
                q = expanded_z(about_P / sizes[strata_P], strata_P)
            found.append(float(q * error) if error else None)
    return found


def _about_centre(means_P: np.ndarray, strata_P: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (whole, scale): prompts about the mean of their stratum, as whole numbers with exact sums of squares."""
    whole_P, scale = whole_numbers(means_P)
    sizes = np.bincount(strata_P)
    about_P = whole_P - (np.bincount(strata_P, whole_P) / sizes)[strata_P]
    largest = float(abs(about_P).max())
    if largest < 1:  # they agree, up to rounding
        return np.zeros_like(about_P), scale
    # Sums of squares stay below 2^52; with 24 bits the square of three alike is exact too, so their spread is 0.
    bits = min(24, (52 - math.ceil(math.log2(len(about_P) + 1))) // 2)
    unit = math.ldexp(1.0, math.frexp(largest)[1] - bits)
    return np.rint(about_P / unit), unit * scale


def _variance(about_P: np.ndarray, strata_P: np.ndarray) -> float:
    """Return sum_s s_s² / n_s."""
    sizes = np.bincount(strata_P)
    return float((np.bincount(strata_P, about_P**2) / ((sizes - 1) * sizes)).sum())


def _bootstrap_t(about_PM: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Return |d* - d| / s*, inf where a resample has no spread: n of n prompts drawn per stratum."""
    mean_RM, variance_RM = np.zeros((2, replicates, about_PM.shape[1]))
    for stratum, size in enumerate(np.bincount(strata_P).tolist()):
        about_nM = about_PM[strata_P == stratum]
        squared_nM, start = about_nM**2, 0
        for times_rn in _kept(_drawings, size, size, seed, stratum, replicates):
            rows = slice(start, start := start + len(times_rn))
            sums_rM, squares_rM = times_rn @ about_nM, times_rn @ squared_nM
            spread_rM = squares_rM - sums_rM**2 / size
            mean_RM[rows] += sums_rM / size
            variance_RM[rows] += spread_rM / ((size - 1) * size)
    t_RM = np.full_like(mean_RM, np.inf)
    return np.divide(abs(mean_RM), np.sqrt(variance_RM), out=t_RM, where=variance_RM > 0)


def bootstrap(means_P: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Return replicates_R of the mean over strata of the mean over n - 1 prompts drawn with replacement."""
    whole_P, scale = whole_numbers(means_P)
    sizes = np.bincount(strata_P)
    total_R = np.zeros(replicates)
    for stratum, size in enumerate(sizes.tolist()):
        whole_n = whole_P[strata_P == stratum]
        blocks = _kept(_drawings, size, size - 1, seed, stratum, replicates)
        total_R += np.concatenate([times_rn @ whole_n for times_rn in blocks]) / (size - 1)
    return total_R / len(sizes) * scale


def _is_guess(means_P: np.ndarray, strata_P: np.ndarray, replicates: int) -> bool:
    return bool(replicates == 0 or np.bincount(strata_P).min() < 2 or np.ptp(means_P) == 0)


def _drawings(size: int, draws: int, seed: int, stratum: int, replicates: int) -> Iterator[np.ndarray]:
    """Yield blocks [r, n] of how often each prompt of a stratum is drawn, float64, R rows in all."""
    bits = np.random.PCG64([seed, stratum])
    for rows in _chunks(replicates, size):
        # 32 random bits b give the index floor(b n / 2^32): uneven by less than n / 2^32.
        b = bits.random_raw((rows.stop - rows.start) * draws) >> np.uint64(32)
        index = ((b * np.uint64(size)) >> np.uint64(32)).astype(np.intp).reshape(-1, draws)
        index += np.arange(len(index))[:, None] * size
        times = np.bincount(index.ravel(), minlength=len(index) * size)
        yield times.reshape(-1, size).astype(np.float64)


def bca_levels(
    replicates_R: np.ndarray, point: float, means_P: np.ndarray, strata_P: np.ndarray
) -> tuple[float, float]:
    """Return the two quantile levels of the BCa interval (Eq. 14.10)."""
    below = np.count_nonzero(replicates_R < point) + np.count_nonzero(replicates_R == point) / 2
    share = min(max(below / len(replicates_R), 1e-3), 1 - 1e-3)
    z0 = _NORMAL.inv_cdf(share)  # bias correction, Eq. 14.14 with ties counted half
    influence_P = _influence(means_P, strata_P)
    acceleration = math.fsum(influence_P**3) / (6 * math.fsum(influence_P**2) ** 1.5)  # Eq. 14.15, for a mean
    expanded, levels = expanded_z(influence_P, strata_P), []
    for z in (z0 - expanded, z0 + expanded):
        stretch = 1 - acceleration * z  # of few prompts, t may lie beyond the pole of Eq. 14.10
        levels.append(_NORMAL.cdf(z0 + z / stretch) if stretch > 0 else float(z > 0))
    return levels[0], levels[1]


def _influence(means_P: np.ndarray, strata_P: np.ndarray) -> np.ndarray:
    """Return the empirical influence_P of each prompt on the mean of strata, up to a factor."""
    sizes = np.bincount(strata_P)
    centre = np.array([means_P[strata_P == s].mean() for s in range(len(sizes))])
    influence_P: np.ndarray = (means_P - centre[strata_P]) / sizes[strata_P]
    return influence_P / abs(influence_P).max()  # what is made of them has no unit; so nothing overflows


def expanded_z(influence_P: np.ndarray, strata_P: np.ndarray) -> float:
    """Return t at (1 + LEVEL) / 2, to be used as the z of a level: n - 1 degrees of freedom, of strata Welch's

    (sum v_s)^2 / sum(v_s^2 / (n_s - 1)),   v_s = s_s^2 / n_s."""
    sizes = np.bincount(strata_P)
    variance_S = np.bincount(strata_P, influence_P**2) * sizes / (sizes - 1)
    freedom = variance_S.sum() ** 2 / (variance_S**2 / (sizes - 1)).sum()
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def sign_flip_p(parts_P: np.ndarray, seed: int, replicates: int) -> float:
    """Return the two-sided mid-p of sum(parts_P) against random signs of its parts, never 0 (Phipson & Smyth)."""
    whole_P, _ = whole_numbers(parts_P)
    observed = np.asarray(abs(whole_P.sum()))
    blocks = signs_of(len(whole_P), seed, replicates)
    extreme = sum(extremes(abs(signs @ whole_P), observed, len(whole_P)) for signs in blocks)
    return float(mid_p(np.asarray(extreme), observed, len(whole_P), replicates))


def extremes(flipped_R: np.ndarray, observed: np.ndarray, prompts: int) -> np.ndarray:
    """Return how many |sums| over prompts lie above the observed one, ties half: axis 0 is counted.

    Whole numbers are rounded by at most 1/2 each, so sums that are equal differ by at most one per prompt."""
    above, reached = flipped_R > observed + prompts, flipped_R >= observed - prompts
    counted: np.ndarray = (np.count_nonzero(above, axis=0) + np.count_nonzero(reached, axis=0)) / 2
    return counted


def mid_p(extreme: np.ndarray, observed: np.ndarray, prompts: int, replicates: int) -> np.ndarray:
    """Return P(|sum| > observed) + P(|sum| = observed) / 2; 1 where nothing is observed, as twice the mid-p of one
    side is. What was observed counts as one draw more."""
    return np.where(observed <= prompts, 1.0, (1 + extreme) / (1 + replicates))


def max_t(parts_PM: np.ndarray, seed: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Return familywise p_MM of all pairs of columns, and the difference_MM of their sums.

    A pair's statistic is |sum of signed differences| over its standard deviation under random signs, the root of the
    sum of squared differences, which flips do not change; it is held against the largest statistic of any pair."""
    whole_PM, scale = whole_numbers(parts_PM)
    models = whole_PM.shape[1]
    total_M = whole_PM.sum(axis=0)
    spread_MM = np.sqrt(np.stack([((whole_PM[:, i, None] - whole_PM) ** 2).sum(axis=0) for i in range(models)]))
    spread_MM[spread_MM == 0] = np.inf  # twins: no difference under any signs
    observed_MM = abs(total_M[:, None] - total_M[None, :]) / spread_MM
    exceeding_MM = np.ones((models, models))
    for signs_RP in signs_of(len(whole_PM), seed, replicates):
        flipped_MR = np.ascontiguousarray((signs_RP @ whole_PM).T)
        parts = [_largest(flipped_MR[:, part], spread_MM) for part in _chunks(len(signs_RP), _CHUNK // 512)]
        largest_R = np.concatenate(parts)
        # How many replicates reach each observed statistic: their rank among the sorted maxima.
        exceeding_MM += len(largest_R) - np.searchsorted(np.sort(largest_R), observed_MM, side="left")
    return exceeding_MM / (1 + replicates), (total_M[:, None] - total_M[None, :]) * scale


def _largest(flipped_MR: np.ndarray, spread_MM: np.ndarray) -> np.ndarray:
    """Return the largest statistic_R of any pair. Few replicates at a time: all pairs of one stay in cache."""
    pairs_MR, largest_R = np.empty_like(flipped_MR), np.zeros(flipped_MR.shape[1])
    for i in range(len(flipped_MR) - 1):
        pairs = np.subtract(flipped_MR[i + 1 :], flipped_MR[i], out=pairs_MR[i + 1 :])
        np.divide(np.abs(pairs, out=pairs), spread_MM[i, i + 1 :, None], out=pairs)
        np.maximum(largest_R, pairs.max(axis=0), out=largest_R)
    return largest_R


def signs_of(prompts: int, seed: int, replicates: int) -> Iterable[np.ndarray]:
    """Return blocks [r, P] of random signs, float64, R rows in all."""
    return _kept(_signs, prompts, seed, replicates)


def _kept(draws: Callable[..., Iterator[np.ndarray]], size: int, *seeds: int) -> Iterable[np.ndarray]:
    """Return the blocks of a function of random draws, those of small ones from memory.

    Every metric of a board asks for the same draws: they depend on the number of prompts, not on the values."""
    return _remembered(draws, size, *seeds) if size * seeds[-1] <= _KEPT else draws(size, *seeds)


@lru_cache(maxsize=12)
def _remembered(draws: Callable[..., Iterator[np.ndarray]], *arguments: int) -> tuple[np.ndarray, ...]:
    blocks = tuple(draws(*arguments))
    for block in blocks:
        block.flags.writeable = False
    return blocks


def _signs(prompts: int, seed: int, replicates: int) -> Iterator[np.ndarray]:
    bits, words = np.random.PCG64([seed, 2**32 - 1]), -(-prompts // 64)
    for rows in _chunks(replicates, prompts):
        raw = bits.random_raw((rows.stop - rows.start) * words).astype("<u8").view(np.uint8)
        flips = np.unpackbits(raw.reshape(-1, 8 * words), axis=1, count=prompts, bitorder="little")
        yield 1.0 - 2.0 * flips


def _chunks(replicates: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, replicates, step):
        yield slice(start, min(start + step, replicates))


def whole_numbers(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (whole, scale) with values ≈ whole × scale: float64 whole numbers whose sums, over as many terms as
    `values` has rows, stay below 2^53 and so are exact in any order of addition. Rounds at 2^-36 or finer of the
    largest value for up to 10,000 rows."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return np.zeros_like(values), 1.0
    _, exponent = math.frexp(largest)  # largest < 2^exponent
    bits = 50 - math.ceil(math.log2(len(values) + 1))  # also for differences of two columns
    scale = math.ldexp(1.0, exponent - bits)
    return np.rint(values / scale), scale
