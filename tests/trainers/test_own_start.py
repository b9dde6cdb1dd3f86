"""A student that starts from another network than its teacher: which role is which, and what is exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.config import UserError, build
from benchmarks.native import load_denoiser
from tests.shrunken.families import make
from tests.trainers.test_backbones import CPU, KINDS, NULL, TEXTS, latents, perturb
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, load
from trainers.config import RunConfig
from trainers.loop import Loop


@pytest.fixture(scope="module")
def distilled(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with other weights, as a folder of its own."""
    folder = tmp_path_factory.mktemp("distilled") / "tiny-distilled"
    shutil.copytree(pipeline_folder, folder)
    network = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    network.save_pretrained(folder / "transformer")
    return folder


def backbone_of(folder: Path, student: Path | str = "", training: str = "lora", **settings: Any) -> Backbone:
    torch.manual_seed(0)
    table = {"path": str(folder), "student_path": str(student), "training": training} | settings
    return load(BackboneConfig(lora=LoraConfig(rank=2, alpha=4), **table), CPU)


def velocities(backbone: Backbone, *roles: str) -> list[Tensor]:
    x, prompts = latents(backbone), backbone.encode(TEXTS)
    with torch.no_grad():
        return [backbone.velocity(role, x, 0.5, prompts) for role in roles]  # type: ignore[arg-type]


@pytest.mark.parametrize(("training", "fake_score"), KINDS)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_student_begins_as_the_other_network_and_the_rest_as_the_base(
    training: str, fake_score: str, kind: str, pipeline_folder: Path, distilled: Path, tmp_path: Path
) -> None:
    source = distilled
    if kind == "file":
        source = tmp_path / "whole.safetensors"
        save_file(SD3Transformer2DModel.from_pretrained(distilled / "transformer").state_dict(), source)
    (base,), (other,) = (velocities(backbone_of(folder), "teacher") for folder in (pipeline_folder, distilled))
    backbone = backbone_of(pipeline_folder, source, training, fake_score_training=fake_score)
    student, fake_score, teacher = velocities(backbone, "student", "fake_score", "teacher")
    # Answers of trained and of frozen weights may differ in their last bits, by the kernels that a processor has
    assert torch.equal(teacher, base) and torch.allclose(fake_score, base, rtol=0, atol=1e-5)
    assert torch.allclose(student, other, rtol=0, atol=1e-5) and not torch.allclose(student, base, atol=1e-3)
    assert backbone.teacher_digest() == backbone_of(pipeline_folder).teacher_digest()


@pytest.mark.parametrize(("training", "fake_score"), KINDS)
def test_each_role_moves_alone_and_the_student_is_what_is_exported(
    training: str, fake_score: str, pipeline_folder: Path, distilled: Path, tmp_path: Path
) -> None:
    backbone = backbone_of(pipeline_folder, distilled, training, fake_score_training=fake_score)
    roles = ("student", "fake_score", "teacher")
    before = velocities(backbone, *roles)
    for moved in ("student", "fake_score"):
        perturb(backbone.parameters(moved))  # type: ignore[arg-type]
        after = velocities(backbone, *roles)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [role != moved for role in roles]
        before = after
    backbone.keep_reference()
    perturb(backbone.parameters("student"))
    student, reference = velocities(backbone, "student", "reference")
    assert torch.allclose(reference, before[0], atol=1e-6) and not torch.allclose(student, before[0], atol=1e-4)
    backbone.export(tmp_path / "student", "merged", "float32")
    shutil.copy(pipeline_folder / "protocol.json", tmp_path / "student")
    (exported,) = velocities(backbone_of(tmp_path / "student"), "teacher")
    assert torch.allclose(exported, student, atol=1e-5)
    if training == "lora":
        backbone.export(tmp_path / "adapter", "lora", "float32")
        told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == str(distilled)
        pipeline = StableDiffusion3Pipeline.from_pretrained(told["base_model_name_or_path"], **NULL)
        pipeline.load_lora_weights(tmp_path / "adapter")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        pipeline.transformer.save_pretrained(tmp_path / "student" / "transformer")
        (fused,) = velocities(backbone_of(tmp_path / "student"), "teacher")
        assert torch.allclose(fused, student, atol=1e-5)


