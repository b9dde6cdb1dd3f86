"""What may be said of a number: intervals, paired tests and rank bands, all clustered by prompt.

Images of one prompt are not independent, prompts are: so every random draw moves whole prompts.

    point      mean over the images of a prompt, then over prompts; for "categories" over the prompts of a
               category, then the unweighted mean of categories
    interval   95 %, bootstrap over prompts, stratified by category for "categories": BCa of a value, bootstrap-t of
               a paired difference
    test       paired over (prompt, seed): sign flips of the prompts' mean differences, two-sided mid-p
    bands      models whose difference survives max-T over all pairs; "2-4" = two or more places are possible

The draws, and their sources: leaderboards.resampling. Holm 1979; rank sets from pairwise tests: Mogstad et al. 2024.
The same rows give the same bits in every order and on every machine; means are exactly rounded (`math.fsum`).

Axes: N images, P prompts, M models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from leaderboards.resampling import LEVEL, bca_interval, difference_margins, max_t, sign_flip_p
from leaderboards.schema import ResultError

Aggregate = Literal["prompts", "categories"]
REPLICATES = 9_999  # with R + 1 = 10,000 the 2.5 % points are order statistics, not interpolations


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The evidence of one metric on one task: N rows, one per image, in any order."""

    values_N: np.ndarray  # float32 or float64, finite
    prompt_ids: Sequence[str]
    seeds: Sequence[int]
    categories: Sequence[str]
    splits: Sequence[str] = ()

    def only(self, category: str) -> "Scores":
        """Return the rows of one category."""
        chosen = [row for row, name in enumerate(self.categories) if name == category]
        return Scores(
            values_N=self.values_N[chosen],
            prompt_ids=[self.prompt_ids[row] for row in chosen],
            seeds=[self.seeds[row] for row in chosen],
            categories=[category] * len(chosen),
            splits=[self.splits[row] for row in chosen] if self.splits else (),
        )


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; no interval (None) where the prompts cannot tell how much they vary."""

    value: float
    low: float | None
    high: float | None
    n_prompts: int
    n_images: int


@dataclass(frozen=True)
class Breakdown:
    """A metric's value in all, by category and by split, as a result file holds it."""

    total: Estimate
    categories: dict[str, Estimate]
    splits: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """The paired difference a - b with its 95 % interval and two-sided p; unpaired rows took no part."""

    difference: float
    low: float | None
    high: float | None
    p: float
    n_prompts: int
    n_pairs: int
    n_unpaired: int

    @classmethod
    def of(
        cls, prompts: "PromptMeans", margin: float | None, p: float, n_pairs: int, n_unpaired: int
    ) -> "Comparison":
        """Return what the differences of prompts come to; margin: half the width of their interval."""
        difference = prompts.mean()
        low, high = (None, None) if margin is None else (difference - margin, difference + margin)
        return cls(difference, low, high, p, len(prompts.means_P), n_pairs, n_unpaired)


