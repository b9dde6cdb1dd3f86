"""Contract 3: a result, one model on one suite; the only definition of what a leaderboard reads.

`result.json` (this schema) and `<model>.evidence.parquet` beside it are all that statistics and pages need.
The JSON Schema committed as `schema.json` is generated from here (`python -m leaderboards schema`).
Deterministic: the same run gives the same bytes except under the one key `volatile`, which no digest covers.

Evidence table columns: task, metric, prompt_id, category, split (str), seed (int64), value (float32).
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

SCHEMA_VERSION = 1
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # from version n to n + 1

MAX_FILE_BYTES = 2**24
LARGEST = 1e30  # of a number: far above every metric, and its square and cube are still finite

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# No separators, no control characters, and none that turn the direction of the text around a name.
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^/\\\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+$",
    ),
]
NAME_RULE = "1 to 200 characters, without separators and control characters"
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
JsonValue = bool | int | float | str | None | list[Any] | dict[str, Any]


def is_name(text: str) -> bool:
    """Return whether a result can bear a name, which NAME_RULE tells in words."""
    try:
        TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return False
    return True


class ResultError(ValueError):
    """A result file the user gave is not valid: the message says which file, where, and why (exit code 2).

    One printable line whatever stands in the file: names and keys of others are quoted in it."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(line if len(line) <= 500 else f"{line[:400]} … {line[-99:]}")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StageRecord(Strict):
    """One stage of a training."""

    name: str
    method: str
    iterations: Count
    network_passes: Count
    image_free: bool = True  # whether the method's own terms needed no real pictures; of rewards, Training tells
    stopped_by: str = ""  # the held-out metric whose fall ended the stage before its time
    settings: dict[str, JsonValue] = {}  # of the method, defaults in force among them; {} in older records


class Training(Strict):
    """How the model was trained, from its checkpoint's training.json."""

    method: str  # "rtdmd"
    config: dict[str, JsonValue]
    seed: int
    rewards: list[str]  # metric ids it was trained on
    image_free: bool  # needed no real pictures
    network_passes: Count  # of the denoiser, forward and backward each counted once
    prompts_digest: Digest | None = None  # of the training prompts; None where the record is older than this field
    base_digest: Digest | None = None  # of the base's files, as its own results have it; None: older, or no files
    curves: list[dict[str, JsonValue]] = []  # canary points: {"iteration": ..., "<metric id>": ...}
    stages: list[StageRecord] = []


class Model(Strict):
    name: Name
    weights_digest: Digest
    base: str = ""  # name of the model it was made from
    method: str = ""  # "" = not trained here
    trained_on: list[str] = []  # reward ids; every other metric is held out
    training: Training | None = None


class CategoryValue(Strict):
    value: Number
    low: Number | None = None  # 95 % interval
    high: Number | None = None
    n_prompts: Count
    n_images: Count


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
    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n_prompts: Count = 0
    n_images: Count = 0
    n_truncated: Count = 0  # prompts of which an encoder read only the beginning
    n_excluded: Count = 0  # images without a value, such as an answer that is no rating; not among n_images
    precision: str = "float32"  # of the encoders' passes
    categories: dict[str, CategoryValue] = {}  # of prompts, and (without intervals) of questions
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
    n_prompts: Count
    n_trained_prompts: Count | None = None  # of them, those the model was trained on; None = its folder does not say
    images_per_prompt: Count
    protocol: dict[str, JsonValue]
    protocol_digest: Digest
    nfe: Count | None  # network passes per image, counted; None for pictures made elsewhere
    metrics: dict[str, MetricResult]  # by card id
    status: Literal["ok", "skipped", "partial"] = "ok"
    reason: str = ""


class Cost(Strict):
    parameters: Count | None  # of the denoiser
    nfe: Count | None
    components: dict[str, Count] = {}  # parameters of every component, as its folder holds them, by name


class Evidence(Strict):
    file: Name
    digest: Digest
    rows: Count


class Result(Strict):
    schema_version: Literal[1] = 1
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
    version: Any = table.get("schema_version")
    if not isinstance(version, int) or version < min(MIGRATIONS, default=SCHEMA_VERSION):
        raise ResultError("no known schema_version: not a fewstep-bench result")
    if version > SCHEMA_VERSION:
        raise ResultError(f"schema_version {version} is newer than {SCHEMA_VERSION}: update fewstep-bench")
    while version < SCHEMA_VERSION:
        table = MIGRATIONS[version](table)
        version = table["schema_version"]
    return table


def read_result(path: Path) -> Result:
    """Read and validate one result file. Raises ResultError naming file, key and fault."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ResultError(f"larger than {MAX_FILE_BYTES // 2**20} MiB: not a fewstep-bench result")
        text = path.read_text(encoding="utf-8")
        table = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if not isinstance(table, dict):
            raise ResultError("expected a JSON object")
        json.dumps(table, ensure_ascii=False).encode()  # half a surrogate pair cannot be written anywhere
        return Result.model_validate(upgrade(table))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise ResultError(f"{path}: nested too deeply") from error
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'result')}") from error
    except ValueError as error:  # JSON, unicode, version
        raise ResultError(f"{path}: {error}") from error


def first_fault(error: ValidationError, what: str) -> str:
    """Return "key: fault" of the first fault; `what` names the whole, which is at fault where no key is."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or what}: {first['msg']}"


def json_schema() -> str:
    """Return the text of `schema.json`, the JSON Schema of a result."""
    return json_schema_of(Result)


def json_schema_of(kind: Any) -> str:
    """Return the canonical text of the JSON Schema of one of our file formats: a model or a union of models."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(kind).json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def dump_result(result: Result) -> str:
    """Return the canonical text of a result, as `canonical` has it."""
    return canonical(result)


def canonical(model: Strict) -> str:
    """Return the text of one of our files: sorted keys, two spaces, a closing newline."""
    return json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _finite(text: str) -> float:
    """Parse a JSON number, refusing what JSON does not have: NaN, Infinity, and 1e999, which would become it."""
    number = float(text)
    if not math.isfinite(number):
        raise ResultError(f"{text} is not a finite number")
    return number
