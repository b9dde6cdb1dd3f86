"""What a study has found, as Markdown: means over training seeds, their spread, and paired differences.

    mean        over the training seeds that are there
    spread      sample standard deviation over them; none for one seed
    difference  of two rows, each a mean over its training seeds, paired over (prompt, seed of the picture), with
                its 95 % interval over prompts: what other prompts would change; the spread is what other seeds would

A row that was not trained knows no training seed. A figure that no result holds is a dash.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.config import UserError

if TYPE_CHECKING:
    from leaderboards.schema import MetricResult
    from leaderboards.statistics import Scores
    from leaderboards.store import Entry
    from trainers.study import StudyConfig

NOTHING = "–"


def study_table(study: "StudyConfig", board: Path) -> str:
    """Return the Markdown of what a board holds of a study. Raises UserError where it holds nothing of it."""
    from leaderboards.store import read_board

    entries = {entry.result.model.name: entry for entry in read_board(board).suites.get(Path(study.suite).stem, [])}
    rows = {}
    for row in study.rows:
        names = [row.name] if row.model else [f"{row.name}-s{seed}" for seed in study.seeds]
        rows[row.name] = Row(row.name, not row.model, [entries[name] for name in names if name in entries])
    if not any(row.entries for row in rows.values()):
        raise UserError(f"{board}: no result of this study yet; run it first")
    others = [rows[name] for name in study.against]
    parts = [_values(list(rows.values()), study.measures)]
    parts += [_differences([row for row in rows.values() if row.trained], others, name) for name in study.compared]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Row:
    """A row of the study with its results, one per training seed."""

    name: str
    trained: bool
    entries: "list[Entry]"

    def metrics(self, measure: str) -> "list[MetricResult]":
        """Return the results of a metric that have a value."""
        found = [entry.result.tasks[0].metrics.get(measure) for entry in self.entries]
        return [metric for metric in found if metric is not None and metric.value is not None]

    def mean_and_spread(self, measure: str) -> str:
        """Return a cell of the table."""
        values = [metric.value for metric in self.metrics(measure) if metric.value is not None]
        if not values:
            return NOTHING
        return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")

    def mean_scores(self, measure: str) -> "Scores":
        """Return each picture's mean over the training seeds. Raises ResultError where they share no picture."""
        from leaderboards.statistics import Scores, align

        seeds = [entry.scores(entry.result.tasks[0].name, measure) for entry in self.entries]
        shared = align(seeds, f"{self.name}: the seeds' results of {measure} share no picture")
        values_N = np.mean(shared.values_NM, axis=1)
        return Scores(
            values_N=values_N, prompt_ids=shared.prompt_ids, seeds=shared.seeds, categories=shared.categories
        )

    def minus(self, other: "Row", measure: str) -> str:
        """Return the cell of the difference to another row."""
        from leaderboards.statistics import Aggregate, compare

        ours = self.metrics(measure)
        if self.name == other.name or not ours or not other.metrics(measure):
            return NOTHING
        aggregate: Aggregate = "categories" if ours[0].aggregate == "categories" else "prompts"
        found = compare(self.mean_scores(measure), other.mean_scores(measure), aggregate)
        interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
        return f"{found.difference:+.3f}{interval}"


def _values(rows: list[Row], measures: tuple[str, ...]) -> str:
    titles = [_title(rows, measure) for measure in measures]
    lines = _head("row", "seeds", *titles)
    for row in rows:
        seeds = str(len(row.entries)) if row.trained else NOTHING
        lines.append(_line(row.name, seeds, *(row.mean_and_spread(measure) for measure in measures)))
    return "Mean over training seeds ± their standard deviation:\n\n" + "\n".join(lines)


def _differences(rows: list[Row], others: list[Row], measure: str) -> str:
    lines = _head(f"{_title(rows, measure)} of", *(f"minus {other.name}" for other in others))
    lines += [_line(row.name, *(row.minus(other, measure) for other in others)) for row in rows]
    return "Difference [95 % interval over prompts]:\n\n" + "\n".join(lines)


def _title(rows: list[Row], measure: str) -> str:
    metrics = [metric for row in rows for metric in row.metrics(measure)]
    return f"{metrics[0].title} {'↑' if metrics[0].higher_is_better else '↓'}" if metrics else measure


def _head(*titles: str) -> list[str]:
    return [_line(*titles), _line(*("---" for _ in titles))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
