"""Contract 3: a result, one model on one suite; the only definition of what a leaderboard reads.

`result.json` (this schema) and `<model>.evidence.parquet` beside it are all that statistics and pages need.
The JSON Schema committed as `schema.json` is generated from here (`python -m leaderboards schema`).
Deterministic: the same run gives the same bytes except under the one key `volatile`, which no digest covers.

Evidence table columns: task, metric, prompt_id, category, split (str), seed (int64), value (float32).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # from version n to n + 1

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\\\x00-\x1f]+$")]
JsonValue = bool | int | float | str | None | list[Any] | dict[str, Any]


class ResultError(ValueError):
    """A result file the user gave is not valid: the message says which file, where, and why (exit code 2)."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Strict):
    """How the model was trained, from its checkpoint's training.json."""

    method: str  # "rtdmd"
    config: dict[str, JsonValue]
    seed: int
    rewards: list[str]  # metric ids it was trained on
    image_free: bool  # needed no real pictures
    network_passes: int  # of the denoiser, forward and backward each counted once
    curves: list[dict[str, JsonValue]] = []  # canary points: {"iteration": ..., "<metric id>": ...}


class Model(Strict):
    name: Name
    weights_digest: Digest
    base: str = ""  # name of the model it was made from
    method: str = ""  # "" = not trained here
    trained_on: list[str] = []  # reward ids; every other metric is held out
    training: Training | None = None


class CategoryValue(Strict):
    value: float
    low: float | None = None  # 95 % interval
    high: float | None = None
    n_prompts: int
    n_images: int


class MetricResult(Strict):
    """One metric on one task. status "ok" has a value; "skipped" and "failed" have a reason instead."""

    card_id: str
    version: int
    variant: str
    perceiver: str = ""
    title: str
    unit: str
    higher_is_better: bool
    aggregate: Literal["prompts", "categories", "set"]
    micro: bool = False
    status: Literal["ok", "skipped", "failed"]
    reason: str = ""  # and the command that mends it
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n_prompts: int = 0
    n_images: int = 0
    categories: dict[str, CategoryValue] = {}
    splits: dict[str, CategoryValue] = {}  # "seen" / "unseen"
    weights_digest: Digest | None = None  # of the metric's own networks

    @model_validator(mode="after")
    def _value_or_reason(self) -> "MetricResult":
        if (self.status == "ok") != (self.value is not None):
            raise ValueError("a metric has a value exactly when its status is ok")
        if self.status != "ok" and not self.reason:
            raise ValueError("a metric that is not ok needs a reason")
        return self


class Task(Strict):
    """One image set (prompts × seeds under one protocol) and the metrics measured on it."""

    name: Name
    prompt_set: str
    prompts_digest: Digest
    n_prompts: int
    images_per_prompt: int
    protocol: dict[str, JsonValue]
    protocol_digest: Digest
    nfe: int | None  # network passes per image, counted; None for pictures made elsewhere
    metrics: dict[str, MetricResult]  # by card id
    status: Literal["ok", "skipped", "partial"] = "ok"
    reason: str = ""


class Cost(Strict):
    parameters: int | None  # of the denoiser
    nfe: int | None


class Evidence(Strict):
    file: Name
    digest: Digest
    rows: int


class Result(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["measured", "reported"] = "measured"
    status: Literal["ranked", "synthetic", "partial"] = "ranked"  # only "ranked" enters a ranking
    model: Model
    suite: Name
    tasks: list[Task]
    cost: Cost
    provenance: dict[str, str]  # versions of what computes the values
    evidence: Evidence | None
    gallery: str = ""  # folder of sample pictures beside the result; "" = none
    source: str = ""  # of a reported row: paper and table
    volatile: dict[str, JsonValue] = {}  # date, seconds, memory, host, commit: no digest covers it


def upgrade(table: dict[str, Any]) -> dict[str, Any]:
    """Lift an older result to the present version. Raises ResultError for a newer or missing version."""
    version = table.get("schema_version")
    if not isinstance(version, int):
        raise ResultError("no schema_version: not a fewstep-bench result")
    if version > SCHEMA_VERSION:
        raise ResultError(f"schema_version {version} is newer than {SCHEMA_VERSION}: update fewstep-bench")
    while version < SCHEMA_VERSION:
        table = MIGRATIONS[version](table)
        version = table["schema_version"]
    return table


def read_result(path: Path) -> Result:
    """Read and validate one result file. Raises ResultError naming file, key and fault."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ResultError("expected a JSON object")
        return Result.model_validate(upgrade(table))
    except FileNotFoundError as error:
        raise ResultError(f"{path}: no such file") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "result"
        raise ResultError(f"{path}: {where}: {first['msg']}") from error
    except ValueError as error:  # JSON, unicode, version
        raise ResultError(f"{path}: {error}") from error


def dump_result(result: Result) -> str:
    """Return the canonical text of a result: sorted keys, two spaces, a closing newline."""
    return json.dumps(result.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
