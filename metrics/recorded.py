"""What a perceiver said elsewhere, recorded in a file of JSON lines, as input of a metric.

    FEWSTEP_BENCH_DETECTIONS   {"prompt_id": "00012", "seed": 0, "detections": {"dog": [[x1, y1, x2, y2, score,
                               colour]]}}
                               or {"path": "00012/samples/0000.png", ...}: GenEval's layout names prompt and sample
    FEWSTEP_BENCH_ANSWERS      {"item_id": "partiprompts97", "tile": 0, "qid": 1, "answer": "yes"}

So the official stacks (mmdet for GenEval, modelscope's mPLUG for DPG-Bench) can run where they still run, and their
pictures' verdicts are computed here. A picture without a record is an error. The file's sha256 is the metric's
weights digest; nobody here can check what made it, so such results are never ranked.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from metrics.base import Prompt, UserError
from metrics.features import Encoder, register_encoders
from metrics.geneval.verdict import Detected, Detections
from metrics.preprocessing import Uint8
from metrics.weights.files import file_digest

DETECTIONS, ANSWERS = "FEWSTEP_BENCH_DETECTIONS", "FEWSTEP_BENCH_ANSWERS"
_SAMPLE = re.compile(r"(?:.*/)?(\d{5,})/samples/(\d+)\.png")
V = TypeVar("V")
Key = tuple[str, int]  # prompt id, seed


@dataclass(frozen=True)
class RecordedFile:
    """A file named by an environment variable, in the place of weights (`metrics.weights.Weights`)."""

    variable: str

    @property
    def mend(self) -> str:
        """How to name the file."""
        return f"set {self.variable} to the file of JSON lines"

    def missing(self) -> str | None:
        """Return why the file cannot be read, None where it is there."""
        named = os.environ.get(self.variable, "")
        if not named:
            return f"nothing recorded: {self.mend}"
        return None if Path(named).is_file() else f"{self.variable}={named}: no such file; {self.mend}"

    def check(self) -> None:
        """Raise UserError where the file is missing."""
        if reason := self.missing():
            raise UserError(reason)

    def path(self) -> Path:
        """Return the file. Raises UserError where it is missing."""
        self.check()
        return Path(os.environ[self.variable])

    def folder(self) -> Path:
        """Return the folder of the file. Raises UserError where it is missing."""
        return self.path().parent

    def json(self, name: str) -> dict[str, Any]:
        """Raise UserError: there is nothing but records."""
        raise UserError(f"{self.path()}: holds no {name}")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Raise UserError, as `json` does."""
        raise UserError(f"{self.path()}: holds no {name}")

    def digest(self) -> str:
        """Return the sha256 of the file. Raises UserError where it is missing."""
        return file_digest(self.path())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (file and line, record). Raises UserError for a line that is no JSON object."""
        path = self.path()
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not a line of JSON ({error})") from error
                if not isinstance(record, dict):
                    raise UserError(f"{path}:{number}: expected an object, found a {type(record).__name__}")
                yield f"{path}:{number}", record


@dataclass
class Table(Generic[V]):
    """What was recorded, by prompt id and seed; read at the first look-up."""

    file: RecordedFile
    read: Callable[[RecordedFile], dict[Key, V]]

    def of(self, prompt: Prompt, seed: int) -> V:
        """Return the record of one picture. Raises UserError where there is none."""
        found = self._records.get((prompt.id, seed))
        if found is None:
            raise UserError(f"{self.file.path()}: nothing recorded for prompt {prompt.id!r}, picture {seed}")
        return found

    @cached_property
    def _records(self) -> dict[Key, V]:
        return self.read(self.file)


def read_detections(file: RecordedFile) -> dict[Key, Detections]:
    """Return detections by prompt id and seed. Raises UserError for a malformed line or one that stands twice."""
    found: dict[Key, Detections] = {}
    for where, record in file.records():
        key = _picture(record, where)
        if key in found:
            raise UserError(f"{where}: prompt {key[0]!r}, picture {key[1]} stands twice")
        found[key] = as_detections(record.get("detections"), where)
    return found


def as_detections(table: Any, where: str) -> Detections:
    """Return {class: [[x1, y1, x2, y2, score, colour?], ...]} as detections. Raises UserError, opened by `where`."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: 'detections' must be an object of lists by class")
    return {
        str(name): [_as_detected(entry, f"{where}: {name}") for entry in entries] for name, entries in table.items()
    }


def _as_detected(entry: Any, where: str) -> Detected:
    match entry:
        case [x1, y1, x2, y2, score, *colour] if len(colour) <= 1:
            numbers = (x1, y1, x2, y2, score)
            # NaN compares unequal to itself; a bool is no number here
            if all(isinstance(n, int | float) and not isinstance(n, bool) and n == n for n in numbers):
                return Detected((float(x1), float(y1), float(x2), float(y2)), float(score), *colour)
    raise UserError(f"{where}: {entry!r} is no [x1, y1, x2, y2, score, colour]")


def _picture(record: Mapping[str, Any], where: str) -> Key:
    match record:
        case {"prompt_id": str(identity), "seed": int(seed)}:
            return identity, seed
        case {"path": str(path)} if sample := _SAMPLE.fullmatch(path):
            return sample[1], int(sample[2])
    raise UserError(f"{where}: names no picture; give prompt_id and seed, or a path such as 00012/samples/0000.png")


def read_answers(file: RecordedFile) -> dict[Key, dict[int, str]]:
    """Return DPG-Bench answers by question id, by prompt id and tile.

    Raises: UserError for a malformed line or a question that was answered twice."""
    found: dict[Key, dict[int, str]] = {}
    for where, record in file.records():
        match record:
            case {"item_id": str(item), "tile": int(tile), "qid": int(question), "answer": str(answer)}:
                answers = found.setdefault((item, tile), {})
                if question in answers:
                    raise UserError(f"{where}: question {question} of {item!r}, tile {tile} is answered twice")
                answers[question] = answer
            case _:
                raise UserError(f"{where}: needs item_id, tile, qid and answer")
    return found


def _per_image(table: Table[V], images: Sequence[np.ndarray]) -> list[Table[V]]:
    return [table] * len(images)


@register_encoders("recorded")
def recorded(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"detections", "answers"}: per image the table in which the metric looks it up by prompt and seed."""
    files = {"detections": RecordedFile(DETECTIONS), "answers": RecordedFile(ANSWERS)}
    tables: dict[str, Table[Any]] = {
        "detections": Table(files["detections"], read_detections),
        "answers": Table(files["answers"], read_answers),
    }
    return {
        name: Encoder(
            reads="image", forward=partial(_per_image, tables[name]), preprocessing=Uint8, weights=files[name]
        )
        for name in files
    }
