"""Two or more models on the same images: the first against every other, and the prompts that changed most.

    difference   first - other, paired over (prompt, seed), with interval and p (leaderboards.statistics)
    p            after Holm over everything that is shown: all metrics times all others
    win rate     how often the first is better on the same (prompt, seed), a tie counting half
    changed      prompts by the size of their mean difference

Only numbers of one column are compared: same prompts, card version, variant, perceiver, weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leaderboards.columns import Column, trained_on
from leaderboards.pairs import win_rate
from leaderboards.schema import ResultError
from leaderboards.statistics import REPLICATES, Comparison, Estimate, align, compare, holm
from leaderboards.store import Entry, Sample


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The first model against one other, by one metric."""

    column: Column
    other: str
    difference: Comparison
    p: float  # after Holm
    wins: Estimate
    trained_on: tuple[str, ...]  # names of the two that this metric was a reward of

    @property
    def verdict(self) -> str:
        """Which of the two is better, or that they cannot be told apart; decided by interval and p together."""
        found = self.difference
        if found.low is None or found.high is None or self.p > 0.05 or found.low <= 0 <= found.high:
            return "not told apart"
        return "better" if (found.difference > 0) == self.column.higher_is_better else "worse"


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One prompt under one metric: the mean of each model over the images that all share."""

    prompt_id: str
    category: str
    means: tuple[float, ...]  # in the order of the models

    @property
    def size(self) -> float:
        """The largest difference of the first to another."""
        return max(abs(self.means[0] - other) for other in self.means[1:])


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All that a comparison shows."""

    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    contrasts: tuple[Contrast, ...]  # by column, then by other

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.result.model.name for entry in self.entries)


def compare_models(entries: Sequence[Entry], replicates: int = REPLICATES) -> Compared:
    """Compare the first of two or more results with every other.

    Raises ResultError for fewer than two, for one given twice, and where they have no metric in common."""
    if len(entries) < 2:
        raise ResultError("compare needs two results or more")
    names = [entry.result.model.name for entry in entries]
    if len({entry.path for entry in entries}) < len(entries):
        raise ResultError(f"compare: a result is given twice among {', '.join(names)}")
    columns = shared_columns(entries)
    if not columns:
        raise ResultError(f"nothing to compare: {', '.join(names)} have no metric in common on the same prompts")
    first, others = entries[0], entries[1:]
    found = [(column, other, *_contrast(first, other, column, replicates)) for column in columns for other in others]
    adjusted = holm([difference.p for _, _, difference, _ in found])
    contrasts = [
        Contrast(
            column=column,
            other=other.result.model.name,
            difference=difference,
            p=p,
            wins=wins,
            trained_on=tuple(
                one.result.model.name for one in (first, other) if trained_on(one.result, column.metric)
            ),
        )
        for (column, other, difference, wins), p in zip(found, adjusted, strict=True)
    ]
    return Compared(entries=tuple(entries), columns=tuple(columns), contrasts=tuple(contrasts))


def changed_most(entries: Sequence[Entry], column: Column) -> list[Changed]:
    """Return every prompt that all models share, the one that changed most first.

    Raises ResultError where they share no (prompt, seed)."""
    scores = [entry.scores(column.task, column.metric) for entry in entries]
    shared = align(scores, f"{column.title}: no (prompt, seed) occurs in every model")
    ids, place_N = np.unique(np.asarray(shared.prompt_ids, str), return_inverse=True)
    counts_P = np.bincount(place_N)
    means_PM = np.stack([np.bincount(place_N, weights=v) / counts_P for v in shared.values_NM.T], axis=1)
    categories = dict(zip(shared.prompt_ids, shared.categories, strict=True))
    found = [
        Changed(prompt_id=name, category=categories[name], means=tuple(means))
        for name, means in zip(ids.tolist(), means_PM.tolist(), strict=True)
    ]
    return sorted(found, key=lambda one: (-one.size, one.prompt_id))


def samples_of(entries: Sequence[Entry], task: str) -> Mapping[str, list[list[Sample]]]:
    """Return by prompt the pictures of each model, in the order of seeds; only prompts all have."""
    found: dict[str, list[list[Sample]]] = {}
    for place, entry in enumerate(entries):
        for sample in sorted(entry.samples, key=lambda sample: sample.seed):
            if sample.task == task:
                found.setdefault(sample.prompt_id, [[] for _ in entries])[place].append(sample)
    return {name: pictures for name, pictures in found.items() if all(pictures)}


def shared_columns(entries: Sequence[Entry]) -> list[Column]:
    """Return the columns in which all have evidence, in the order of the first."""

    def columns(entry: Entry) -> Iterable[Column]:
        return [
            Column.of(task, name, metric)
            for task in entry.result.tasks
            for name, metric in task.metrics.items()
            if metric.status == "ok" and metric.aggregate != "set" and entry.table is not None
        ]

    others = [set(columns(entry)) for entry in entries[1:]]
    found = [column for column in columns(entries[0]) if all(column in known for known in others)]
    return sorted(found, key=lambda column: column.aggregate != "categories")  # judges of composition first


def _contrast(first: Entry, other: Entry, column: Column, replicates: int) -> tuple[Comparison, Estimate]:
    ours, theirs = (entry.scores(column.task, column.metric) for entry in (first, other))
    wins = win_rate(ours, theirs, column.higher_is_better, column.mean_over, replicates=replicates)
    return compare(ours, theirs, column.mean_over, replicates=replicates), wins
