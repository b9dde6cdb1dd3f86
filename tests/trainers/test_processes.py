"""Two processes that train together (gloo, on the CPU) against one with the same batch."""

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from metrics.base import Prompt
from tests.trainers.closed_form import ClosedFormMetric
from tests.trainers.test_loop import assert_same, log_lines, settings
from trainers import loop as loop_module
from trainers.config import RunConfig
from trainers.loop import Loop
from trainers.rewards import RewardBank, RewardConfig


class RednessOfMost(ClosedFormMetric):
    """Rewards no prompt that names blue: groups of such prompts have no contrast and are dropped."""

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        asked = torch.tensor([float("blue" not in prompt.text.split()) for prompt in prompts])
        return asked * super().reward(images, prompts)


@pytest.fixture(autouse=True)
def picky_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = RewardBank([RewardConfig(id="redness")], {"redness": RednessOfMost("redness", 0, True)})  # type: ignore[dict-item]
    monkeypatch.setattr(loop_module, "load_rewards", lambda settings, device: bank)


def settings_of(pipeline: Path, source: Path, batch: int) -> RunConfig:
    """Settings with `batch` prompts per process; Adam's eps keeps rounding from becoming a direction."""
    optimiser = {"eps": 1e-4}
    trainer = {
        "cold_start": {"batch_size": batch},
        "reinforce": {"groups": batch, "microbatch": 3},
        "student": optimiser,
        "fake_score": optimiser,
    }
    stages = {"cold_start": {"iterations": 2}, "reinforce": {"settings": {"student": optimiser}}}
    return settings(pipeline, source, trainer=trainer, stages=stages)


def start(run: RunConfig, folder: Path, processes: int, die_at: int = -1) -> list[int | None]:
    """Train in forked processes as a launcher starts them; each kills itself at an iteration. Return exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        AcceleratorState._reset_state(reset_partial_state=True)  # of the test process that was forked
        PartialState._reset_state()
        loop = Loop("rtdmd", run, folder)
        assert loop.accelerator.num_processes == processes
        step, taken = loop._step, []

        def mortal(*arguments: Any) -> dict[str, float]:
            if len(taken) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(1)
            return step(*arguments)

        loop._step = mortal  # type: ignore[method-assign]
        loop.train()

    started = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]


def weights(folder: Path) -> dict[str, list[Tensor]]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {role: state["trainer"][role]["parameters"] for role in ("student", "fake_score")}


def test_two_processes_train_like_one_with_twice_the_batch_and_resume(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    assert start(settings_of(pipeline_folder, prompt_file, 4), tmp_path / "one", 1) == [0]
    half = settings_of(pipeline_folder, prompt_file, 2)
    assert start(half, tmp_path / "two", 2) == [0, 0]
    one, two = log_lines(tmp_path / "one"), log_lines(tmp_path / "two")
    assert any(0 < line.get("kept", 0) < 1 for line in one)  # some groups were dropped, here or there
    for alone, together in zip(one, two, strict=True):
        assert together.pop("stage") == alone.pop("stage")
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)
    for role, ours in weights(tmp_path / "two").items():
        for mine, theirs in zip(ours, weights(tmp_path / "one")[role], strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)

    assert set(start(half, tmp_path / "killed", 2, die_at=3)) == {-signal.SIGKILL}
    assert start(half, tmp_path / "killed", 2) == [0, 0]
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "two")
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "two"))
    record = json.loads((tmp_path / "killed" / "student" / "training.json").read_text())
    assert record["network_passes"] == two[-1]["passes"]
