"""Random draws over prompts: bootstrap, sign flips, max-T, with the same bits on every machine.

Sums are taken over whole numbers below 2^53, exact in any order of addition (so neither BLAS nor SIMD width shows),
and draws come from the raw bits of PCG64, the only stream that numpy promises to keep.

    bootstrap   n - 1 of n prompts per stratum, so the variance is the unbiased s² / n, not s² (n - 1) / n²
                (Rao & Wu 1988, Sec. 2)
    value       BCa interval (Efron & Tibshirani 1993, Eq. 14.9-14.15): on skewed and on nearly perfect scores it
                misses equally often on both sides, where the percentile interval does not
    difference  percentile interval between mid-distribution quantiles (Ma, Genton & Parzen 2011, Eq. 2.3). Paired
                differences have heavy tails, which make BCa's estimated acceleration noise, and 0 is a step of the
                differences of yes and no: a closed interval that ends on steps holds it too often
    both        at levels expanded to Student's t, Phi(t_{alpha, n-1}) for alpha (Hesterberg 2015, Sec. 4.3; his
                sqrt(n / (n - 1)) is in the n - 1 draws)
    p           Monte Carlo, never 0 (Phipson & Smyth 2010, Eq. 2), ties half: mid-p (Lancaster 1961), for yes and no
                McNemar's mid-p (Fagerland, Lydersen & Laake 2013); max-T: Westfall & Young 1993, ch. 2

Axes: P prompts, R replicates, M models.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def difference_interval(means_P: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> Interval:
    """Return the interval of the mean of paired differences; strata and None as in `bca_interval`."""
    if _is_guess(means_P, strata_P, replicates):
        return None, None
    whole_P, scale = whole_numbers(means_P)
    return difference_interval_of(_sums_of_one(whole_P, strata_P, seed, replicates), scale, means_P, strata_P)


def difference_interval_of(
    sums: Sequence[np.ndarray], scale: float, means_P: np.ndarray, strata_P: np.ndarray
) -> Interval:
    """Return the interval from bootstrap sums_R of whole numbers, one array per stratum."""
    ordered_R = np.sort(_mean_of_strata(sums, np.bincount(strata_P), scale))
    if ordered_R[0] == ordered_R[-1]:
        return None, None
    z = expanded_z(_influence(means_P, strata_P), strata_P)
    low, high = (mid_quantile(ordered_R, _NORMAL.cdf(end), 2 * scale) for end in (-z, z))
    return low, high


def mid_quantile(ordered_R: np.ndarray, level: float, slack: float) -> float:
    """Return the quantile of the mid-distribution function: values within `slack` are one step, of the mean rank
    of theirs; between steps the quantile is linear. Without ties it is the order statistic of rank level (R + 1)."""
    target = min(max(level * (len(ordered_R) + 1) - 1, 0.0), len(ordered_R) - 1.0)
    first, last = _step(ordered_R, math.floor(target), slack)
    rank, value = (first + last) / 2, float(ordered_R[first])
    neighbour = last + 1 if rank < target else first - 1
    if rank == target or not 0 <= neighbour < len(ordered_R):
        return value
    first, last = _step(ordered_R, neighbour, slack)
    return value + (float(ordered_R[first]) - value) * (target - rank) / ((first + last) / 2 - rank)


def _step(ordered_R: np.ndarray, place: int, slack: float) -> tuple[int, int]:
    """Return the first and the last place whose values equal that of a place."""
    value = ordered_R[place]
    first, end = np.searchsorted(ordered_R, value - slack, "left"), np.searchsorted(ordered_R, value + slack, "right")
    return int(first), int(end) - 1


def bootstrap(means_P: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Return replicates_R of the mean over strata of the mean over n - 1 prompts drawn with replacement."""
    whole_P, scale = whole_numbers(means_P)
    return _mean_of_strata(_sums_of_one(whole_P, strata_P, seed, replicates), np.bincount(strata_P), scale)


def _sums_of_one(whole_P: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> list[np.ndarray]:
    return [sums_R1[:, 0] for sums_R1 in bootstrap_sums(whole_P[:, None], strata_P, seed, replicates)]


def _is_guess(means_P: np.ndarray, strata_P: np.ndarray, replicates: int) -> bool:
    return bool(replicates == 0 or np.bincount(strata_P).min() < 2 or np.ptp(means_P) == 0)


def bootstrap_sums(whole_PM: np.ndarray, strata_P: np.ndarray, seed: int, replicates: int) -> list[np.ndarray]:
    """Return for each stratum the sums_RM over n - 1 of its n prompts drawn with replacement.

    All columns see the same draws, so that differences of columns are the bootstrap of their differences."""
    found = []
    for stratum, size in enumerate(np.bincount(strata_P).tolist()):
        whole_nM = whole_PM[strata_P == stratum]
        blocks = _kept(_drawings, size, seed, stratum, replicates)
        found.append(np.concatenate([times_rn @ whole_nM for times_rn in blocks]))
    return found


def _drawings(size: int, seed: int, stratum: int, replicates: int) -> Iterator[np.ndarray]:
    """Yield blocks [r, n] of how often each prompt of a stratum is drawn, float64, R rows in all."""
    bits = np.random.PCG64([seed, stratum])
    for rows in _chunks(replicates, size):
        # 32 random bits b give the index floor(b n / 2^32): uneven by less than n / 2^32.
        b = bits.random_raw((rows.stop - rows.start) * (size - 1)) >> np.uint64(32)
        index = ((b * np.uint64(size)) >> np.uint64(32)).astype(np.intp).reshape(-1, size - 1)
        index += np.arange(len(index))[:, None] * size
        times = np.bincount(index.ravel(), minlength=len(index) * size)
        yield times.reshape(-1, size).astype(np.float64)


def _mean_of_strata(sums: Sequence[np.ndarray], sizes: np.ndarray, scale: float) -> np.ndarray:
    total_R = np.zeros(len(sums[0]))
    for sums_R, size in zip(sums, sizes.tolist(), strict=True):
        total_R += sums_R / (size - 1)
    return total_R / len(sizes) * scale


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
