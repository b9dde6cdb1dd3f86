"""Comparisons of many models at once, and win rates.

    all pairs   the differences of `statistics.compare` for every two of M models, from draws that all pairs share,
                so that the draws cost no more than one comparison
    win rate    the share of (prompt, seed) pairs in which a is better, a tie counting half; averaged over the images
                of a prompt, then over prompts, with the interval of a value, so within [0, 1] (as in user studies)

Axes: P prompts, M models, R replicates.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from leaderboards.resampling import (
    bca_interval,
    difference_margins,
    extremes,
    mid_p,
    signs_of,
    whole_numbers,
)
from leaderboards.statistics import (
    REPLICATES,
    Aggregate,
    Comparison,
    Estimate,
    PromptMeans,
    Scores,
    align,
)


def compare_all(
    models: Sequence[Scores], aggregate: Aggregate = "prompts", seed: int = 0, replicates: int = REPLICATES
) -> dict[tuple[int, int], Comparison]:
    """Return the difference i - j of every two models i < j, over the (prompt, seed) pairs that all of them have.

    Raises ResultError where they share none, or a key occurs twice."""
    if len(models) < 2:
        return {}
    shared = align(models, "nothing to compare: no (prompt, seed) occurs in every model")
    means = shared.means(shared.values_NM, aggregate)
    means_PM = np.stack([one.means_P for one in means], axis=1)
    strata_P, weights_P = means[0].strata_P, means[0].weights_P()
    p = _sign_flip_p(means_PM * weights_P[:, None], seed, replicates)
    pairs = list(combinations(range(len(models)), 2))
    differences_PM = np.stack([means_PM[:, i] - means_PM[:, j] for i, j in pairs], axis=1)
    margins = difference_margins(differences_PM, strata_P, seed, replicates)
    found, n_pairs = {}, len(shared.prompt_ids)
    for (i, j), differences_P, margin in zip(pairs, differences_PM.T, margins, strict=True):
        unpaired = len(models[i].values_N) + len(models[j].values_N) - 2 * n_pairs
        found[i, j] = Comparison.of(PromptMeans(differences_P, strata_P), margin, float(p[i, j]), n_pairs, unpaired)
    return found


def win_rate(
    a: Scores,
    b: Scores,
    higher_is_better: bool = True,
    aggregate: Aggregate = "prompts",
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Estimate:
    """Return how often a is better than b, in [0, 1] with its 95 % interval, over the (prompt, seed) pairs of both.

    Raises ResultError where they share none, or a key occurs twice."""
    pair = align([a, b], "nothing to compare: no (prompt, seed) occurs in both")
    signs_N = np.sign(pair.values_NM[:, 0] - pair.values_NM[:, 1])
    wins_N = (1 + (signs_N if higher_is_better else -signs_N)) / 2
    prompts = PromptMeans.of(wins_N, pair.prompt_ids, pair.categories, aggregate)
    low, high = bca_interval(prompts.means_P, prompts.strata_P, seed, replicates)
    return Estimate(prompts.mean(), low, high, len(prompts.means_P), len(wins_N))


def compare_with(
    models: Sequence[Scores],
    baseline: Scores,
    aggregate: Aggregate = "prompts",
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[Comparison]:
    """Return the difference of each model to one baseline, as `statistics.compare` has it: models on the same images
    share their draws. Raises ResultError where a model and the baseline share no image."""
    images = [(tuple(scores.prompt_ids), tuple(scores.seeds)) for scores in models]
    found: dict[int, Comparison] = {}
    for key in dict.fromkeys(images):
        members = [index for index, other in enumerate(images) if other == key]
        shared = align([baseline, *(models[index] for index in members)], "no (prompt, seed) occurs in both")
        differences_NM = shared.values_NM[:, 1:] - shared.values_NM[:, :1]
        means = shared.means(differences_NM, aggregate)
        means_PM = np.stack([one.means_P for one in means], axis=1)
        strata_P, weights_P = means[0].strata_P, means[0].weights_P()
        margins = difference_margins(means_PM, strata_P, seed, replicates)
        p_M = _column_p(means_PM * weights_P[:, None], seed, replicates)
        n_pairs = len(shared.prompt_ids)
        for column, index in enumerate(members):
            unpaired = len(models[index].values_N) + len(baseline.values_N) - 2 * n_pairs
            found[index] = Comparison.of(means[column], margins[column], float(p_M[column]), n_pairs, unpaired)
    return [found[index] for index in range(len(models))]


def _column_p(parts_PM: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    whole_PM, _ = whole_numbers(parts_PM)
    observed_M = abs(whole_PM.sum(axis=0))
    extreme_M = np.zeros(len(observed_M))
    for signs_RP in signs_of(len(whole_PM), seed, replicates):
        extreme_M += extremes(abs(signs_RP @ whole_PM), observed_M, len(whole_PM))
    return mid_p(extreme_M, observed_M, len(whole_PM), replicates)


def _sign_flip_p(parts_PM: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Return the two-sided p_MM of every difference of columns, each as `resampling.sign_flip_p` has it."""
    whole_PM, _ = whole_numbers(parts_PM)
    total_M = whole_PM.sum(axis=0)
    observed_MM = abs(total_M[:, None] - total_M[None, :])
    extreme_MM = np.zeros_like(observed_MM)
    for signs_RP in signs_of(len(whole_PM), seed, replicates):
        flipped_RM = signs_RP @ whole_PM
        for i in range(whole_PM.shape[1]):
            extreme_MM[i] += extremes(abs(flipped_RM[:, i, None] - flipped_RM), observed_MM[i], len(whole_PM))
    return mid_p(extreme_MM, observed_MM, len(whole_PM), replicates)
