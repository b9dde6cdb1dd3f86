"""What a study keeps of a finished run: numbers alone, so that they can lie in the repository and outlive the run.

    leaderboards/studies/<plan>-claims/runs/<arm>-s<seed>.json     one file for each run

Measures and figures read nothing else: whoever has these files can judge the claims anew, and a call on another
machine trains only what has none. Numbers have six digits. Axes: P prompts, N images.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from benchmarks.config import UserError
from benchmarks.models import read_training
from benchmarks.summarise import commit, host
from leaderboards.schema import Count, Digest, JsonValue, Name, Number, StageRecord, Strict, first_fault
from leaderboards.statistics import Scores
from leaderboards.store import read_entry, write_atomically
from trainers.checkpoint import LOG

T = TypeVar("T")
STUDENT_RECORD = Path("student") / "training.json"
STD = "canary_std/"
KEPT_OF_LOGS = ("iteration", "passes", "gradient_variance")


class Evidence(Strict):
    """One metric of one image set."""

    means_P: list[Number]  # mean over the images of each prompt, in the order of the prompts' ids
    mean: Number  # of the N images
    deviation: Annotated[Number, Field(ge=0)]  # of the N images


class Trained(Strict):
    """What a training left."""

    network_passes: Count
    compiled: bool  # at its last start: passes then take other times
    machine: str = ""  # system and processors, where it ended; "" = not known
    commit: str = ""  # of the program that ended it; "" = not known
    stages: list[StageRecord]
    curves: list[dict[str, JsonValue]]  # the canary's points
    first_deviations: dict[str, Number]  # of images, by metric: the canary's first measurement
    last_stage: list[dict[str, Number]]  # its log: iteration, passes, time (s), reward_std/<id>, gradient_variance


class Benchmarked(Strict):
    """What a benchmark left."""

    prompts_digest: Digest  # of the ids of P prompts
    images_per_prompt: Count
    versions: dict[str, Count]  # of the metrics that have a value
    evidence: dict[str, Evidence]  # by metric
    sets: dict[str, Number]  # values of metrics of a whole set
    absent: dict[str, str]  # why a metric has no value
    seconds: Annotated[Number, Field(ge=0)]  # that it took
    provenance: dict[str, str]  # versions of what computed the values, and the commit


class Record(Strict):
    """A finished run."""

    name: Name  # "<arm>-s<seed>", or "<arm>" of one that is not trained
    digest: Digest  # of what the plan said of it (trainers/claims/plan.py: Study.digest)
    training: Trained | None
    benchmark: Benchmarked | None

    @property
    def trained(self) -> Trained:
        """What the training left. Raises UserError where there was none."""
        if self.training is None:
            raise UserError(f"{self.name}: was not trained here")
        return self.training

    @property
    def benchmarked(self) -> Benchmarked:
        """What the benchmark left. Raises UserError where there was none."""
        if self.benchmark is None:
            raise UserError(f"{self.name}: was not benchmarked")
        return self.benchmark

    def evidence(self, metric: str) -> Evidence:
        """Return the evidence of a metric. Raises UserError where there is none."""
        return self._found(metric, self.benchmarked.evidence)

    def set_value(self, metric: str) -> float:
        """Return a metric's value of the set of images. Raises UserError where there is none."""
        return self._found(metric, self.benchmarked.sets)

    def _found(self, metric: str, of: Mapping[str, T]) -> T:
        if metric not in of:
            reason = self.benchmarked.absent.get(metric, "its suite does not hold it")
            raise UserError(f"{self.name}: no value of {metric}: {reason}")
        return of[metric]


@dataclass(frozen=True)
class Records:
    """The folder of a study's records. Each is written once, whole: calls at the same time need no lock."""

    folder: Path
    _read: dict[str, Record] = field(default_factory=dict)

    def find(self, name: str, digest: str) -> Record | None:
        """Return a run's record, None where there is none of these settings. Raises UserError for a damaged file."""
        path = self.folder / f"{name}.json"
        if name not in self._read and path.is_file():
            self._read[name] = read_record(path)
        found = self._read.get(name)
        return found if found is not None and found.digest == digest else None

    def keep(self, record: Record) -> None:
        """Write a run's record in the place of an older one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{record.name}.json", (record.model_dump_json() + "\n").encode())
        self._read[record.name] = record


def read_record(path: Path) -> Record:
    """Read and validate one record. Raises UserError naming file, key and fault."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = first_fault(error, "record")
        raise UserError(f"{path}: {fault}; remove the file to have the run made again") from error