@pytest.mark.parametrize(("training", "fake_score"), KINDS)
@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"microbatch": 1}])
def test_what_is_run_again_is_the_role_it_was(
    training: str, fake_score: str, settings: dict[str, Any], pipeline_folder: Path, distilled: Path
) -> None:
    gradients = []
    for chosen in ({}, settings):
        backbone = backbone_of(pipeline_folder, distilled, training, fake_score_training=fake_score, **chosen)
        for network in backbone._roles.networks():  # type: ignore[attr-defined]
            network.train()
        for role in ("student", "fake_score"):
            perturb(backbone.parameters(role))  # type: ignore[arg-type]
        x, prompts = latents(backbone), backbone.encode(TEXTS)
        loss = backbone.velocity("student", x, 0.5, prompts).square().mean()
        loss = loss + backbone.velocity("fake_score", x, 0.5, prompts).square().mean()
        velocities(backbone, "teacher", "student", "fake_score")
        loss.backward()
        gradients.append([p.grad for role in ("student", "fake_score") for p in backbone.parameters(role)])  # type: ignore[arg-type]
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.allclose(plain, again, rtol=1e-4, atol=1e-7)


def run_of(folder: Path, prompts: Path, student: Path | str, **changes: Any) -> RunConfig:
    table = {
        "name": "tiny", "device": "cpu", "checkpoint_every": 1,
        "backbone": {"path": str(folder), "student_path": str(student), "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(prompts)},
        "trainer": {"batch_size": 2, "fake_score_updates": 1},
        "stages": {
            "first": {"iterations": 2},
            "second": {"iterations": 2, "teacher_from": "previous", "settings": {"student": {"lr": 1e-9}}},
        },
    }  # fmt: skip
    return build(RunConfig, table | changes, "tiny.toml")


def test_a_run_begins_with_the_other_network_and_promotes_its_student(
    pipeline_folder: Path, distilled: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = run_of(pipeline_folder, prompt_file, distilled)
    loop = Loop("dmd", run, tmp_path / "run")
    (started,) = velocities(loop.backbone, "student")
    assert torch.equal(started, velocities(backbone_of(distilled), "teacher")[0])
    student = loop.train()
    promoted = backbone_of(tmp_path / "run" / "teacher-second")
    teacher, stayed = velocities(loop.backbone, "teacher", "student")  # which hardly moved in the second stage
    assert torch.equal(teacher, *velocities(promoted, "teacher"))
    assert torch.allclose(stayed, teacher, atol=1e-5) and not torch.allclose(started, teacher, atol=1e-4)
    told = json.loads((student / "training.json").read_text())
    assert told["config"]["backbone"]["student_path"] == str(distilled)
    other = Loop("dmd", run_of(pipeline_folder, prompt_file, ""), tmp_path / "other").train()
    assert (other / "transformer").exists()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (student / weights).read_bytes() != (other / weights).read_bytes()
    again = Loop("dmd", run, tmp_path / "again").train()
    assert (student / weights).read_bytes() == (again / weights).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"one": {"iterations": 1, "student_from": "teacher"}}}, "is where the student starts"),
        ({"backbone": {"path": "m", "student_path": "s", "sharded": True}}, "sharded and student_path exclude"),
        (
            {"backbone": {"path": "m", "student_path": "s.safetensors"}, "export": {"weights": "lora"},
             "stages": {"one": {"iterations": 1}}},
            "needs a folder as backbone.student_path",
        ),
    ],
)  # fmt: skip
def test_contradictory_settings_are_named(changes: dict[str, Any], message: str, prompt_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_of(Path("m"), prompt_file, "s", **changes)


def test_networks_that_do_not_fit_are_named(pipeline_folder: Path, distilled: Path, tmp_path: Path) -> None:
    like = SD3Transformer2DModel.from_pretrained(pipeline_folder / "transformer")
    with pytest.raises(UserError, match="a UNet2DConditionModel; its base has a SD3Transformer2DModel"):
        load_denoiser(make("sdxl", tmp_path / "sdxl"), like)
    with pytest.raises(UserError, match="does not fit the SD3Transformer2DModel of its base"):
        load_denoiser(make("sd3", tmp_path / "sd3"), like)
    with pytest.raises(UserError, match=r"nowhere.safetensors: cannot be read"):
        load_denoiser(tmp_path / "nowhere.safetensors", like)
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"bad.safetensors: cannot be read"):
        load_denoiser(tmp_path / "bad.safetensors", like)
    save_file({"x": torch.zeros(1)}, tmp_path / "few.safetensors")
    with pytest.raises(UserError, match=r"few.safetensors: does not fit"):
        load_denoiser(tmp_path / "few.safetensors", like)
    file = distilled / "transformer" / "diffusion_pytorch_model.safetensors"
    kept = file.read_bytes()
    state = SD3Transformer2DModel.from_pretrained(distilled / "transformer").state_dict()
    try:
        save_file({k: v for k, v in state.items() if k != "proj_out.bias"}, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"proj_out.bias is absent"):
            load_denoiser(distilled, like)
    finally:
        file.write_bytes(kept)
