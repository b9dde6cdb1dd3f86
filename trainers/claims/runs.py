"""The runs of a study on disk: what is done, what it will take, and one more of them.

runs/claims-<plan>/<arm>-s<seed>/     a training's folder (trainers/loop.py) and its benchmark
runs/claims-<plan>/board/             the results; the leaderboard's own stays as it is

A run is done once the study keeps its record (trainers/claims/record.py); its folder may go then.
"""

import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.config import UserError
from leaderboards.store import file_stem
from trainers.checkpoint import SETTINGS, STATE, Occupied, claim_folder, held, is_held, read_settings, stage_state
from trainers.claims.plan import Study
from trainers.claims.record import STUDENT_RECORD, Record, Records, read_log, record_of
from trainers.claims.schedule import UNTRAINED, Item, ordered
from trainers.pause import Paused
from trainers.study import benchmark, donate_stage, run_digest, stages_digest

LONGEST_PAUSE = 20  # in usual times between two lines of a log; what is longer was no training


@dataclass
class Runs:
    """The folder of a study's runs."""

    study: Study
    folder: Path
    records: Records
    compile: bool = False  # the networks of what is trained; no part of what a run is
    failed: dict[Item, str] = field(default_factory=dict)
    _paces: dict[str, list[float]] = field(default_factory=dict)  # by arm, and by "method:<name>"
    _benchmarks: list[float] = field(default_factory=list)
    _kept: dict[str, list[Path]] = field(default_factory=dict)  # states that a run can start from, by stage's digest
    _digests: dict[Item, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()

    @property
    def board(self) -> Path:
        """The folder of results."""
        return self.folder / "board"

    def place(self, item: Item) -> Path:
        """Return an item's folder."""
        return self.folder / item.name

    def result(self, item: Item) -> Path:
        """Return where an item's result is, once it is done."""
        return self.board / file_stem(Path(self.study.plan.suite).stem) / f"{file_stem(item.name)}.json"

    def state(self, item: Item) -> str:
        """Return "done", "begun" or "to do"."""
        if self.record(item):
            return "done"
        return "begun" if (self.place(item) / STATE).exists() else "to do"

    def record(self, item: Item) -> Record | None:
        """Return what the study keeps of an item, None where it is not done. Raises UserError for a damaged file."""
        return self.records.find(item.name, self._digest(item))

    def _digest(self, item: Item) -> str:
        if item not in self._digests:
            self._digests[item] = self.study.digest(item.arm, item.seed)
        return self._digests[item]

    def look(self) -> None:
        """Read anew what finished and unfinished runs tell of time, and of stages to start from."""
        self._paces, self._benchmarks, self._kept = {}, [], {}
        for path in sorted(self.folder.glob(f"*/{SETTINGS}")):
            table = read_settings(path)
            for stage in table["stages"]:
                if stage_state(path.parent, stage).exists():
                    digest = stages_digest(table, stage)
                    self._kept.setdefault(digest, []).append(stage_state(path.parent, stage))
            pace = passes_per_second(read_log(path.parent))
            if pace:
                arm = path.parent.name.rpartition("-s")[0]
                for key in (arm, f"method:{table['method']}", ""):
                    self._paces.setdefault(key, []).append(pace)
        done = filter(None, map(self.record, ordered(self.study)))
        self._benchmarks = [one.benchmark.seconds for one in done if one.benchmark]

    def pace(self, arm: str) -> float:
        """Return network passes per second: of the arm's own logs, else its method's, else all, else a guess."""
        method = self.study.runs[arm][0] if arm in self.study.runs else ""
        for key in (arm, f"method:{method}", ""):
            if key in self._paces:
                return statistics.median(self._paces[key])
        return self.study.plan.passes_per_second

    @property
    def benchmark_seconds(self) -> float:
        """Seconds of one benchmark, as measured, or a guess."""
        return statistics.median(self._benchmarks) if self._benchmarks else self.study.plan.benchmark_seconds

    def passes_left(self, item: Item, shared: set[str] | None = None) -> int:
        """Return the network passes that an item still needs.

        shared: digests of stages that others will have trained by then; this item's own are added."""
        if item.seed == UNTRAINED or (self.place(item) / STUDENT_RECORD).exists():
            return 0
        method, run = self.study.run(item.arm, item.seed)
        kept, left = self._kept.keys() | (shared or set()), 0
        for stage, budget in self.study.stages(item.arm):
            digest = run_digest(method, run, stage)
            left = 0 if digest in kept else left + budget
            if shared is not None:
                shared.add(digest)
        lines = read_log(self.place(item))
        return min(left, max(0, self.study.budget(item.arm) - lines[-1]["passes"])) if lines else left

    def seconds(self, item: Item, shared: set[str] | None = None) -> float:
        """Return the estimated seconds that an item still takes."""
        return self.seconds_for(item, self.passes_left(item, shared))

    def seconds_for(self, item: Item, passes: int) -> float:
        """Return the estimated seconds of so many network passes of an item, and of its benchmark."""
        after = self.benchmark_seconds if self.study.plan.arms[item.arm].benchmark else 0.0
        return passes / self.pace(item.arm) + after

    def free(self, item: Item) -> bool:
        """Return whether no other call is at work on an item, or on a stage that it would start from."""
        if item in self.failed or is_held(self.place(item)):
            return False
        return self.state(item) == "begun" or not self._donated(item) & self._in_the_making()

    def _donated(self, item: Item) -> set[str]:
        """Return the digests of the stages that others may start from, or be: those not there yet."""
        if item.seed == UNTRAINED:
            return set()
        method, run = self.study.run(item.arm, item.seed)
        lacking = [stage for stage in run.stages if not stage_state(self.place(item), stage).exists()]
        return {run_digest(method, run, stage) for stage in lacking}

    def _in_the_making(self) -> set[str]:
        at_work = [item for item in ordered(self.study) if is_held(self.place(item))]
        return set().union(*map(self._donated, at_work))

    def advance(self, item: Item, until: float) -> None:
        """Train, and benchmark, an item until it is done or the moment `until` of time.monotonic() has come.

        A mistake in one arm is told and remembered, and does not keep the others from their work."""
        print(f"{item.name} …", file=sys.stderr, flush=True)
        try:
            if item.seed != UNTRAINED:
                self._train(item, until)
            result, seconds = None, 0.0
            if self.study.plan.arms[item.arm].benchmark:
                if item.seed != UNTRAINED and time.monotonic() + self.benchmark_seconds > until:
                    return
                result, seconds = self.result(item), self._benchmark(item)
            self.records.keep(record_of(item.name, self._digest(item), self.place(item), result, seconds))
            self._tidy(item)
        except Paused:
            print(f"{item.name}: time is up; the same command continues it", file=sys.stderr)
        except Occupied as error:  # by a call that was quicker
            print(error, file=sys.stderr)
        except UserError as error:
            print(f"{item.name}: {error}", file=sys.stderr)
            self.failed[item] = str(error)
        self.look()

    def _tidy(self, item: Item) -> None:
        """Remove the checkpoint of a finished run, and kept stages of which another run has the same."""
        (self.place(item) / STATE).unlink(missing_ok=True)
        self.look()
        done = {self.place(one) for one in ordered(self.study) if self.record(one)}
        for first, *others in self._kept.values():  # in the order of their names: two calls leave the same one
            for path in others:
                if path.parent == self.place(item):
                    path.unlink()
                elif path.parent in done and first.parent == self.place(item):
                    path.unlink(missing_ok=True)

    def _train(self, item: Item, until: float) -> None:
        """Train an item to its end.

        Raises Paused where the time is up, Occupied where another call is at work on it."""
        from trainers.run import train

        method, run = self.study.run(item.arm, item.seed)
        run = replace(run, backbone=replace(run.backbone, compile=self.compile))
        place, where = self.place(item), f"{self.study.path}: arms.{item.arm}"
        if (place / STUDENT_RECORD).exists():  # of this plan?
            begun = replace(run, processes=run.processes or 1)
            claim_folder(place, method, begun, frozenset({"backbone.compile"}), where)
            return
        with held(place):
            donate_stage(method, run, place, where)
        train(method, run, place, where=where, until=until)

    def _benchmark(self, item: Item) -> float:
        """Put an item through the suite; return the seconds that took."""
        arm, started, place = self.study.plan.arms[item.arm], time.monotonic(), self.place(item)
        model = arm.model or place / "student"
        benchmark(model, self.study.plan.suite, item.name, place, self.board, arm.steps, arm.guidance)
        return time.monotonic() - started


def passes_per_second(lines: Iterable[dict[str, Any]]) -> float | None:
    """Return the pace that a log tells, canaries included and pauses left out; None where it is too short."""
    told = [(line["passes"], line["volatile"]["time"]) for line in lines]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(told)]
    trained = [seconds for passes, seconds in steps if passes > 0 and seconds > 0]
    if len(trained) < 3:
        return None
    longest = LONGEST_PAUSE * statistics.median(trained)
    return sum(max(0, passes) for passes, _ in steps) / sum(min(max(0.0, seconds), longest) for _, seconds in steps)
