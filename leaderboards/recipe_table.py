"""A table as a recipe asks for it: the paper's rows as printed, and below them ours with interval and rank.

Bold follows significance and exists only among measured, ranked rows: bold is every model that none surely beats
(max-T over all pairs, familywise 5 %), where at least one model is surely beaten. Papers print no intervals, so none
of their numbers is bold, and no number of theirs is ranked against one of ours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from leaderboards.columns import Column, Row, possible_ranks, rows_of
from leaderboards.hacking import MEANING, Verdict, reports
from leaderboards.match import NOT_MEASURED, Aspect, own_protocol, protocol_match
from leaderboards.papers import PaperRow, PaperTable
from leaderboards.recipe import Recipe, RecipeColumn
from leaderboards.schema import ResultError
from leaderboards.store import Entry


@dataclass(frozen=True, kw_only=True)
class Value:
    """One cell. `text` is what a reader sees; numbers are on the scale of the table."""

    text: str
    number: float | None = None
    low: float | None = None
    high: float | None = None
    bold: bool = False
    trained_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table."""

    origin: str  # "reported" or "measured"
    group: str  # the paper's banner, or why a measured row is not ranked
    model: str
    values: tuple[Value, ...]
    reward: Verdict | Literal[""] = ""  # the verdict on a measured model that was trained on rewards


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table ready to be written in any format."""

    name: str
    suite: str
    source: str  # the paper and its table; "" = measured rows alone
    caption: str
    headings: tuple[str, ...]
    units: tuple[str, ...]
    lines: tuple[Line, ...]
    match: tuple[Aspect, ...] = field(default=())

    @property
    def notes(self) -> str:
        """What a caption has to say: where each kind of row comes from, the protocol, and what the marks mean."""
        parts = [f"Rows of the paper as printed in {self.source}; not re-measured."] if self.source else []
        if not any(line.origin == "measured" for line in self.lines):
            return " ".join([*parts, f"No measured row of suite {self.suite} yet."])
        told = [one for one in self.match if one.ours != NOT_MEASURED and not one.name.startswith("scorer")]
        protocol = "; ".join(f"{one.name} {one.ours}" for one in told)
        parts.append(f"Measured rows: suite {self.suite}{f' ({protocol})' if protocol else ''}.")
        parts.append("Brackets: 95 % interval, bootstrap over prompts.")
        parts.append("Bold: no ranked model is surely better (paired max-T over prompts, familywise 5 %).")
        parts.append("†: the model was trained on this metric.")
        verdicts = {line.reward for line in self.lines}
        parts += [f"Reward {verdict}: {meaning}." for verdict, meaning in MEANING.items() if verdict in verdicts]
        return " ".join(parts)


def grid(recipe: Recipe, tables: Mapping[str, PaperTable], entries: Sequence[Entry]) -> Grid:
    """Return the table of a recipe. `entries`: all results of its suite.

    Raises ResultError where the recipe names a paper's table, a metric or a model that does not exist."""
    if recipe.reported and recipe.reported not in tables:
        raise ResultError(
            f"recipe {recipe.name}: no reported table {recipe.reported!r}; {_nearest(recipe.reported, tables)}"
        )
    paper = tables[recipe.reported] if recipe.reported else None
    rows = _measured(recipe, entries)
    sources = [_source(recipe, column, rows) for column in recipe.columns]
    lines = []
    if paper:
        lines = [_reported_line(recipe, row, name) for row, name in zip(paper.rows, paper.labels(), strict=True)]
    verdicts = {name: found.verdict for name, found in reports(entries).items()}
    lines += _measured_lines(recipe, rows, sources, verdicts)
    shown = [row.entry for row in rows]
    return Grid(
        name=recipe.name,
        suite=recipe.suite,
        source=f"{paper.paper.citation}, Table {paper.number}" if paper else "",
        caption=recipe.caption,
        headings=tuple(column.title for column in recipe.columns),
        units=tuple(_unit(column, source, paper) for column, source in zip(recipe.columns, sources, strict=True)),
        lines=tuple(lines),
        match=tuple(protocol_match(paper, recipe, shown) if paper else own_protocol(recipe, shown)),
    )