def record_of(name: str, digest: str, folder: Path, result: Path | None, seconds: float) -> Record:
    """Return the record of a run from what it left: log and student in its folder, and its result with evidence.

    result: None where it was not benchmarked, else that took so many seconds. Raises UserError or ResultError where
    one of the files is damaged."""
    trained = _of_training(folder) if (folder / STUDENT_RECORD).exists() else None
    benchmarked = _of_result(result) | {"seconds": seconds} if result else None
    told = {"name": name, "digest": digest, "training": trained, "benchmark": benchmarked}
    return Record.model_validate(_rounded(told))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; none where there is no log. A last line that a kill has cut is left out."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _of_training(folder: Path) -> dict[str, Any]:
    training, _ = read_training(folder / "student")
    assert training is not None  # there is a file, and one that is malformed raises
    log, last, backbone = read_log(folder), training.stages[-1].name, training.config.get("backbone")
    first: dict[str, float] = {}
    for line in log:
        first = {key.removeprefix(STD): value for key, value in line.items() if key.startswith(STD)} | first
    told = ("canary/", "stopped_by/")  # lines of measurements, beside that of the training at the same iteration
    trained = [line for line in log if line["stage"] == last and not any(key.startswith(told) for key in line)]
    return {
        "network_passes": training.network_passes,
        "compiled": isinstance(backbone, dict) and bool(backbone.get("compile")),
        "machine": host(),
        "commit": commit(),
        "stages": [stage.model_dump() for stage in training.stages],
        "curves": training.curves,
        "first_deviations": first,
        "last_stage": [_kept(line) for line in trained],
    }


def _kept(line: Mapping[str, Any]) -> dict[str, float]:
    kept = {key: value for key, value in line.items() if key in KEPT_OF_LOGS or key.startswith("reward_std/")}
    return kept | {"time": round(line["volatile"]["time"], 3)}


def _of_result(path: Path) -> dict[str, Any]:
    entry = read_entry(path, intervals=False)
    result, (task,) = entry.result, entry.result.tasks
    valued = {metric: found for metric, found in task.metrics.items() if found.value is not None}
    scores = {metric: entry.scores(task.name, metric) for metric, one in valued.items() if one.aggregate != "set"}
    means = {metric: prompt_means(one) for metric, one in scores.items()}
    prompts = sorted(set().union(*means.values()))
    whole = [metric for metric, one in means.items() if len(one) == len(prompts)]
    reasons = {metric: found.reason for metric, found in task.metrics.items() if found.value is None}
    return {
        "prompts_digest": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "images_per_prompt": task.images_per_prompt,
        "versions": {metric: found.version for metric, found in valued.items()},
        "evidence": {metric: _of_metric(scores[metric], [means[metric][one] for one in prompts]) for metric in whole},
        "sets": {metric: found.value for metric, found in valued.items() if found.aggregate == "set"},
        "absent": reasons | dict.fromkeys(means.keys() - set(whole), "some prompts have none"),
        "provenance": result.provenance | {"commit": str(result.volatile.get("commit", ""))},
    }


def _of_metric(scores: Scores, means_P: list[float]) -> dict[str, Any]:
    values_N = scores.values_N.astype(float)
    return {"means_P": means_P, "mean": float(values_N.mean()), "deviation": float(values_N.std())}


def prompt_means(scores: Scores) -> dict[str, float]:
    """Return the mean over the images of each prompt."""
    found = defaultdict(list)
    for prompt, value in zip(scores.prompt_ids, scores.values_N.tolist(), strict=True):
        found[prompt].append(value)
    return {prompt: math.fsum(values) / len(values) for prompt, values in found.items()}


def _rounded(value: Any) -> Any:
    """Return nested tables with numbers of six digits; times, which are long, keep theirs."""
    if isinstance(value, dict):
        return {key: one if key == "time" else _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
