"""What the page shows, as plain data: the board inside index.html, everything else in script files loaded on demand.

Browsers refuse to fetch beside a file://, but load scripts; so a chunk is a script that hands its data to the page:

    data/<suite>/<model>.details.js    protocol, origin, categories, report, training curves
    data/<suite>/<model>.pictures.js   the gallery, as data URIs, with what metrics saw in it
    data/<suite>/<model>.evidence.js   one value per (metric, prompt, image): float32, base64, NaN = none
    data/<suite>/<task>.prompts.js     what the evidence's rows are: ids, categories, splits, texts where known
    data/papers.js                     the papers' tables, and how their protocols match ours
    data/studies.js, data/methods.js   claims put to the test, measured speed; what of the papers is here
    data/plots.js                      Vega-Lite

Cost is linear in models, and memory is that of one model's chunk. The same board gives the same bytes.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from leaderboards.columns import Column, Row
from leaderboards.hacking import MEANING, Report, as_number, is_diversity
from leaderboards.match import protocol_match
from leaderboards.methods import Method
from leaderboards.papers import PaperTable
from leaderboards.recipe import Recipe
from leaderboards.schema import MetricResult
from leaderboards.seen import Seen
from leaderboards.store import Entry, file_stem
from leaderboards.studies import READING, AnyStudy, Claim, Claims, Figure, sections
from leaderboards.study_figure import figure_spec
from leaderboards.table import SuiteTable

DIGITS = 6  # significant ones; a page never shows more
Json: TypeAlias = Any


def board(table: SuiteTable) -> dict[str, Json]:
    """Return what the first view of a suite needs."""
    headings = table.headings()
    rows = (*table.ranked, *table.apart, *table.reported)
    rewards = {column for row in rows for column, cell in row.cells.items() if cell.trained_on}
    return {
        "suite": table.suite,
        "stem": file_stem(table.suite),
        "columns": [_column(column, headings[column], column in rewards, table) for column in table.columns],
        "models": [_model(row, table) for row in rows],
        "tasks": sorted({column.task for column in table.columns}),
    }


def chunks(table: SuiteTable) -> Iterator[tuple[str, Json]]:
    """Yield (key, data) of every chunk of a suite; the key is also the path below `data/`."""
    prompts = {task: _prompts(task, table) for task in sorted({column.task for column in table.columns})}
    for task, (told, _) in prompts.items():
        yield f"{file_stem(table.suite)}/{file_stem(task)}.prompts", told
    for row in (*table.ranked, *table.apart, *table.reported):
        place = f"{file_stem(table.suite)}/{file_stem(row.result.model.name)}"
        yield f"{place}.details", _details(row, table)
        if row.entry.samples:
            yield f"{place}.pictures", _pictures(row.entry)
        if row.entry.table is not None:
            yield f"{place}.evidence", _evidence(row, table, prompts)


def papers(
    tables: Mapping[str, PaperTable], recipes: Mapping[str, Recipe], suites: Mapping[str, Sequence[Entry]]
) -> list[Json]:
    """Return every table of the papers with the list of what differs from our protocol."""
    found = []
    for name, table in tables.items():
        recipe = recipes[name]
        found.append(
            {
                "id": name,
                "paper": table.paper.id,
                "citation": table.paper.citation,
                "arxiv": table.paper.arxiv,
                "number": table.number,
                "inferred": table.number_inferred,
                "caption": table.caption,
                "notes": table.protocol.notes,
                "suite": recipe.suite,
                "measured": len(suites.get(recipe.suite, ())),
                "columns": [
                    {"title": c.name, "arrow": "" if c.arrow in c.name else c.arrow, "unit": c.unit}
                    for c in table.columns
                ],
                "rows": [
                    {
                        "name": label,
                        "group": row.group,
                        "kind": row.kind,
                        "confidence": row.confidence,
                        "notes": row.notes,
                        "cells": [row.text(column.name) for column in table.columns],
                        "values": [row.values[column.name] for column in table.columns],
                    }
                    for row, label in zip(table.rows, table.labels(), strict=True)
                ],
                "match": [asdict(one) for one in protocol_match(table, recipe, suites.get(recipe.suite, ()))],
            }
        )
    return found


def studies(found: Mapping[str, AnyStudy]) -> Json:
    """Return the studies in the shape of their files, by kind; a verdict was checked when its file was read.

    Of a figure there stand title and drawing (leaderboards/study_figure.py) instead of its series; claims stand under
    their headings, as in a study's text."""
    told: dict[str, list[Json]] = {"claims": [], "speed": [], "measurements": []}
    for name, study in found.items():
        own = {"id": name, **study.model_dump(mode="json")}
        if isinstance(study, Claims):
            del own["claims"]
            own["figures"] = [_drawn(figure) for figure in study.figures]
            own["sections"] = [
                {"title": title, "claims": [_claim(claim) for claim in claims]} for title, claims in sections(study)
            ]
        told[study.kind].append(own)
    return told | {"reading": READING}


