"""The table of one suite: which models, which numbers may share a column, and who ranks where.

A column is a metric's whole identity on one image set: task, prompts, card version, variant, perceiver, weights.
Two numbers that differ in any of these stand in different columns. Only results with status "ranked" are
ranked; synthetic and partial ones are listed apart with their reason, reported ones (papers' tables) apart from both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from leaderboards.schema import MetricResult, Result, ResultError, Task
from leaderboards.statistics import Aggregate, rank_bands
from leaderboards.store import Entry

BAND_REPLICATES = 4_999
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


@dataclass(frozen=True, kw_only=True)
class SuiteTable:
    """All that is known of one suite; columns in order of importance, rows from best to worst by the first."""

    suite: str
    columns: tuple[Column, ...]
    ranked: tuple[Row, ...]
    apart: tuple[Row, ...]  # synthetic, partial: unranked
    reported: tuple[Row, ...]  # from papers: unranked

    def headings(self) -> dict[Column, str]:
        """Return the title of each column, with what sets it apart from others of the same title."""
        found = {}
        for column in self.columns:
            namesakes = [other for other in self.columns if other.title == column.title]
            telling = [f.name for f in fields(Column) if len({getattr(other, f.name) for other in namesakes}) > 1]
            label = [f"{name.replace('_', ' ')} {str(getattr(column, name))[:16]}" for name in telling]
            found[column] = f"{column.title} ({', '.join(label)})" if label else column.title
        return found


def suite_table(suite: str, entries: Sequence[Entry]) -> SuiteTable:
    """Arrange the results of one suite."""
    rows = [Row(entry=entry, cells=_cells(entry.result), reason=_reason(entry.result)) for entry in entries]
    columns = _ordered_columns(rows)
    measured = [row for row in rows if row.result.kind == "measured"]
    ranked = _with_bands([row for row in measured if row.result.status == "ranked"], columns)

    def best_first(row: Row) -> tuple[bool, float, str]:
        metric = row.cells[columns[0]].metric if columns and columns[0] in row.cells else None
        if metric is None or metric.value is None:
            return True, 0.0, row.result.model.name
        return False, -metric.value if columns[0].higher_is_better else metric.value, row.result.model.name

    return SuiteTable(
        suite=suite,
        columns=columns,
        ranked=tuple(sorted(ranked, key=best_first)),
        apart=tuple(sorted((row for row in measured if row.result.status != "ranked"), key=best_first)),
        reported=tuple(sorted((row for row in rows if row.result.kind == "reported"), key=best_first)),
    )


def trained_on(result: Result, metric: str) -> bool:
    """Whether a metric was a reward of the model; a variant ("clip_score.rtdmd") counts for its family."""
    rewards = [*result.model.trained_on, *(result.model.training.rewards if result.model.training else ())]
    return metric.partition(".")[0] in {reward.partition(".")[0] for reward in rewards}


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


def to_markdown(table: SuiteTable) -> str:
    """Return the tables of a suite in GitHub's Markdown."""
    parts = [f"# {_escape(table.suite)}", _legend()]
    for title, rows in (
        ("Ranked", table.ranked),
        ("Not ranked", table.apart),
        ("Reported by papers", table.reported),
    ):
        if rows:
            parts += [f"## {title}", _markdown_rows(table, rows)]
    if len(parts) == 2:
        parts.append("No results yet.")
    if table.columns:
        headings = table.headings()
        cards = [
            f"- {_escape(headings[c])} {c.arrow}: {_escape(c.identity)}; unit {_escape(c.unit)}"
            for c in table.columns
        ]
        parts += ["## Metrics", "\n".join(cards)]
    return "\n\n".join(parts) + "\n"


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


def _ordered_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """By task; within one, judges of composition (means over categories), then held-out metrics, then rewards."""
    tasks = list(dict.fromkeys(task.name for row in rows for task in row.result.tasks))
    rewards = {column for row in rows for column, cell in row.cells.items() if cell.trained_on}

    def importance(column: Column) -> tuple[int, bool, bool, str, str]:
        compositional = column.aggregate == "categories"
        return tasks.index(column.task), not compositional, column in rewards, column.metric, column.identity

    return tuple(sorted({column for row in rows for column in row.cells}, key=importance))


def _with_bands(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    bands: dict[tuple[str, Column], tuple[int, int]] = {}
    for column in columns:
        if column.aggregate == "set":
            continue
        valued = [row for row in rows if column in row.cells and row.cells[column].metric.status == "ok"]
        if len(valued) < 2:
            continue
        scores = [row.entry.scores(column.task, column.metric) for row in valued]
        try:
            found = rank_bands(scores, column.mean_over, column.higher_is_better, replicates=BAND_REPLICATES)
        except ResultError:
            continue  # no (prompt, seed) in common: the numbers stand, nothing orders them
        bands.update({(row.result.model.name, column): band for row, band in zip(valued, found, strict=True)})

    def banded(row: Row) -> Row:
        cells = {
            column: Cell(
                metric=cell.metric, trained_on=cell.trained_on, band=bands.get((row.result.model.name, column))
            )
            for column, cell in row.cells.items()
        }
        return Row(entry=row.entry, cells=cells, reason=row.reason)

    return [banded(row) for row in rows]


def _legend() -> str:
    return (
        "Value [95 % interval, by prompt] #possible ranks: two models whose ranks overlap cannot be told apart. "
        "† the model was trained on this metric; every other number is held out."
    )


def _markdown_rows(table: SuiteTable, rows: Sequence[Row]) -> str:
    headings = table.headings()
    shown = [c for c in table.columns if any(c in row.cells for row in rows)]
    with_reason = any(row.reason for row in rows)
    head = [
        "model",
        "NFE",
        "method",
        *(f"{_escape(headings[c])} {c.arrow}" for c in shown),
        *(["note"] * with_reason),
    ]
    lines = [head, ["---", "---:", "---", *(["---:"] * len(shown)), *(["---"] * with_reason)]]
    for row in rows:
        cost, model = row.result.cost, row.result.model
        cells = [_markdown_cell(row.cells.get(column)) for column in shown]
        note = [_escape(row.reason)] if with_reason else []
        nfe = "–" if cost.nfe is None else str(cost.nfe)
        lines.append([_escape(model.name), nfe, _escape(model.method) or "–", *cells, *note])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None or cell.metric.value is None:
        return "–" if cell is None else cell.metric.status
    metric = cell.metric
    interval = "" if metric.low is None else f" [{number(metric.low)}, {number(metric.high)}]"
    band = f" #{band_text(cell.band)}" if cell.band else ""
    return f"{number(metric.value)}{'†' if cell.trained_on else ''}{interval}{band}"


def _escape(text: str) -> str:
    """Make text inert in Markdown and in the HTML that Markdown lets through."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~$" else c for c in text)
