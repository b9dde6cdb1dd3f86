"""The page: one HTML file that holds all it shows (style, script, plots, pictures) and asks no network for anything.

Text from result files and captions goes through jinja2's autoescape; the only markup let through is our own plots'.
No dates, no random ids: the same board gives the same bytes.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from leaderboards.page import plots
from leaderboards.schema import Result
from leaderboards.store import Sample, file_stem
from leaderboards.table import Cell, Column, Row, SuiteTable, band_text, number, trained_on

HERE = Path(__file__).parent
MAX_CURVES = 12  # panels of one model


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with what a reader who cannot see it is told."""

    svg: Markup
    title: str
    trained_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One metric by category and split."""

    column: Column
    categories: tuple[str, ...]
    splits: tuple[str, ...]
    rows: tuple[Row, ...]
    lowest: float
    highest: float

    def shade(self, value: float) -> int:
        """Return how far a value lies between the worst and the best of the table, in percent."""
        share = (value - self.lowest) / (self.highest - self.lowest) if self.highest > self.lowest else 0.5
        return round(100 * (share if self.column.higher_is_better else 1 - share))


@dataclass(frozen=True, kw_only=True)
class Picture:
    data_uri: str
    seed: int
    verdict: bool | None  # of a metric that says right or wrong


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row of the gallery: one prompt, the pictures of each model in the order of the gallery's models."""

    text: str
    category: str
    split: str
    pictures: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    task: str
    models: tuple[str, ...]
    judge: str  # title of the metric behind the verdicts; "" = none
    prompts: tuple[Prompt, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({prompt.category for prompt in self.prompts if prompt.category}))


@dataclass(frozen=True, kw_only=True)
class SuiteView:
    """All that the template shows of one suite."""

    anchor: str
    table: SuiteTable
    headings: Mapping[Column, str]
    scale: Mapping[Column, tuple[float, float]]
    trade_offs: tuple[Plot, ...]
    methods: tuple[str, ...]
    heats: tuple[Heat, ...]
    curves: Mapping[str, tuple[Plot, ...]]
    galleries: tuple[Gallery, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.table.ranked, *self.table.apart, *self.table.reported)

    def place(self, column: Column, value: float) -> str:
        """Return where a value lies on its column's scale, in percent."""
        low, high = self.scale[column]
        return f"{100 * (value - low) / (high - low) if high > low else 50:.1f}"


