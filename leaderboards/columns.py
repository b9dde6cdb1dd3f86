"""Columns and cells: which numbers may be compared, and whose they are.

A column is a metric's whole identity on one image set: task, prompts, card version, variant, perceiver, weights. Two
numbers that differ in any of these stand in different columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leaderboards.schema import MetricResult, Result, ResultError, Task
from leaderboards.statistics import Aggregate, rank_bands
from leaderboards.store import Entry

BAND_REPLICATES = 4_999  # up to 100 models
BAND_LEAST = 999  # puts a p of .05 within .007 of its value
WHY_APART = {
    "synthetic": "synthetic: scored with weights that are not in the shipped manifest",
    "partial": "partial: not every prompt, seed or metric of the suite was run",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """What two numbers must have in common to be compared."""

    task: str
    prompts_digest: str
    images_per_prompt: int
    metric: str
    version: int
    variant: str
    perceiver: str
    weights_digest: str
    title: str
    unit: str
    higher_is_better: bool
    aggregate: str

    @classmethod
    def of(cls, task: Task, name: str, metric: MetricResult) -> "Column":
        return cls(
            task=task.name,
            prompts_digest=task.prompts_digest,
            images_per_prompt=task.images_per_prompt,
            metric=name,
            version=metric.version,
            variant=metric.variant,
            perceiver=metric.perceiver,
            weights_digest=metric.weights_digest or "",
            title=metric.title,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            aggregate=metric.aggregate,
        )

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    @property
    def mean_over(self) -> Aggregate:
        """How images become a value; not asked of set statistics."""
        return "categories" if self.aggregate == "categories" else "prompts"

    @property
    def identity(self) -> str:
        """The card in short: "shapes_geneval v1, official, perceiver shapes"."""
        perceiver = f", perceiver {self.perceiver}" if self.perceiver else ""
        weights = f", weights {self.weights_digest[:8]}" if self.weights_digest else ""
        return f"{self.metric} v{self.version}, {self.variant}{perceiver}{weights}, prompts {self.prompts_digest[:8]}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or the reason why there is none."""

    metric: MetricResult
    trained_on: bool  # the model was trained on this metric, or on another variant of it
    band: tuple[int, int] | None = None  # possible ranks; None = not ranked


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on the suite."""

    entry: Entry
    cells: Mapping[Column, Cell]
    reason: str = ""  # why it is not ranked

    @property
    def result(self) -> Result:
        return self.entry.result


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """Return the rows of results, without ranks."""
    return [Row(entry=entry, cells=_cells(entry.result), reason=_reason(entry.result)) for entry in entries]


def trained_on(result: Result, metric: str) -> bool:
    """Whether a metric was a reward of the model; a variant ("clip_score.rtdmd") counts for its family."""
    rewards = [*result.model.trained_on, *(result.model.training.rewards if result.model.training else ())]
    return metric.partition(".")[0] in {reward.partition(".")[0] for reward in rewards}


def possible_ranks(rows: Sequence[Row], column: Column, category: str = "") -> dict[str, tuple[int, int]]:
    """Return the possible ranks of models by a column, or by one category of it; empty where nothing orders them."""
    valued = [row for row in rows if column in row.cells and row.cells[column].metric.status == "ok"]
    if column.aggregate == "set" or len(valued) < 2:
        return {}
    scores = [row.entry.scores(column.task, column.metric) for row in valued]
    if category:
        scores = [one.only(category) for one in scores]
    how: Aggregate = "prompts" if category else column.mean_over
    try:
        found = rank_bands(scores, how, column.higher_is_better, replicates=band_replicates(len(scores)))
    except ResultError:
        return {}  # no (prompt, seed) in common: the numbers stand, nothing orders them
    return {row.result.model.name: band for row, band in zip(valued, found, strict=True)}


def band_replicates(models: int) -> int:
    """Return how many draws the bands of so many models take.

    A draw looks at every pair of models: beyond 100 of them there are fewer draws, so that a board's cost stays
    linear in its models."""
    return min(BAND_REPLICATES, max(BAND_LEAST, BAND_REPLICATES * 100**2 // models**2))


def number(value: float | None) -> str:
    """Write a value with three decimals, a large one with four digits: 0.812, -1.034, 1.235e+04."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def band_text(band: tuple[int, int] | None) -> str:
    """Write possible ranks: "1", "2–4", or nothing."""
    if band is None:
        return ""
    return str(band[0]) if band[0] == band[1] else f"{band[0]}–{band[1]}"


def _cells(result: Result) -> dict[Column, Cell]:
    return {
        Column.of(task, name, metric): Cell(metric=metric, trained_on=trained_on(result, name))
        for task in result.tasks
        for name, metric in task.metrics.items()
    }


def _reason(result: Result) -> str:
    if result.status == "ranked" or result.kind == "reported":
        return result.source
    told = "; ".join(dict.fromkeys(task.reason for task in result.tasks if task.reason))
    return f"{WHY_APART[result.status]}{f' ({told})' if told else ''}"
