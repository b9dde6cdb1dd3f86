"""SIGKILL of a training, its export and its benchmark: the next start continues, and nothing tells the difference."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.benchmarks.toy_metrics  # noqa: F401  (registers the metrics of the suite below)
from benchmarks.config import UserError
from tests.trainers.closed_form import reward_bank
from tests.trainers.tiny_run import assert_same, log_lines, settings
from trainers import start as start_module
from trainers.checkpoint import held
from trainers.config import RunConfig
from trainers.run import train

SUITE = """
[[tasks]]
name = "toys"
prompts = "toys.jsonl"
images_per_prompt = 2
metrics = ["toy_redness", "toy_spread"]
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_module, "load_rewards", lambda settings, device: reward_bank(judge=True))
    monkeypatch.setattr("leaderboards.build.build", lambda results, site: (None, []))  # after all that is kept


@pytest.fixture
def run(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> RunConfig:
    (tmp_path / "toys.jsonl").write_bytes(prompt_file.read_bytes())
    (tmp_path / "toys.toml").write_text(SUITE)
    return settings(pipeline_folder, prompt_file, benchmark=str(tmp_path / "toys.toml"))


def start(run: RunConfig, folder: Path, die_at_rename: int = 0) -> "multiprocessing.process.BaseProcess":
    """Train and benchmark in a forked process, which has torch loaded; let it die before its n-th rename."""

    def work() -> None:
        rename, renamed = os.replace, []

        def deadly(*arguments: Any, **more: Any) -> None:
            renamed.append(1)
            if len(renamed) == die_at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **more)

        os.replace = deadly
        train("rtdmd", run, folder, board=folder / "board")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(run: RunConfig, folder: Path) -> None:
    process = start(run, folder)
    process.join(timeout=200)
    assert process.exitcode == 0


def left_behind(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves but times and locks: bytes of files, tensors of checkpoints, rows of the log.

    Half a temporary file on the board stays until a later write (tests/leaderboards/test_store.py)."""
    kept: dict[str, Any] = {"log": log_lines(folder)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
        name = str(path.relative_to(folder))
        if any(part.startswith(".") and part.endswith(".tmp") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".pt":
            kept[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            table = json.loads(path.read_text())
            kept[name] = table | {"volatile": None} if "volatile" in table else table
        elif path.name not in ("log.jsonl", "journal.jsonl"):
            kept[name] = path.read_bytes()
    return kept


def test_kills_before_renames_and_at_random_moments_leave_what_no_kill_leaves(run: RunConfig, tmp_path: Path) -> None:
    began = time.monotonic()
    finish(run, tmp_path / "whole")
    whole, wanted = time.monotonic() - began, left_behind(tmp_path / "whole")
    assert any("student" in name for name in wanted) and any(name.endswith("result.json") for name in wanted)
    killed, moments = 0, random.Random(0)
    for rename in (1, 2, 4, 7, 11, 16):  # of settings, log, checkpoints, the kept stage, the student, pictures, rows
        process = start(run, tmp_path / "run", rename)
        process.join(timeout=200)
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 5
    finish(run, tmp_path / "run")
    assert_same(left_behind(tmp_path / "run"), wanted)
    for _ in range(3):
        process = start(run, tmp_path / "again")
        time.sleep(moments.random() * whole)
        process.kill()
        process.join()
    finish(run, tmp_path / "again")
    assert_same(left_behind(tmp_path / "again"), wanted)


def test_a_second_start_in_a_folder_at_work_is_one_clear_line(run: RunConfig, tmp_path: Path) -> None:
    with held(tmp_path / "run"), pytest.raises(UserError, match="another process is training here"):
        train("rtdmd", run, tmp_path / "run")