def estimate(
    values_N: np.ndarray,
    prompt_ids: Sequence[str],
    categories: Sequence[str],
    aggregate: Aggregate,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Estimate:
    """Return point and 95 % interval of N images' values, whatever the order of the rows.

    The interval is None where it would be a guess: a single prompt, a category of a single prompt (for
    "categories"), or prompts that all agree, such as 30 of 30 right; and with replicates = 0.
    Raises ResultError for no rows, unequal lengths, a value that is not finite, a prompt in two categories."""
    prompts = PromptMeans.of(values_N, prompt_ids, categories, aggregate)
    return _estimate(prompts, len(values_N), seed, replicates)


def _estimate(prompts: "PromptMeans", n_images: int, seed: int, replicates: int) -> Estimate:
    low, high = bca_interval(prompts.means_P, prompts.strata_P, seed, replicates)
    return Estimate(prompts.mean(), low, high, len(prompts.means_P), n_images)


def breakdown(
    scores: Scores,
    aggregate: Aggregate,
    seed: int = 0,
    replicates: int = REPLICATES,
    layout: "Layout | None" = None,
) -> Breakdown:
    """Return what a result states of one metric. A category is a mean over its prompts; a split ("seen", "unseen")
    is aggregated as the whole is, over the categories it has. Rows without a label take part in the total only.

    `layout` is that of the rows, where the caller knows it from another metric of the same images."""

    def part(groups: Groups) -> Estimate:
        return _estimate(groups.means(scores.values_N), len(groups.rows_N), seed, replicates)

    told = Layout.of(scores, aggregate) if layout is None else layout
    return Breakdown(
        total=part(told.total),
        categories={name: part(chosen) for name, chosen in told.categories.items()},
        splits={name: part(chosen) for name, chosen in told.splits.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of a breakdown: which images and prompts each of them has. Values of the same images share it."""

    total: "Groups"
    categories: "dict[str, Groups]"
    splits: "dict[str, Groups]"

    @classmethod
    def of(cls, scores: Scores, aggregate: Aggregate) -> "Layout":
        """Return the layout of a metric's rows. Raises ResultError as `estimate` does."""
        ids, labels, splits = (np.asarray(x, str) for x in (scores.prompt_ids, scores.categories, scores.splits))

        def part(chosen_N: np.ndarray, how: Aggregate) -> Groups:
            return Groups.of(ids[chosen_N], labels[chosen_N], how, np.flatnonzero(chosen_N))

        return cls(
            total=part(np.ones(len(ids), bool), aggregate),
            categories={name: part(labels == name, "prompts") for name in np.unique(labels).tolist() if name},
            splits={name: part(splits == name, aggregate) for name in np.unique(splits).tolist() if name},
        )


def compare(
    a: Scores, b: Scores, aggregate: Aggregate = "prompts", seed: int = 0, replicates: int = REPLICATES
) -> Comparison:
    """Return the difference a - b over the (prompt, seed) pairs that both have.

    Raises ResultError where they share none, or a key occurs twice."""
    pair = align([a, b], "nothing to compare: no (prompt, seed) occurs in both")
    (prompts,) = pair.means(pair.values_NM[:, :1] - pair.values_NM[:, 1:], aggregate)
    (margin,) = difference_margins(prompts.means_P[:, None], prompts.strata_P, seed, replicates)
    p = sign_flip_p(prompts.means_P * prompts.weights_P(), seed, replicates)
    pairs = len(pair.prompt_ids)
    unpaired = len(a.values_N) + len(b.values_N) - 2 * pairs
    return Comparison.of(prompts, margin, p, pairs, unpaired)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p of each of several tests, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def rank_bands(
    models: Sequence[Scores],
    aggregate: Aggregate,
    higher_is_better: bool,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[tuple[int, int]]:
    """Return each model's (best, worst) possible rank: 1 + those surely better, M - those surely worse.

    "Surely" is familywise at 5 % over all pairs of the M models, on the (prompt, seed) pairs that all share.
    Raises ResultError where the models share none."""
    if not models:
        return []
    shared = align(models, "nothing to rank: no (prompt, seed) occurs in every model")
    columns = shared.means(shared.values_NM, aggregate)
    parts_PM = np.stack([prompts.means_P * prompts.weights_P() for prompts in columns], axis=1)
    p_MM, difference_MM = max_t(parts_PM, seed, replicates)
    better_MM = (p_MM <= 1 - LEVEL) & ((difference_MM > 0) == higher_is_better)  # [i, j]: i surely beats j
    return [(1 + int(better_MM[:, i].sum()), len(models) - int(better_MM[i].sum())) for i in range(len(models))]


@dataclass(frozen=True)
class PromptMeans:
    """Prompt means in the order of (stratum, prompt id); one stratum in all, or one per category."""

    means_P: np.ndarray
    strata_P: np.ndarray  # 0, 1, ... rising

    @classmethod
    def of(
        cls, values_N: np.ndarray, prompt_ids: Sequence[str], categories: Sequence[str], aggregate: Aggregate
    ) -> "PromptMeans":
        if not len(values_N) == len(prompt_ids) == len(categories):
            raise ResultError(
                f"{len(values_N)} values, {len(prompt_ids)} prompt ids, {len(categories)} categories: "
                "pass one of each per image"
            )
        values_N = np.asarray(values_N, np.float64)
        if not np.isfinite(values_N).all():
            bad = int(np.flatnonzero(~np.isfinite(values_N))[0])
            raise ResultError(f"the value of prompt {prompt_ids[bad]!r} is not finite")
        return Groups.of(prompt_ids, categories, aggregate).means(values_N)

    def mean(self) -> float:
        """The unweighted mean over strata of the mean over prompts, exactly rounded at each level."""
        return _mean(_means(self.means_P, np.bincount(self.strata_P)).tolist())

    def weights_P(self) -> np.ndarray:
        """What each prompt's mean weighs in the value; sums to 1."""
        sizes = np.bincount(self.strata_P)
        return 1.0 / (len(sizes) * sizes[self.strata_P])


@dataclass(frozen=True)
class Groups:
    """Which images belong to a prompt, and which prompts to a stratum: all of a metric's rows but their values."""

    rows_N: np.ndarray  # the images of each prompt, one prompt after the other, as places in the values
    sizes_P: np.ndarray  # images of each prompt, in the order of (stratum, prompt id)
    strata_P: np.ndarray  # 0, 1, ... rising

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[str] | np.ndarray,
        categories: Sequence[str] | np.ndarray,
        aggregate: Aggregate,
        places_N: np.ndarray | None = None,
    ) -> "Groups":
        """Return the groups of images; `places_N`: where their values stand, default one after the other.

        Raises ResultError for no images and, for "categories", a prompt in two of them."""
        if not len(prompt_ids):
            raise ResultError("no values to summarise")
        names, prompt_N = np.unique(np.asarray(prompt_ids, str), return_inverse=True)
        stratum_P = np.zeros(len(names), int)
        if aggregate == "categories":
            stratum_N = np.unique(np.asarray(categories, str), return_inverse=True)[1]
            stratum_P[prompt_N] = stratum_N
            torn = np.flatnonzero(stratum_P[prompt_N] != stratum_N)
            if len(torn):
                raise ResultError(f"prompt {str(prompt_ids[int(torn[0])])!r} stands in two categories")
        order_P = np.lexsort((np.arange(len(names)), stratum_P))
        rank_P = np.argsort(order_P)
        rows_N = np.argsort(rank_P[prompt_N], kind="stable")
        sizes_P = np.bincount(prompt_N)[order_P]
        return cls(rows_N if places_N is None else places_N[rows_N], sizes_P, stratum_P[order_P])

    def means(self, values_N: np.ndarray) -> PromptMeans:
        """Return the mean of every prompt, exactly rounded."""
        return PromptMeans(_means(np.asarray(values_N, np.float64)[self.rows_N], self.sizes_P), self.strata_P)


def _mean(items: Sequence[float]) -> float:
    return math.fsum(items) / len(items)


def _means(values_N: np.ndarray, sizes_G: np.ndarray) -> np.ndarray:
    """Return the exactly rounded mean_G of each group; values stand one group after the other."""
    if sizes_G.max() == 1:  # one image per prompt: nothing to average
        return values_N
    values, ends = values_N.tolist(), np.cumsum(sizes_G).tolist()
    return np.array([_mean(values[start:end]) for start, end in pairwise([0, *ends])])


@dataclass(frozen=True)
class Aligned:
    """The images that several models share: one row per (prompt, seed), one column per model."""

    prompt_ids: Sequence[str]
    seeds: Sequence[int]
    categories: Sequence[str]
    values_NM: np.ndarray  # float64

    def means(self, values_NM: np.ndarray, aggregate: Aggregate) -> "list[PromptMeans]":
        """Return the prompt means of each column: of images that are grouped once for all."""
        groups = Groups.of(self.prompt_ids, self.categories, aggregate)
        return [groups.means(values_N) for values_N in values_NM.T]


def align(models: Sequence[Scores], otherwise: str) -> Aligned:
    """Return the (prompt, seed) pairs that all models have; categories are those of the first.

    Raises ResultError(otherwise) where there is none, and for a key that occurs twice."""
    first = models[0]
    ids, seeds = list(first.prompt_ids), list(first.seeds)
    if all(_same(other.prompt_ids, first.prompt_ids) and _same(other.seeds, first.seeds) for other in models[1:]):
        _rows_by_key(first)  # refuses twins
        if ids:
            values = [np.asarray(scores.values_N, np.float64) for scores in models]
            return Aligned(ids, seeds, first.categories, np.stack(values, axis=1))
    rows = [_rows_by_key(scores) for scores in models]
    keys = sorted(set.intersection(*(set(table) for table in rows)))
    if not keys:
        raise ResultError(otherwise)
    columns = [
        np.asarray(scores.values_N, np.float64)[[table[key] for key in keys]]
        for scores, table in zip(models, rows, strict=True)
    ]
    categories = [first.categories[rows[0][key]] for key in keys]
    return Aligned([prompt for prompt, _ in keys], [seed for _, seed in keys], categories, np.stack(columns, axis=1))


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    return a is b or list(a) == list(b)


def _rows_by_key(scores: Scores) -> dict[tuple[str, int], int]:
    """Return the row of every (prompt, seed)."""
    rows = {
        (str(prompt), int(seed)): row
        for row, (prompt, seed) in enumerate(zip(scores.prompt_ids, scores.seeds, strict=True))
    }
    if len(rows) != len(scores.values_N):
        raise ResultError("a (prompt, seed) occurs twice in the evidence of one metric")
    return rows
