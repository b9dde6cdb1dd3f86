"""The stand-ins of these tests against the real things: what they write is what trainings leave, called alike."""

import inspect
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.workflow import Settings
from tests.trainers.claims.fake import Benchmarks, Trainings, write_run
from tests.trainers.tiny_run import settings
from trainers import run as run_module
from trainers.checkpoint import LOG, SETTINGS
from trainers.claims.record import STUDENT_RECORD, read_log
from trainers.config import RunConfig


def tiny(pipeline_folder: Path, prompt_file: Path) -> RunConfig:
    return settings(
        pipeline_folder, prompt_file, rewards=[{"id": "micro_clip"}], log_every=1,
        canary={"prompts": str(prompt_file), "limit": 2, "metrics": ["micro_aesthetic"], "every": 2},
        stages={"cold_start": {"iterations": 4}, "reinforce": {"iterations": 2}},
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    """Return what a run leaves, without the student's weights and locks."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("student/") and not name.endswith(".lock")} | {
        name for name in found if name == STUDENT_RECORD.as_posix()
    }


def kinds(value: Any) -> Any:
    """Return the keys of nested tables with the types of their values; numbers are alike."""
    if isinstance(value, dict):
        return {key: kinds(one) for key, one in value.items()}
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


@pytest.fixture(scope="module")
def both(pipeline_folder: Path, prompt_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one run: as a training leaves it, and as the stand-in does."""
    run, folder = tiny(pipeline_folder, prompt_file), tmp_path_factory.mktemp("runs")
    run_module.train("rtdmd", run, folder / "real", where="x", until=math.inf)
    write_run(folder / "fake", "rtdmd", run)
    return folder / "real", folder / "fake"


def test_a_stand_in_training_leaves_what_a_training_leaves(both: tuple[Path, Path]) -> None:
    real, fake = both
    assert files(fake) == files(real)
    table, told = (json.loads((folder / SETTINGS).read_text()) for folder in (real, fake))
    assert told == table
    record, written = (json.loads((folder / STUDENT_RECORD).read_text()) for folder in (real, fake))
    assert written.keys() == record.keys()
    assert [kinds(stage) for stage in written["stages"]] == [kinds(stage) for stage in record["stages"]]
    metrics = {"micro_clip", "micro_aesthetic", "shapes_geneval"}
    for key in ("stage", "iteration", "passes"):  # beside the metrics, which a study chooses
        assert {kinds(point[key]) for point in written["curves"]} == {kinds(point[key]) for point in record["curves"]}
    for points in (written["curves"], record["curves"]):
        assert all(point.keys() - metrics == {"stage", "iteration", "passes"} for point in points)
        assert (points[0]["iteration"], points[0]["passes"], points[-1]["stage"]) == (0, 0, "reinforce")


def test_a_stand_ins_log_has_the_lines_of_a_log(both: tuple[Path, Path]) -> None:
    logs = {folder: read_log(folder) for folder in both}
    assert all(len(log) == len((folder / LOG).read_text().splitlines()) for folder, log in logs.items())
    for log in logs.values():
        canary = [line for line in log if "canary/micro_clip" in line]
        trained = [line for line in log if line not in canary]
        assert (log[0] in canary, log[0]["iteration"], log[0]["passes"]) == (True, 0, 0)
        assert log[-1] in canary and log[-1]["stage"] == "reinforce"
        assert all(
            "canary_std/micro_clip" in line and not any(k.startswith("reward") for k in line) for line in canary
        )
        assert not any(key.startswith("canary") for line in trained for key in line)
        assert "reward_std/micro_clip" in trained[-1]
        stated = {"stage", "iteration", "passes", "volatile"}
        assert all(stated <= line.keys() and kinds(line["volatile"]) == {"time": "number"} for line in log)


def test_stand_ins_are_called_as_the_real_ones_are() -> None:
    train, benchmark = (inspect.signature(fake).parameters for fake in (Trainings(), Benchmarks()))
    real = inspect.signature(run_module.train).parameters
    assert train.keys() <= real.keys() and all(train[name].kind == real[name].kind for name in train)
    assert {name for name, one in real.items() if one.default is one.empty} <= train.keys()
    first, second, *changes = benchmark
    assert [first, second] == list(inspect.signature(benchmarks.evaluate).parameters)[:2]
    assert set(changes) <= {field.name for field in fields(Settings)}  # what `evaluate` takes besides
