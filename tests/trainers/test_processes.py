"""Trainings by one, two and three processes (gloo, on the CPU): their number changes nothing but rounding."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.config import build
from metrics.base import Batch, Prompt, UserError
from tests.trainers.closed_form import ClosedFormMetric, bank_of
from tests.trainers.forked import forked
from tests.trainers.tiny_run import assert_same, log_lines
from trainers import canary as canary_module
from trainers import learner
from trainers.base import World
from trainers.checkpoint import begun_with
from trainers.config import CanaryConfig, RunConfig
from trainers.loop import Loop
from trainers.pause import Paused

COUNTS = (1, 2, 3)
GENTLE = {"eps": 1e-4}  # of Adam: keeps rounding from becoming a direction
PAIRS = {"count": 8, "steps": 3}
# What processes could fall apart in: advantages over the groups of all, subsets of steps that prompts draw; samples
# of the teacher and a discriminator; running statistics of rewards, for weights and for losses; a part of the batch
# that is rolled out; images cut into several updates.
METHODS: dict[str, dict[str, Any]] = {
    "rtdmd": {
        "phase": "reinforce", "fake_score": GENTLE,
        "reinforce": {"groups": 1, "group_size": 3, "microbatch": 2, "subset_size": 1, "subset_per": "prompt"},
    },
    "dmd2": {"batch_size": 1, "fake_score_updates": 2, "teacher_samples": PAIRS, "fake_score": GENTLE},
    "rt_dm": {"phase": "rt_dm", "batch_size": 1, "fake_score_updates": 1, "fake_score": GENTLE},
    "dmdr": {
        "phase": "joint", "rl": "grpo", "batch_size": 2, "fake_score_updates": 1, "fake_score": GENTLE,
        "grpo": {"groups": 1, "group_size": 2},
    },
    "grpo": {"updates": 2, "grpo": {"groups": 1, "group_size": 3, "microbatch": 2}},
    "refl": {"batch_size": 1},
}  # fmt: skip
REWARDS: dict[str, dict[str, Any]] = {"refl": {"normalise": "running"}}
# Relative, of gradients and weights: diffusers' RMSNorm takes its mean square in float32; pictures are float32, and
# all of ReFL's gradient passes through them
ROUNDING = dict.fromkeys(METHODS, 1e-8) | {"refl": 1e-6}


class Brightness:
    """The canary's scorer: the mean of a picture, as a metric gives it."""

    card = SimpleNamespace(aggregate="prompts", min_images_per_prompt=1)

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.metrics = {"brightness": self}

    def missing(self, identity: str) -> None:
        """Nothing is."""

    def score(self, pictures: Sequence[Any], batch: Batch) -> dict[str, Any]:
        return {"brightness": np.array([np.asarray(picture).mean() for picture in pictures])}

    def summarise(self, rows: Any, prompts: Sequence[Prompt]) -> Any:
        return SimpleNamespace(per_image_N=rows)


class RednessOfMost(ClosedFormMetric):
    """Rewards no prompt that names blue: groups of such prompts have no contrast and are dropped."""

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        asked = torch.tensor([float("blue" not in prompt.text.split()) for prompt in prompts])
        return asked * super().reward(images, prompts)


@pytest.fixture(autouse=True)
def picky_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = RednessOfMost("redness", 0, True)
    monkeypatch.setattr("trainers.start.load_rewards", lambda rewards, device: bank_of(metric, rewards))
    monkeypatch.setattr(canary_module, "Scorer", Brightness)


Make = Callable[..., RunConfig]


@pytest.fixture
def run_of(pipeline_folder: Path, tmp_path: Path) -> Make:
    """Return run(method, iterations, precision): batches for six processes, which 1, 2 and 3 can share."""
    colours, shapes, ends = ["red", "green", "blue"], ["circle", "square", "cross"], ["", " and a cross"]
    texts = [f"a {colour} {shape}{end}" for colour in colours for shape in shapes for end in ends]
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(texts) + "\n")

    def run(method: str, iterations: int, precision: str, processes: int = 6, **backbone: Any) -> RunConfig:
        trainer = METHODS[method] | {"student": GENTLE | {"lr": 1e-3}}
        if "teacher_samples" in trainer:
            trainer["teacher_samples"] = PAIRS | {"folder": str(tmp_path / "samples")}
        table = {
            "name": "tiny", "device": "cpu", "processes": processes, "checkpoint_every": 2, "log_every": 1,
            "backbone": {
                "path": str(pipeline_folder), "lora": {"rank": 2, "alpha": 4}, "precision": precision, **backbone,
            },
            "prompts": {"source": str(source)},
            "rewards": [{"id": "redness"} | REWARDS.get(method, {})],
            "trainer": trainer, "stages": {"only": {"iterations": iterations}},
        }  # fmt: skip
        return build(RunConfig, table, "tiny.toml")

    return run


