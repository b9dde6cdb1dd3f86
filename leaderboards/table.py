"""The table of one suite: which models, which numbers may share a column, and who ranks where.

Only results with status "ranked" are ranked; synthetic and partial ones are listed apart with their reason, reported
ones apart from both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from leaderboards.about import About
from leaderboards.columns import Cell, Column, Row, band_text, number, possible_ranks, rows_of
from leaderboards.hacking import Report, reports
from leaderboards.store import Entry


@dataclass(frozen=True, kw_only=True)
class SuiteTable:
    """All that is known of one suite; columns in order of importance, rows from best to worst by the first."""

    suite: str
    columns: tuple[Column, ...]
    ranked: tuple[Row, ...]
    apart: tuple[Row, ...]  # synthetic, partial: unranked
    reported: tuple[Row, ...]  # from papers: unranked
    reports: Mapping[str, Report] = field(default_factory=dict)  # what rewards did, by model
    about: About = field(default_factory=About)  # what its prompts say and its metrics mean

    def headings(self) -> dict[Column, str]:
        """Return the title of each column, with what sets it apart from others of the same title."""
        found = {}
        for column in self.columns:
            namesakes = [other for other in self.columns if other.title == column.title]
            telling = [f.name for f in fields(Column) if len({getattr(other, f.name) for other in namesakes}) > 1]
            label = [f"{name.replace('_', ' ')} {str(getattr(column, name))[:16]}" for name in telling]
            found[column] = f"{column.title} ({', '.join(label)})" if label else column.title
        return found


def suite_table(suite: str, entries: Sequence[Entry], about: About | None = None) -> SuiteTable:
    """Arrange the results of one suite."""
    rows = rows_of(entries)
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
        reports=reports(entries),
        about=about or About(),
    )


def to_markdown(table: SuiteTable) -> str:
    """Return the tables of a suite in GitHub's Markdown."""
    parts = [f"# {escape_markdown(table.suite)}", _legend()]
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
        told = [(headings[c], c.arrow, c.identity, c.unit) for c in table.columns]
        cards = [
            f"- {escape_markdown(title)} {arrow}: {escape_markdown(f'{what}; unit {unit}')}"
            for title, arrow, what, unit in told
        ]
        parts += ["## Metrics", "\n".join(cards)]
    return "\n\n".join(parts) + "\n"


def _ordered_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """By task; within one, judges of composition (means over categories), then held-out metrics, then rewards."""
    tasks = list(dict.fromkeys(task.name for row in rows for task in row.result.tasks))
    rewards = {column for row in rows for column, cell in row.cells.items() if cell.trained_on}

    def importance(column: Column) -> tuple[int, bool, bool, str, str]:
        compositional = column.aggregate == "categories"
        return tasks.index(column.task), not compositional, column in rewards, column.metric, column.identity

    return tuple(sorted({column for row in rows for column in row.cells}, key=importance))


def _with_bands(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    bands = {column: possible_ranks(rows, column) for column in columns}

    def banded(row: Row) -> Row:
        name = row.result.model.name
        cells = {
            column: Cell(metric=cell.metric, trained_on=cell.trained_on, band=bands[column].get(name))
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
        *(f"{escape_markdown(headings[c])} {c.arrow}" for c in shown),
        *(["note"] * with_reason),
    ]
    lines = [head, ["---", "---:", "---", *(["---:"] * len(shown)), *(["---"] * with_reason)]]
    for row in rows:
        cost, model = row.result.cost, row.result.model
        cells = [_markdown_cell(row.cells.get(column)) for column in shown]
        note = [escape_markdown(row.reason)] if with_reason else []
        nfe = "–" if cost.nfe is None else str(cost.nfe)
        found = table.reports.get(model.name)
        name = f"{model.name} (reward: {found.verdict})" if found else model.name
        lines.append([escape_markdown(name), nfe, escape_markdown(model.method) or "–", *cells, *note])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None or cell.metric.value is None:
        return "–" if cell is None else cell.metric.status
    metric = cell.metric
    interval = "" if metric.low is None else f" [{number(metric.low)}, {number(metric.high)}]"
    band = f" #{band_text(cell.band)}" if cell.band else ""
    return f"{number(metric.value)}{'†' if cell.trained_on else ''}{interval}{band}"


def escape_markdown(text: str) -> str:
    """Make text inert in Markdown and in the HTML that Markdown lets through."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~$" else c for c in text)
