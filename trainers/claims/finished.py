"""What a finished run holds: its result with the evidence, its log, the record of its training."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.models import read_training
from leaderboards.schema import Training
from leaderboards.statistics import Scores
from leaderboards.store import Entry, read_entry
from trainers.checkpoint import LOG

STUDENT_RECORD = Path("student") / "training.json"


@dataclass(frozen=True)
class Done:
    """A finished item: its result, log and training record, each read when it is asked for."""

    name: str
    folder: Path
    result: Path

    @property
    def trained(self) -> bool:
        """Whether it was trained here, or only benchmarked."""
        return (self.folder / STUDENT_RECORD).exists()

    @cached_property
    def entry(self) -> Entry:
        """The result with its evidence."""
        return read_entry(self.result, intervals=False)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return read_log(self.folder)

    @cached_property
    def training(self) -> Training:
        """The record of the training; only what was trained has one. Raises UserError where it is malformed."""
        record, _ = read_training(self.folder / "student")
        assert record is not None
        return record

    def scores(self, metric: str) -> Scores:
        """Return the evidence of a metric. Raises ResultError where there is none."""
        return self.entry.scores(self.entry.result.tasks[0].name, metric)

    def last_stage(self) -> list[dict[str, Any]]:
        """Return the log of the last stage, without the canary's lines."""
        last = self.training.stages[-1].name
        return [line for line in self.log if line["stage"] == last and not any(k.startswith("canary/") for k in line)]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; none where there is no log. A last line that a kill has cut is left out."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