def _measured(recipe: Recipe, entries: Sequence[Entry]) -> list[Row]:
    rows = [row for row in rows_of(entries) if row.result.kind == "measured"]
    names = [row.result.model.name for row in rows]
    for name in recipe.models:
        if name not in names:
            raise ResultError(
                f"recipe {recipe.name}: suite {recipe.suite!r} has no model {name!r}; {_nearest(name, names)}"
            )
    if recipe.models:
        return sorted(
            (row for row in rows if row.result.model.name in recipe.models),
            key=lambda row: recipe.models.index(row.result.model.name),
        )
    return sorted(rows, key=lambda row: (row.result.status != "ranked", row.result.model.name))


def _source(recipe: Recipe, column: RecipeColumn, rows: Sequence[Row]) -> Column | None:
    """Return the identity of the numbers below a heading: where models differ in it, that of most of them.

    A paper's column may be one that nobody has measured yet (None); a column of a user's own recipe may not."""
    if column.metric in ("", "nfe"):
        return None
    found = Counter(c for row in rows for c in row.cells if c.metric == column.metric and column.task in ("", c.task))
    if found:
        return found.most_common(1)[0][0]
    if recipe.reported or not rows:
        return None
    known = sorted({c.metric for row in rows for c in row.cells})
    where = f" on task {column.task!r}" if column.task else ""
    raise ResultError(f"recipe {recipe.name}: no metric {column.metric!r}{where}; {_nearest(column.metric, known)}")


def _reported_line(recipe: Recipe, row: PaperRow, name: str) -> Line:
    values = []
    for column in recipe.columns:
        printed = column.paper_column or column.title  # a user's recipe names a paper's column by its title
        if printed in row.values:
            values.append(Value(text=row.text(printed), number=row.values[printed]))
        else:
            values.append(Value(text="–"))
    return Line(origin="reported", group=row.group, model=name, values=tuple(values))


def _measured_lines(
    recipe: Recipe, rows: Sequence[Row], sources: Sequence[Column | None], verdicts: Mapping[str, Verdict]
) -> list[Line]:
    ranked = [row for row in rows if row.result.status == "ranked"]
    best: list[set[str]] = []
    for column, source in zip(recipe.columns, sources, strict=True):
        ranks = possible_ranks(ranked, source, column.category) if source else {}
        leading = {name for name, (first, _) in ranks.items() if first == 1}
        best.append(leading if len(leading) < len(ranks) else set())
    lines = []
    for row in rows:
        name = row.result.model.name
        values = tuple(
            _our_value(column, source, row, name in bold)
            for column, source, bold in zip(recipe.columns, sources, best, strict=True)
        )
        lines.append(
            Line(origin="measured", group=row.reason, model=name, values=values, reward=verdicts.get(name, ""))
        )
    return lines


def _our_value(column: RecipeColumn, source: Column | None, row: Row, bold: bool) -> Value:
    if column.metric == "nfe":
        nfe = row.result.cost.nfe
        return Value(text="–") if nfe is None else Value(text=str(nfe), number=float(nfe))
    cell = row.cells.get(source) if source else None
    if cell is None:
        return Value(text="–")
    part = cell.metric.categories.get(column.category) if column.category else cell.metric
    if part is None or part.value is None:
        return Value(text=cell.metric.status if cell.metric.status != "ok" else "–")
    low, high = (None if end is None else end * column.scale for end in (part.low, part.high))
    number = part.value * column.scale
    return Value(
        text=f"{number:.{column.decimals}f}",
        number=number,
        low=low,
        high=high,
        bold=bold,
        trained_on=cell.trained_on,
    )


def _unit(column: RecipeColumn, source: Column | None, paper: PaperTable | None) -> str:
    told = next((c for c in paper.columns if c.name == column.paper_column), None) if paper else None
    if told:
        return told.unit
    if source is None:
        return ""
    return source.unit if column.scale == 1 else f"{source.unit} × {column.scale:g}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