def render(tables: Sequence[SuiteTable], errors: Sequence[str] = ()) -> str:
    """Return the HTML of a board's suites and of the lines on what was left out; an empty board says so."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {"number": number, "band": band_text, "pretty": _pretty, "stem": file_stem}
    return environment.get_template("index.html").render(
        suites=[_suite_view(table) for table in tables],
        errors=errors,
        style=Markup((HERE / "templates" / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "templates" / "script.js").read_text(encoding="utf-8")),
    )


def _suite_view(table: SuiteTable) -> SuiteView:
    anchor = f"suite-{file_stem(table.suite)}"
    headings = table.headings()
    rows = (*table.ranked, *table.apart)
    methods = ("", *sorted({row.result.model.method for row in rows} - {""}))
    return SuiteView(
        anchor=anchor,
        table=table,
        headings=headings,
        scale={column: _scale(column, (*rows, *table.reported)) for column in table.columns},
        trade_offs=tuple(_trade_offs(anchor, table, headings, methods)),
        methods=methods,
        heats=tuple(heat for column in table.columns if (heat := _heat(column, rows))),
        curves={
            row.result.model.name: panels
            for index, row in enumerate(rows)
            if (panels := _curves(f"{anchor}-{index}", row.result, headings))
        },
        galleries=tuple(_galleries(table, rows)),
    )


def _scale(column: Column, rows: Sequence[Row]) -> tuple[float, float]:
    """Return the lowest and highest number of a column, intervals included."""
    metrics = [row.cells[column].metric for row in rows if column in row.cells]
    ends = [x for metric in metrics for x in (metric.value, metric.low, metric.high) if x is not None]
    return min(ends, default=0.0), max(ends, default=0.0)


def _trade_offs(anchor: str, table: SuiteTable, headings: Mapping[Column, str], methods: Sequence[str]) -> list[Plot]:
    """Quality against price: the first column over network passes, and over every diversity metric."""
    if not table.columns:
        return []
    quality = table.columns[0]
    y_label = f"{headings[quality]} {quality.arrow}"

    def point(row: Row, x: float, cell: Cell) -> plots.Point:
        metric, model = cell.metric, row.result.model
        return plots.Point(
            label=model.name,
            x=x,
            y=metric.value or 0.0,
            low=metric.low,
            high=metric.high,
            series=methods.index(model.method),
            hollow=cell.trained_on,
        )

    valued = [row for row in table.ranked if quality in row.cells and row.cells[quality].metric.status == "ok"]
    found = []
    points = [point(row, row.result.cost.nfe, row.cells[quality]) for row in valued if row.result.cost.nfe]
    if len(points) > 1:
        svg = plots.scatter(points, "network passes per image (NFE)", y_label, name=f"{anchor}-nfe", log_x=True)
        found.append(Plot(svg=Markup(svg), title=f"{headings[quality]} against network passes per image"))
    for diversity in (c for c in table.columns if "diversity" in c.metric and c.task == quality.task):
        points = [
            point(row, row.cells[diversity].metric.value or 0.0, row.cells[quality])
            for row in valued
            if diversity in row.cells and row.cells[diversity].metric.status == "ok"
        ]
        if len(points) > 1:
            svg = plots.scatter(
                points, f"{headings[diversity]} {diversity.arrow}", y_label, name=f"{anchor}-diversity-{len(found)}"
            )
            found.append(Plot(svg=Markup(svg), title=f"{headings[quality]} against {headings[diversity]}"))
    return found


def _heat(column: Column, rows: Sequence[Row]) -> Heat | None:
    shown = tuple(row for row in rows if column in row.cells and row.cells[column].metric.categories)
    if not shown:
        return None
    metrics = [row.cells[column].metric for row in shown]
    values = [part.value for metric in metrics for part in (*metric.categories.values(), *metric.splits.values())]
    return Heat(
        column=column,
        categories=tuple(sorted({name for metric in metrics for name in metric.categories})),
        splits=tuple(sorted({name for metric in metrics for name in metric.splits})),
        rows=shown,
        lowest=min(values),
        highest=max(values),
    )


def _curves(prefix: str, result: Result, headings: Mapping[Column, str]) -> tuple[Plot, ...]:
    """One panel per metric of the training log, rewards first."""
    if result.model.training is None:
        return ()
    points = result.model.training.curves
    titles = {column.metric: title for column, title in headings.items()}
    names = sorted({name for point in points for name in point} - {"iteration"})
    panels: list[Plot] = []
    for name in sorted(names, key=lambda name: (not trained_on(result, name), name)):
        pairs = [(plots.as_number(point.get("iteration")), plots.as_number(point.get(name))) for point in points]
        line = sorted((x, y) for x, y in pairs if x is not None and y is not None)
        if len(line) > 1:
            rewarded = trained_on(result, name)
            svg = plots.curve(*zip(*line, strict=True), name=f"{prefix}-{len(panels)}", trained_on=rewarded)
            panels.append(Plot(svg=Markup(svg), title=titles.get(name, name), trained_on=rewarded))
    return tuple(panels[:MAX_CURVES])


def _galleries(table: SuiteTable, rows: Sequence[Row]) -> list[Gallery]:
    tasks = dict.fromkeys(sample.task for row in rows for sample in row.entry.samples)
    return [_gallery(task, table, rows) for task in tasks]


def _gallery(task: str, table: SuiteTable, rows: Sequence[Row]) -> Gallery:
    shown = [row for row in rows if any(sample.task == task for sample in row.entry.samples)]
    judge = next((c for c in table.columns if c.task == task and _says_right_or_wrong(c, shown)), None)
    pictures: dict[str, dict[int, list[Picture]]] = defaultdict(lambda: defaultdict(list))
    captions: dict[str, Sample] = {}
    for index, row in enumerate(shown):
        verdicts = _verdicts(judge, row)
        for sample in sorted(row.entry.samples, key=lambda sample: (sample.prompt_id, sample.seed)):
            if sample.task == task:
                captions.setdefault(sample.prompt_id, sample)
                uri = f"data:image/png;base64,{base64.b64encode(sample.png).decode()}"
                verdict = verdicts.get((sample.prompt_id, sample.seed))
                pictures[sample.prompt_id][index].append(Picture(data_uri=uri, seed=sample.seed, verdict=verdict))
    # Each category in turn, so that the first screen shows all of them.
    place: dict[str, int] = defaultdict(int)
    order = []
    for prompt_id, sample in sorted(captions.items()):
        order.append((place[sample.category], sample.category, prompt_id))
        place[sample.category] += 1
    return Gallery(
        task=task,
        models=tuple(row.result.model.name for row in shown),
        judge=judge.title if judge else "",
        prompts=tuple(
            Prompt(
                text=captions[prompt_id].prompt,
                category=captions[prompt_id].category,
                split=captions[prompt_id].split,
                pictures=tuple(tuple(pictures[prompt_id][index]) for index in range(len(shown))),
            )
            for _, _, prompt_id in sorted(order)
        ),
    )


def _says_right_or_wrong(column: Column, rows: Sequence[Row]) -> bool:
    judged = [row for row in rows if column in row.cells and row.cells[column].metric.status == "ok"]
    if column.aggregate == "set" or not judged:
        return False
    values = {v for row in judged for v in set(row.entry.scores(column.task, column.metric).values_N.tolist())}
    return values <= {0.0, 1.0}


def _verdicts(judge: Column | None, row: Row) -> dict[tuple[str, int], bool]:
    if judge is None or judge not in row.cells or row.cells[judge].metric.status != "ok":
        return {}
    scores = row.entry.scores(judge.task, judge.metric)
    keys = zip(scores.prompt_ids, scores.seeds, strict=True)
    return {(prompt, seed): value > 0.5 for (prompt, seed), value in zip(keys, scores.values_N.tolist(), strict=True)}


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
