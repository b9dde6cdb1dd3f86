"""What roles cost in memory, counted on the storages that are alive: LoRA roles share one base, in every family."""

import gc
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metrics.base import Prompt
from tests.shrunken.families import make
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, load
from trainers.base import SamplerConfig, World
from trainers.dmd import Dmd, DmdConfig
from trainers.rewards import RewardBank

CPU = torch.device("cpu")
FAMILIES = {"sd3-t5": "sd3", "sdxl": "sdxl", "flux2": "flux2", "z_image": "z_image", "sit": "sit"}


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes of each distinct storage behind tensors, by its address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def alive() -> int:
    """Return the bytes of all storages that a tensor of this process still holds."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that dislike being asked for their class
        return sum(storages([one for one in gc.get_objects() if isinstance(one, Tensor)]).values())


def weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def backbone_of(folder: Path, kind: str, training: str) -> Backbone:
    lora = LoraConfig(rank=1, alpha=1)
    return load(BackboneConfig(kind=kind, path=str(folder), training=training, lora=lora), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_student_fake_score_reference_and_teacher_hold_one_base(family: str, tmp_path: Path) -> None:
    folder, before = make(family, tmp_path / family), alive()
    backbone = backbone_of(folder, FAMILIES[family], "lora")
    pipeline = backbone.pipeline  # type: ignore[attr-defined]
    base = dict(backbone._roles.base_state())  # type: ignore[attr-defined]
    where = {name: tensor.data_ptr() for name, tensor in base.items()}
    config = DmdConfig(batch_size=1, fake_score_updates=1, sampler=SamplerConfig(num_inference_steps=1))
    trainer = Dmd(config, backbone, RewardBank([], {}), World())
    backbone.keep_reference()
    trainer.step([Prompt(text="207" if family == "sit" else "a red circle")], 0)
    assert {name: tensor.data_ptr() for name, tensor in backbone._roles.base_state().items()} == where  # type: ignore[attr-defined]
    networks = {id(backbone._roles.network(role)) for role in ("teacher", "student", "fake_score", "reference")}  # type: ignore[attr-defined]
    assert len(networks) == 1
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    held = sum(storages([tensor for module in modules for tensor in weights(module)]).values())
    roles = ("student", "fake_score")
    adapters = sum(p.untyped_storage().nbytes() for role in roles for p in backbone.parameters(role))  # type: ignore[arg-type]
    frozen = sum(storages(list(base.values())).values())
    # weights of the pipeline with all adapters, Adam's two moments and the EMA; embeddings of a prompt beside them
    assert alive() - before - held - 3 * adapters < 0.1 * frozen


def test_full_roles_are_seen_as_copies(tmp_path: Path) -> None:
    """The counting would notice a second base: full training has one per role."""
    folder, before = make("sd3", tmp_path / "sd3"), alive()
    backbone = backbone_of(folder, "sd3", "full")
    frozen = sum(storages(weights(backbone._roles.network("teacher"))).values())  # type: ignore[attr-defined]
    pipeline = backbone.pipeline  # type: ignore[attr-defined]
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    held = sum(storages([tensor for module in modules for tensor in weights(module)]).values())
    assert alive() - before - held == pytest.approx(2 * frozen, rel=0.05)
