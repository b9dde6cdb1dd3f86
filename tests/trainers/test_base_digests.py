"""What a run starts from is known by its weights: recorded with the student, and not exchanged between two starts."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file

from benchmarks.config import UserError
from benchmarks.models import open_model, read_training
from tests.trainers.tiny_run import killed_at, settings
from trainers.loop import Loop

pytestmark = pytest.mark.usefixtures("closed_form_rewards")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed at will."""
    return Path(shutil.copytree(pipeline_folder, tmp_path / "base"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    network = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights with the first of them somewhat larger."""
    first = next(iter(state))
    return state | {first: state[first] + 0.01}


def test_a_student_names_the_weights_of_its_base_as_a_result_of_these_does(
    base: Path, prompt_file: Path, tmp_path: Path
) -> None:
    student = Loop("rtdmd", settings(base, prompt_file), tmp_path / "run").train()
    record, _ = read_training(student)
    assert record.base_digest == open_model(base).digest


def test_a_run_does_not_go_on_from_another_base(base: Path, prompt_file: Path, tmp_path: Path) -> None:
    run, own = settings(base, prompt_file), (base / WEIGHTS).read_bytes()
    killed_at(Loop("rtdmd", run, tmp_path / "run"), 3)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    save_file(moved(weights(base)), base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"run: backbone.path '.*base' has other weights than when the run began"):
        Loop("rtdmd", run, tmp_path / "run").train()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    (base / WEIGHTS).write_bytes(own)
    (base / "README.md").write_text("what is written beside the weights counts for nothing\n")
    Loop("rtdmd", run, tmp_path / "run").train()


def test_a_run_does_not_go_on_from_another_start_of_its_student(
    base: Path, prompt_file: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    save_file(weights(base), start)
    run = settings(base, prompt_file, backbone={"student_path": str(start)})
    killed_at(Loop("rtdmd", run, tmp_path / "run"), 3)
    save_file(moved(weights(base)), start)
    with pytest.raises(UserError, match=r"backbone.student_path '.*start.safetensors' has other weights than when"):
        Loop("rtdmd", run, tmp_path / "run").train()