def _claim(claim: Claim) -> Json:
    return claim.model_dump(mode="json") | {"figure": claim.figure and _drawn(claim.figure)}


def _drawn(figure: Figure) -> Json:
    return {"title": figure.title, "names": [one.name for one in figure.series], "spec": figure_spec(figure)}


def methods(found: Sequence[Method]) -> Json:
    """Return every method the papers name with its state."""
    return [{**one.model_dump(mode="json", exclude={"rows"}), "state": one.state} for one in found]


def as_json(data: Json) -> str:
    """Return compact JSON that neither ends a script element nor opens a comment in one."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def as_script(key: str, data: Json) -> bytes:
    """Return a chunk: a script that hands `data` to the page under `key`."""
    return f"fewstep.chunk({as_json(key)},{as_json(data)});\n".encode()


def _column(column: Column, title: str, rewarded: bool, table: SuiteTable) -> Json:
    notes = table.about.metrics.get(column.metric)
    return {
        "title": title,
        "metric": column.metric,
        "task": column.task,
        "higher": column.higher_is_better,
        "unit": column.unit,
        "identity": column.identity,
        "version": column.version,
        "variant": column.variant,
        "perceiver": column.perceiver,
        "weights": column.weights_digest,
        "aggregate": column.aggregate,
        "diversity": is_diversity(column.metric),
        "rewarded": rewarded,  # some model of the board was trained on it
        "notes": notes.model_dump() if notes else None,
    }


def _model(row: Row, table: SuiteTable) -> Json:
    result, found = row.result, table.reports.get(row.result.model.name)
    cells: dict[int, Json] = {}
    for index, column in enumerate(table.columns):
        cell = row.cells.get(column)
        if cell is None:
            continue
        metric = cell.metric
        if metric.value is None:
            cells[index] = {"status": metric.status, "why": metric.reason}
            continue
        cells[index] = {"v": _short(metric.value)}
        if metric.low is not None and metric.high is not None:
            cells[index] |= {"lo": _short(metric.low), "hi": _short(metric.high)}
        if cell.band:
            cells[index]["band"] = list(cell.band)
        if cell.trained_on:
            cells[index]["t"] = 1
    return {
        "name": result.model.name,
        "stem": file_stem(result.model.name),
        "method": result.model.method,
        "base": result.model.base,
        "status": "reported" if result.kind == "reported" else result.status,
        "why": row.reason,
        "nfe": result.cost.nfe,
        "parameters": result.cost.parameters,
        "measured": _measured_once(row),
        "verdict": found.verdict if found else "",
        "pictures": bool(row.entry.samples),
        "evidence": row.entry.table is not None,
        "trained": bool(result.model.training and result.model.training.curves),
        "cells": cells,
    }


def _details(row: Row, table: SuiteTable) -> Json:
    result = row.result
    training = result.model.training
    found = table.reports.get(result.model.name)
    return {
        "weights": result.model.weights_digest,
        "source": result.source,
        "file": f"{row.entry.path.parent.name}/{row.entry.path.name}",
        "digest": result.evidence.digest if result.evidence else "",
        "rows": result.evidence.rows if result.evidence else 0,
        "trained_on": result.model.trained_on,
        "provenance": result.provenance,
        "measured": _measured_once(row),
        "tasks": [
            {
                "name": task.name,
                "status": task.status,
                "reason": task.reason,
                "prompts": task.prompt_set,
                "n_prompts": task.n_prompts,
                "n_trained": task.n_trained_prompts,
                "images": task.images_per_prompt,
                "nfe": task.nfe,
                "protocol": task.protocol,
                "missing": {name: m.reason for name, m in task.metrics.items() if m.status != "ok"},
            }
            for task in result.tasks
        ],
        "parts": {
            index: _parts(row.cells[column].metric)
            for index, column in enumerate(table.columns)
            if column in row.cells and (row.cells[column].metric.categories or row.cells[column].metric.splits)
        },
        "report": _report(found) if found else None,
        "training": None
        if training is None
        else {
            "method": training.method,
            "seed": training.seed,
            "passes": training.network_passes,
            "image_free": training.image_free,
            "rewards": training.rewards,
            "config": training.config,
            "curves": _curves(training.curves),
        },
    }


def _measured_once(row: Row) -> dict[str, float]:
    """Of the volatile keys only what was measured (seconds, bytes): dates and hosts are nobody's business here."""
    told = row.result.volatile
    return {key: x for key, x in sorted(told.items()) if isinstance(x, int | float) and not isinstance(x, bool)}