def start(method: str, run: RunConfig, folder: Path, processes: int, die_at: int = -1) -> list[int | None]:
    """Train in forked processes as a launcher starts them; each kills itself at an iteration. Return exit codes.

    The first gradients, brought together, are kept in the folder."""

    def work(rank: int) -> None:
        loop = Loop({"rt_dm": "dmdr"}.get(method, method), run, folder)
        assert loop.accelerator.num_processes == processes
        step, taken = loop._step, []

        def mortal(*arguments: Any) -> dict[str, float]:
            if len(taken) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(1)
            return step(*arguments)

        loop._step = mortal  # type: ignore[method-assign]
        if rank == 0:
            _keep_first_gradients(folder / "first.pt")
        loop.train()

    return forked(processes, work)


def _keep_first_gradients(path: Path) -> None:
    """Write the gradients of the first update of each of the two networks, after they were brought together."""
    clip, seen = learner.nn.utils.clip_grad_norm_, dict[int, list[Tensor]]()

    def clip_and_keep(parameters: list[torch.nn.Parameter], limit: float) -> Tensor:
        if id(parameters[0]) not in seen:
            seen[id(parameters[0])] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
            torch.save(list(seen.values()), path)
        return clip(parameters, limit)

    learner.nn.utils.clip_grad_norm_ = clip_and_keep


def first_gradients(folder: Path) -> list[Tensor]:
    """Return the first gradient of each network as one vector."""
    return [torch.cat([p.flatten() for p in of]) for of in torch.load(folder / "first.pt", weights_only=True)]


def weights(folder: Path) -> Tensor:
    """Return all trained weights at the end of a run as one vector."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["trainer"]
    roles = [state[role]["parameters"] for role in ("student", "fake_score") if role in state]
    return torch.cat([p.detach().flatten() for parameters in roles for p in parameters])


def distance(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|."""
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def logs_agree(one: Path, other: Path, rel: float) -> bool:
    """Return whether two runs have logged the same iterations with the same values."""
    for mine, theirs in zip(log_lines(one), log_lines(other), strict=True):
        assert mine.pop("stage") == theirs.pop("stage")
        assert mine == pytest.approx(theirs, rel=rel, abs=rel)
    return True


