"""What Ctrl-C and SIGTERM leave: a checkpoint of the iteration they came in, from which the same command goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import as_table, build
from tests.trainers.tiny_run import assert_same, log_lines, settings
from trainers.config import RunConfig
from trainers.loop import Loop
from trainers.pause import Pause, Paused


def signalled(run: RunConfig, folder: Path, number: int, iteration: int) -> BaseException:
    """Train with a signal sent within an iteration; return what ends the training."""
    loop = Loop("dmd", run, folder)
    step = loop._step

    def signalling(trainer: Any, at: int) -> dict[str, float]:
        if at == iteration:
            os.kill(os.getpid(), number)
        return step(trainer, at)

    loop._step = signalling  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        loop.train()
    return caught.value


@pytest.fixture(autouse=True)
def interactive() -> Iterator[None]:
    """Ctrl-C as a terminal gives it: of what a shell has put into the background, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(pipeline_folder: Path, prompt_file: Path) -> RunConfig:
    stages = {"cold_start": {"iterations": 4}, "reinforce": {"iterations": 3, "settings": {"ema": {"decay": 0.5}}}}
    table = as_table(settings(pipeline_folder, prompt_file))
    trainer = {"batch_size": 2, "fake_score_updates": 2}
    return build(RunConfig, table | {"checkpoint_every": 100, "trainer": trainer, "stages": stages}, "tiny.toml")


def test_a_signal_leaves_a_checkpoint_and_the_run_ends_bit_for_bit_like_one_in_a_go(
    run: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, before = Loop("dmd", run, tmp_path / "whole").train(), signal.getsignal(signal.SIGTERM)
    ended = signalled(run, tmp_path / "run", signal.SIGTERM, 1)
    assert isinstance(ended, SystemExit) and ended.code == 143
    assert [line["iteration"] for line in log_lines(tmp_path / "run")] == [1, 2]  # the second was finished
    assert "SIGTERM: a checkpoint after this iteration, then the end" in capfd.readouterr().err
    # at a stage's last iteration: the pause is in the next stage; at the run's, the student is exported first
    assert isinstance(signalled(run, tmp_path / "run", signal.SIGINT, 3), KeyboardInterrupt)
    assert log_lines(tmp_path / "run")[-1]["stage"] == "reinforce"
    assert isinstance(signalled(run, tmp_path / "run", signal.SIGINT, 2), KeyboardInterrupt)
    assert (tmp_path / "run" / "student" / "training.json").exists()
    again = Loop("dmd", run, tmp_path / "run").train()
    assert log_lines(tmp_path / "run") == log_lines(tmp_path / "whole")
    assert_same(*(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "run")))
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_at_once_and_none_is_kept_from_other_code() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Pause() as pause:
        assert pause.due == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert pause.due == signal.SIGINT and signal.getsignal(signal.SIGINT) is before
        os.kill(os.getpid(), signal.SIGINT)
    with Pause(until=0.0) as pause, pytest.raises(Paused):
        pause.leave(pause.due)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Pause() as pause:
        os.kill(os.getpid(), signal.SIGINT)
        assert pause.due == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_training_in_a_thread_hears_the_clock_alone() -> None:
    found = []

    def work() -> None:
        with Pause(until=0.0) as pause:
            found.append(pause.due)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [-1]


def test_the_command_ends_with_the_exit_code_of_the_signal(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    config, folder = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(
        f'name = "x"\ndevice = "cpu"\nlog_every = 1\ntrainer.batch_size = 2\nstages.one.iterations = 100000\n'
        f'backbone = {{ path = "{pipeline_folder}", lora.rank = 2 }}\nprompts.source = "{prompt_file}"\n'
    )
    command = [sys.executable, "-m", "trainers.run", "dmd", "--config", str(config), "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not (folder / "log.jsonl").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
    assert process.returncode == 143 and "Traceback" not in told, told
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["position"]["iteration"] == log_lines(folder)[-1]["iteration"] > 0
