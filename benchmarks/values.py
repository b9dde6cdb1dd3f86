"""One metric on one task: from the rows of a run to the values of a result. A pure function of the rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.groups import group_values
from benchmarks.rows import read_parts, read_rows
from benchmarks.score import identify
from benchmarks.store import ImageSet, Item, Run
from leaderboards import evidence
from leaderboards.schema import MetricResult
from leaderboards.statistics import Scores, breakdown
from metrics.base import Card, Rows, Summary
from metrics.loaded import TRUNCATED, Scorer
from metrics.sets import SetMetric


def value_of(
    run: Run, image_set: ImageSet, task: str, images_per_prompt: int, card: Card, scorer: Scorer
) -> tuple[MetricResult, pa.Table]:
    """Return one metric's values and its rows of evidence: the same bits for the same rows.

    images_per_prompt: what the task looks at; the image set may have more.
    Raises UserError where its rows cannot be read."""
    items = [item for item in image_set.items if item.seed < images_per_prompt]
    identity = identify(card.id, scorer)
    evidence_file, metric, n_truncated = run.evidence(image_set.name, card.id), scorer.metrics[card.id], 0
    if isinstance(metric, SetMetric):
        summary = metric.summarise_parts(read_parts(evidence_file, items, identity))
    else:
        rows = read_rows(evidence_file, items, identity)
        n_truncated = _count_truncated(rows, items)
        summary = metric.summarise(rows, [item.prompt for item in items])
    common = {
        **identity_fields(card),
        "status": "ok",
        "weights_digest": identity["weights_digest"] or None,
        "n_truncated": n_truncated,
        "precision": identity["precision"],
    }
    if summary.per_image_N is None or card.aggregate == "set":
        n_prompts = len(image_set.prompts.prompts)
        value = MetricResult(**common, value=summary.value, n_prompts=n_prompts, n_images=len(items))
        return value, evidence.COLUMNS.empty_table()
    groups = group_values(summary, [item.prompt for item in items])
    summary, items, n_excluded = _with_value(summary, items)
    parts = breakdown(_as_scores(summary, items), card.aggregate)
    value = MetricResult(
        **common,
        n_excluded=n_excluded,
        **vars(parts.total),
        categories=groups | {name: evidence.as_category_value(part) for name, part in parts.categories.items()},
        splits={name: evidence.as_category_value(part) for name, part in parts.splits.items()},
    )
    return value, _as_table(task, card.id, summary, items)


def _with_value(summary: Summary, items: Sequence[Item]) -> tuple[Summary, list[Item], int]:
    """Return the summary and the items of the images that have a value, and how many have none."""
    assert summary.per_image_N is not None
    kept_N = ~np.isnan(summary.per_image_N)
    kept = [item for item, keep in zip(items, kept_N, strict=True) if keep]
    return Summary(per_image_N=summary.per_image_N[kept_N]), kept, len(items) - len(kept)


def _count_truncated(rows: Rows, items: Sequence[Item]) -> int:
    """Return the number of prompts of which an encoder read only the beginning."""
    truncated = rows.pop(TRUNCATED, [False] * len(items))
    return len({item.prompt.id for item, cut in zip(items, truncated, strict=True) if cut})


def _as_scores(summary: Summary, items: Sequence[Item]) -> Scores:
    assert summary.per_image_N is not None
    return Scores(
        values_N=summary.per_image_N.astype(np.float32),  # what the evidence file holds, so that both agree
        prompt_ids=[item.prompt.id for item in items],
        seeds=[item.seed for item in items],
        categories=[item.prompt.category for item in items],
        splits=[item.prompt.split for item in items],
    )


def _as_table(task: str, metric: str, summary: Summary, items: Sequence[Item]) -> pa.Table:
    columns = {
        "task": [task] * len(items),
        "metric": [metric] * len(items),
        "prompt_id": [item.prompt.id for item in items],
        "category": [item.prompt.category for item in items],
        "split": [item.prompt.split for item in items],
        "seed": [item.seed for item in items],
        "value": np.asarray(summary.per_image_N, np.float32),
    }
    return pa.table(columns, schema=evidence.COLUMNS)


def identity_fields(card: Card) -> dict[str, Any]:
    """Return what a result says of a metric's card."""
    return {
        "card_id": card.id,
        "version": card.version,
        "variant": card.variant,
        "perceiver": card.perceiver,
        "title": card.title,
        "unit": card.unit,
        "higher_is_better": card.higher_is_better,
        "aggregate": card.aggregate,
        "micro": card.micro,
    }