def _parts(metric: MetricResult) -> Json:
    def part(values: Mapping[str, Any]) -> Json:
        return {
            name: [_short(x) for x in (one.value, one.low, one.high)] + [one.n_prompts]
            for name, one in values.items()
        }

    return {"categories": part(metric.categories), "splits": part(metric.splits)}


def _report(found: Report) -> Json:
    changes = [
        {
            "title": one.title,
            "role": one.role,
            "by": _short(one.better_by),
            "lo": _short(one.low),
            "hi": _short(one.high),
            "p": _short(one.p),
            "moved": one.moved,
        }
        for one in found.changes
    ]
    return {
        "verdict": found.verdict,
        "meaning": MEANING[found.verdict],
        "against": found.against,
        "reasons": list(found.reasons),
        "changes": changes,
    }


def _curves(points: Sequence[Mapping[str, object]]) -> dict[str, list[list[float]]]:
    """Return the points [iteration, value] of every name that has at least two numbers."""
    found = {}
    for name in sorted({name for point in points for name in point} - {"iteration"}):
        pairs = [(point.get("iteration"), point.get(name)) for point in points]
        numbers = [(as_number(x), as_number(y)) for x, y in pairs]
        line = sorted((x, y) for x, y in numbers if x is not None and y is not None)
        if len(line) > 1:
            found[name] = [[x, float(f"{y:.{DIGITS}g}")] for x, y in line]
    return found


def _pictures(entry: Entry) -> Json:
    return [
        {
            "task": sample.task,
            "id": sample.prompt_id,
            "text": sample.prompt,
            "category": sample.category,
            "split": sample.split,
            "seed": sample.seed,
            "uri": f"data:image/png;base64,{base64.b64encode(sample.png).decode()}",
            "seen": {metric: _seen(one) for metric, one in sorted(sample.seen.items())},
        }
        for sample in sorted(entry.samples, key=lambda sample: (sample.task, sample.prompt_id, sample.seed))
    ]


def _seen(one: Seen) -> Json:
    return {
        "boxes": [[box.label, box.left, box.top, box.width, box.height] for box in one.boxes],
        "weaker": one.n_weaker,
        "reasons": one.reasons,
        "table": one.table,
    }


Rows = dict[str, int]


def _prompts(task: str, table: SuiteTable) -> tuple[Json, tuple[Rows, list[int]]]:
    """Return what the rows and columns of a task's evidence are, and the places of prompt ids and seeds in it."""
    sampled = {
        sample.prompt_id: sample.prompt
        for row in (*table.ranked, *table.apart)
        for sample in row.entry.samples
        if sample.task == task
    }
    texts = {**sampled, **table.about.texts(task)}
    labels: dict[str, tuple[str, str]] = {}
    seeds: set[int] = set()
    seen: set[tuple[int, ...]] = set()
    for row in (*table.ranked, *table.apart):
        for column, cell in row.cells.items():
            if column.task != task or cell.metric.status != "ok" or column.aggregate == "set":
                continue
            scores = row.entry.scores(task, column.metric)
            known = (len(scores.prompt_ids), hash(tuple(scores.prompt_ids)), hash(tuple(scores.seeds)))
            if known not in seen:  # most models share their prompts and seeds: look at each set once
                seen.add(known)
                seeds |= set(scores.seeds)
                splits = scores.splits or [""] * len(scores.prompt_ids)
                labels |= dict(zip(scores.prompt_ids, zip(scores.categories, splits, strict=True), strict=True))
    ids, order = sorted(labels), sorted(seeds)
    told = {
        "ids": ids,
        "seeds": order,
        "categories": [labels[name][0] for name in ids],
        "splits": [labels[name][1] for name in ids],
        "texts": [texts.get(name, "") for name in ids],
    }
    return told, ({name: place for place, name in enumerate(ids)}, order)


def _evidence(row: Row, table: SuiteTable, prompts: Mapping[str, tuple[Json, tuple[Rows, list[int]]]]) -> Json:
    """Return for each column the values [prompt, seed] of a model as base64 of little-endian float32."""
    found = {}
    for index, column in enumerate(table.columns):
        cell = row.cells.get(column)
        if cell is None or cell.metric.status != "ok" or column.aggregate == "set":
            continue
        place, seeds = prompts[column.task][1]
        scores = row.entry.scores(column.task, column.metric)
        grid = np.full((len(place), len(seeds)), np.nan, "<f4")
        at = [place[name] for name in scores.prompt_ids]
        grid[at, np.searchsorted(seeds, scores.seeds)] = scores.values_N
        found[index] = base64.b64encode(grid.tobytes()).decode()
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
