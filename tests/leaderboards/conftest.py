"""Small results made of chosen numbers, with their evidence, ready to publish."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from leaderboards import evidence
from leaderboards.schema import Cost, MetricResult, Model, Result, Task, Training
from leaderboards.seen import Box, Seen
from leaderboards.statistics import breakdown
from leaderboards.store import Sample, publish

CATEGORIES = ("counting", "position")
PROMPTS = 12
IMAGES = 2
SEEN = Seen(
    boxes=[Box(label="red <b>dog</b> 0.90", left=25, top=50, width=50, height=25)],
    n_weaker=2,
    reasons=["expected dog>=2, found 1"],
    table=[["How many?", "expected two", "said <i>one</i>"]],
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def picture(colour: str = "red", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def evidence_table(rate: float = 0.5, seed: int = 0, task: str = "compose", prompts: int = PROMPTS) -> pa.Table:
    """Rows of a 0/1 judge by category, and of a smooth score; half of the prompts are unseen."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(prompts):
        split = "unseen" if index >= prompts // 2 else "seen"
        for image in range(IMAGES):
            right = float(draw.random() < rate)
            place = (f"prompt-{index:02d}", CATEGORIES[index % 2], split, image)
            rows += [
                (task, "judge", *place, right),
                (task, "score", *place, 0.3 + 0.1 * right + 0.01 * draw.random()),
            ]
    return pa.table(dict(zip(evidence.COLUMNS.names, zip(*rows, strict=True), strict=True)), schema=evidence.COLUMNS)


def metric_of(table: pa.Table, name: str, task: str = "compose", **changes: Any) -> MetricResult:
    aggregate = "categories" if name == "judge" else "prompts"
    found = breakdown(evidence.scores(table, task, name), aggregate)
    fields: dict[str, Any] = {
        "card_id": name,
        "version": 1,
        "variant": "official",
        "title": f"The {name}",
        "unit": "share",
        "higher_is_better": True,
        "aggregate": aggregate,
        "status": "ok",
        **vars(found.total),
        "categories": {key: evidence.as_category_value(part) for key, part in found.categories.items()},
        "splits": {key: evidence.as_category_value(part) for key, part in found.splits.items()},
    }
    return MetricResult(**{**fields, **changes})


def result_of(table: pa.Table, name: str = "student", **changes: Any) -> Result:
    metrics = changes.pop("metrics", None) or {key: metric_of(table, key) for key in ("judge", "score")}
    task = Task(
        name="compose",
        prompt_set="tiny",
        prompts_digest=sha("tiny"),
        n_prompts=PROMPTS,
        images_per_prompt=IMAGES,
        protocol={"sampler": "cps", "num_inference_steps": 4},
        protocol_digest=sha("protocol"),
        nfe=4,
        metrics=metrics,
    )
    model = {"name": name, "weights_digest": sha(name), **changes.pop("model", {})}
    fields: dict[str, Any] = {
        "model": Model(**model),
        "suite": "tiny",
        "tasks": [task],
        "cost": Cost(parameters=1000, nfe=4),
        "provenance": {"numpy": "2"},
        "evidence": None,
    }
    return Result(**{**fields, **changes})


def gallery(colour: str = "red") -> list[Sample]:
    return [
        Sample(
            task="compose",
            prompt_id=f"prompt-{index:02d}",
            prompt=f"a photo of object {index}",
            category=CATEGORIES[index % 2],
            seed=seed,
            png=picture(colour),
            seen={"judge": SEEN} if index == 0 and seed == 0 else {},
        )
        for index in range(3)
        for seed in range(IMAGES)
    ]


def training(**changes: Any) -> Training:
    curves = [{"iteration": i, "judge": 0.3 + 0.02 * i, "score": 0.5 - 0.01 * i} for i in range(5)]
    fields: dict[str, Any] = {"method": "rtdmd", "config": {"eta": 0.9}, "seed": 0, "rewards": ["score"]}
    return Training(**{**fields, "image_free": True, "network_passes": 100, "curves": curves, **changes})


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., Path]:
    """Publish a result on the board `tmp_path / "results"` and return its path."""

    def published(name: str = "student", rate: float = 0.5, seed: int = 0, **changes: Any) -> Path:
        table = evidence_table(rate, seed)
        pictures = changes.pop("gallery", gallery())
        return publish(result_of(table, name, **changes), table, tmp_path / "results", pictures)

    return published