def test_all_processes_pause_when_the_clock_of_the_first_says_so(run_of: Make, tmp_path: Path) -> None:
    """Clocks differ from machine to machine: one that went on alone would wait for the others for ever."""
    run = run_of("grpo", 2, "float32")

    def work(rank: int) -> None:
        with pytest.raises(Paused):
            Loop("grpo", run, tmp_path / "run").train(until=0.0 if rank == 0 else time.monotonic() + 3600)

    assert forked(2, work) == [0, 0]
    assert [line["iteration"] for line in log_lines(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_all_processes_pause_when_one_of_them_is_told_to_end(run_of: Make, tmp_path: Path) -> None:
    run = run_of("grpo", 2, "float32")

    def work(rank: int) -> None:
        loop = Loop("grpo", run, tmp_path / "run")
        step = loop._step

        def signalled(*arguments: Any) -> dict[str, float]:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        loop._step = signalled  # type: ignore[method-assign]
        loop.train()

    assert forked(2, work) == [143, 143]
    assert [line["iteration"] for line in log_lines(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_weights_are_those_of_one_process(method: str, run_of: Make, tmp_path: Path) -> None:
    run = run_of(method, 4, "float64")
    for count in COUNTS:
        shutil.rmtree(tmp_path / "samples", ignore_errors=True)  # each draws its own
        assert start(method, run, tmp_path / str(count), count) == [0] * count
    alone = tmp_path / "1"
    for other in (tmp_path / str(count) for count in COUNTS[1:]):
        for found, expected in zip(first_gradients(other), first_gradients(alone), strict=True):
            assert distance(found, expected) <= ROUNDING[method]
        assert distance(weights(other), weights(alone)) <= ROUNDING[method]
        assert logs_agree(other, alone, rel=1e-5)
    if method in ("rtdmd", "grpo"):
        assert any(0 < line["kept"] < 1 for line in log_lines(alone))  # some groups were dropped


@pytest.mark.parametrize("method", ["rtdmd", "dmd2"])
def test_a_run_of_two_processes_that_was_killed_goes_on_with_one_and_with_three(
    method: str, run_of: Make, tmp_path: Path
) -> None:
    run = run_of(method, 4, "float64")
    assert start(method, run, tmp_path / "whole", 1) == [0]
    assert set(start(method, run, tmp_path / "killed", 2, die_at=3)) == {-signal.SIGKILL}
    for count in (1, 3):
        resumed = tmp_path / f"resumed-{count}"
        shutil.copytree(tmp_path / "killed", resumed)
        shutil.rmtree(tmp_path / "samples", ignore_errors=True)
        assert start(method, run, resumed, count) == [0] * count
        assert distance(weights(resumed), weights(tmp_path / "whole")) <= 1e-8
        assert logs_agree(resumed, tmp_path / "whole", rel=1e-5)
        record = json.loads((resumed / "student" / "training.json").read_text())
        assert record["network_passes"] == log_lines(tmp_path / "whole")[-1]["passes"]


def test_a_run_resumed_by_as_many_processes_ends_bit_for_bit_the_same(run_of: Make, tmp_path: Path) -> None:
    run = run_of("dmd2", 4, "float32", processes=0)
    assert start("dmd2", run, tmp_path / "whole", 2) == [0, 0]
    assert set(start("dmd2", run, tmp_path / "killed", 2, die_at=3)) == {-signal.SIGKILL}
    assert start("dmd2", run, tmp_path / "killed", 2) == [0, 0]
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")
    assert_same(*(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("killed", "whole")))
    # without a number in the config, a run goes on with the batch that it began with
    assert begun_with(tmp_path / "killed") == 2
    assert Loop("dmd2", run, tmp_path / "killed").run.processes == 2


@pytest.mark.parametrize("method", ["rtdmd", "dmd2", "dmdr", "grpo"])
def test_a_sharded_base_trains_to_what_one_process_does(method: str, run_of: Make, tmp_path: Path) -> None:
    """With a canary, which every process must take part in, and a folder that only the main one writes."""
    canary = {"prompts": str(tmp_path / "prompts.txt"), "limit": 3, "every": 2, "batch_size": 2}
    found = {}
    for count, sharded in ((1, False), (2, True)):
        shutil.rmtree(tmp_path / "samples", ignore_errors=True)
        run = replace(run_of(method, 4, "float64", sharded=sharded), canary=build(CanaryConfig, canary, "canary"))
        assert start(method, run, tmp_path / str(count), count) == [0] * count
        found[count] = load_file(tmp_path / str(count) / "student/transformer/diffusion_pytorch_model.safetensors")
    alone, shared = tmp_path / "1", tmp_path / "2"
    for theirs, expected in zip(first_gradients(shared), first_gradients(alone), strict=True):
        assert distance(theirs, expected) <= 1e-8
    assert distance(weights(shared), weights(alone)) <= 1e-8
    assert logs_agree(shared, alone, rel=1e-5) and any("canary/brightness" in line for line in log_lines(alone))
    assert found[1].keys() == found[2].keys()
    assert all(torch.allclose(found[2][name], tensor, rtol=1e-3, atol=1e-6) for name, tensor in found[1].items())


def test_a_sharded_run_that_was_killed_goes_on(run_of: Make, tmp_path: Path) -> None:
    """Bit for bit on as many processes; on one, where nothing is sharded, and on three up to rounding."""
    run = run_of("dmdr", 4, "float64", sharded=True)
    assert start("dmdr", run, tmp_path / "whole", 2) == [0, 0]
    assert set(start("dmdr", run, tmp_path / "killed", 2, die_at=3)) == {-signal.SIGKILL}
    for count, sharded in ((1, False), (2, True), (3, True)):  # whether it is sharded may change, too
        resumed = tmp_path / f"resumed-{count}"
        shutil.copytree(tmp_path / "killed", resumed)
        assert start("dmdr", run_of("dmdr", 4, "float64", sharded=sharded), resumed, count) == [0] * count
        assert distance(weights(resumed), weights(tmp_path / "whole")) <= (0 if count == 2 else 1e-8)
        assert logs_agree(resumed, tmp_path / "whole", rel=1e-5)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    assert World(processes=4, planned=8).share(3, "prompts per iteration") == 6
    with pytest.raises(UserError, match="6 prompts per iteration cannot be shared evenly by 4 processes"):
        World(processes=4, planned=2).share(3, "prompts per iteration")
