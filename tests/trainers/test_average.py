"""The average of the student's weights (EMA): what is exported, measured by the canary and handed on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.tiny_run import assert_same, settings
from trainers import loop as loop_module
from trainers.loop import Loop

pytestmark = pytest.mark.usefixtures("closed_form_rewards")


def test_the_export_is_the_ema(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    run = settings(pipeline_folder, prompt_file, export={"dtype": "float32"}, backbone={"training": "full"})
    student = Loop("rtdmd", run, tmp_path / "run").train()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainer"]["student"]
    trained = load_file(next((student / "transformer").glob("*.safetensors")))
    assert any(torch.equal(state["average"][-1], tensor) for tensor in trained.values())
    assert not any(torch.equal(state["parameters"][-1], tensor) for tensor in trained.values())


@pytest.mark.parametrize("start", ["previous_ema", "previous"])
def test_the_canary_and_the_next_stage_take_the_average_of_the_weights(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Both ask for the EMA of stage I, 0.9 a + 0.1 w after every iteration, or for its last weights by name."""
    run = settings(pipeline_folder, prompt_file, stages={"reinforce": {"student_from": start, "iterations": 1}})
    loop = Loop("rtdmd", run, tmp_path / "run")
    begun: dict[str, list[torch.Tensor]] = {}
    trained: list[list[torch.Tensor]] = []
    measured: list[list[torch.Tensor]] = []
    make_trainer, step = loop._make_trainer, loop._step

    def weights() -> list[torch.Tensor]:
        return [p.detach().clone() for p in loop.backbone.parameters("student")]

    def making(stage: str) -> Any:
        begun[stage] = weights()
        return make_trainer(stage)

    def stepping(*arguments: Any) -> dict[str, float]:
        logs = step(*arguments)
        trained.append(weights())
        return logs

    def measuring(*_: Any) -> tuple[dict[str, float], dict[str, float]]:
        measured.append(weights())
        return {}, {}

    monkeypatch.setattr(loop, "_make_trainer", making)
    monkeypatch.setattr(loop, "_step", stepping)
    monkeypatch.setattr(loop_module.Canary, "measure", measuring)
    loop.train()
    average = begun["cold_start"]
    for raw in trained[:5]:
        average = [0.9 * mean + 0.1 * now for mean, now in zip(average, raw, strict=True)]
    expected = {"previous_ema": average, "previous": trained[4]}[start]
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(begun["reinforce"], expected, strict=True))
    assert len(measured) == 3  # before the run, after stage I, after stage II
    assert_same(measured[0], begun["cold_start"])
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(measured[1], average, strict=True))
    assert max((a - b).abs().max() for a, b in zip(average, trained[4], strict=True)) > 1e-3
