import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from benchmarks.config import UserError
from trainers.backbones import base
from trainers.backbones.base import BackboneConfig, LoraConfig, load

CPU = torch.device("cpu")
TEXTS = ["a photo of a red circle", "a blue square"]
NULL = {"text_encoder_3": None, "tokenizer_3": None}


def backbone_of(folder: Path, training: str = "lora") -> base.Backbone:
    torch.manual_seed(0)
    return load(BackboneConfig(path=str(folder), training=training, lora=LoraConfig(rank=2, alpha=4)), CPU)  # type: ignore[arg-type]


def perturb(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(params=["lora", "full"])
def backbone(request: pytest.FixtureRequest, pipeline_folder: Path) -> base.Backbone:
    return backbone_of(pipeline_folder, request.param)


def latents(backbone: base.Backbone) -> Tensor:
    return torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))


def test_every_role_begins_as_the_teacher_and_moves_alone(backbone: base.Backbone) -> None:
    x, prompts, t = latents(backbone), backbone.encode(TEXTS), torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    teacher = backbone.velocity("teacher", x, t, prompts)
    for role in ("student", "fake_score"):
        assert torch.allclose(backbone.velocity(role, x, t, prompts), teacher, atol=1e-6)  # type: ignore[arg-type]
    digest = backbone.teacher_digest()
    perturb(backbone.parameters("student"))
    assert not torch.allclose(backbone.velocity("student", x, t, prompts), teacher, atol=1e-3)
    assert torch.allclose(backbone.velocity("fake_score", x, t, prompts), teacher, atol=1e-6)
    assert torch.equal(backbone.velocity("teacher", x, t, prompts), teacher)
    assert backbone.teacher_digest() == digest
    backbone.reset()
    assert torch.allclose(backbone.velocity("student", x, t, prompts), teacher, atol=1e-6)


def test_gradients_of_a_waiting_graph_survive_calls_of_other_roles(backbone: base.Backbone) -> None:
    perturb(backbone.parameters("student"))
    x, prompts = latents(backbone), backbone.encode(TEXTS)
    gradients = []
    for others in (False, True):
        loss = backbone.velocity("student", x, 0.5, prompts).square().mean()
        if others:
            backbone.velocity("fake_score", x, 0.5, prompts).mean().backward()
            with torch.no_grad():
                backbone.velocity("teacher", x, 0.5, prompts)
        gradients.append(torch.autograd.grad(loss, backbone.parameters("student"), allow_unused=True))
        loss = backbone.velocity("student", x, 0.5, prompts).square().mean()
        if others:
            backbone.velocity("teacher", x, 0.5, prompts)
        loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in backbone.parameters("student"))
        for parameter in backbone.parameters("student"):
            parameter.grad = None
    for alone, among in zip(*gradients, strict=True):
        assert (alone is None) == (among is None) and (alone is None or torch.equal(alone, among))


def test_guidance_is_one_call_of_twice_the_batch(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    x, prompts, t = latents(backbone), backbone.encode(TEXTS), torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    with torch.no_grad():
        conditional = backbone.velocity("teacher", x, t, prompts)
        unconditional = backbone.velocity("teacher", x, t, backbone.encode(["", ""]))
        before = backbone.passes
        guided = backbone.velocity("teacher", x, t, prompts, 3.0)
        assert backbone.passes - before == 4
        for off in (0.0, 1.0):
            assert torch.equal(backbone.velocity("teacher", x, t, prompts, off), conditional)
    assert torch.allclose(guided, unconditional + 3 * (conditional - unconditional), atol=1e-5)


def test_passes_count_images_and_backwards(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    x, prompts = latents(backbone), backbone.encode(TEXTS)
    backbone.velocity("student", x, 0.5, prompts)
    assert backbone.passes == 4
    with torch.no_grad():
        backbone.velocity("student", x, 0.5, prompts)
    assert backbone.passes == 6


def test_a_prompt_is_encoded_as_the_pipeline_does_and_whatever_its_neighbours(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    together = backbone.encode(TEXTS)
    for others in ([], ["a green cross"], [f"{'a ' * n}square" for n in range(14)]):
        fresh = backbone_of(pipeline_folder).encode([*others, TEXTS[1]])
        assert torch.equal(together[0][1], fresh[0][-1]) and torch.equal(together[1][1], fresh[1][-1])
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **NULL)
    tokens, _, pooled, _ = pipe.encode_prompt(
        TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )
    assert torch.allclose(together[0], tokens, atol=1e-5) and torch.allclose(together[1], pooled, atol=1e-5)


def test_decoding_is_the_pipelines_and_differentiable(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    z = (0.3 * latents(backbone)).requires_grad_()
    images = backbone.decode(z)
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **NULL)
    raw = pipe.vae.decode(z.detach() / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    assert torch.allclose(images, pipe.image_processor.postprocess(raw, output_type="pt"), atol=1e-5)
    images.mean().backward()
    assert z.grad is not None and z.grad.any()


@pytest.mark.parametrize("training", ["lora", "full"])
def test_exported_student_is_the_trained_one_in_stock_diffusers(
    pipeline_folder: Path, tmp_path: Path, training: str
) -> None:
    backbone = backbone_of(pipeline_folder, training)
    perturb(backbone.parameters("student"))
    x, prompts = latents(backbone), backbone.encode(TEXTS)
    backbone.export(tmp_path / "student", "merged", "float32")
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "student", **NULL)
    with torch.no_grad():
        expected = backbone.velocity("student", x, 0.5, prompts)
        found = pipe.transformer(
            x, timestep=torch.full((2,), 500.0), encoder_hidden_states=prompts[0], pooled_projections=prompts[1]
        ).sample
    assert torch.allclose(found, expected, atol=1e-5)
    assert not list((tmp_path / "student").rglob("*.bin"))


def test_exported_adapter_is_the_trained_one_in_stock_diffusers(pipeline_folder: Path, tmp_path: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    perturb(backbone.parameters("student"))
    x, prompts = latents(backbone), backbone.encode(TEXTS)
    backbone.export(tmp_path / "adapter", "lora", "float32")
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **NULL)
    pipe.load_lora_weights(tmp_path / "adapter")
    with torch.no_grad():
        expected = backbone.velocity("student", x, 0.5, prompts)
        found = pipe.transformer(
            x, timestep=torch.full((2,), 500.0), encoder_hidden_states=prompts[0], pooled_projections=prompts[1]
        ).sample
    assert torch.allclose(found, expected, atol=1e-5)
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(pipeline_folder) and described["r"] == 2


def test_half_precision_export_is_half_the_size(pipeline_folder: Path, tmp_path: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    sizes = {}
    for dtype in ("float32", "float16"):
        backbone.export(tmp_path / dtype, "merged", dtype)
        sizes[dtype] = next((tmp_path / dtype / "transformer").glob("*.safetensors")).stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_lora_targets_name_the_layers(pipeline_folder: Path) -> None:
    settings = BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4, targets=("to_q", "to_k")))
    few = load(settings, CPU)
    assert len(few.parameters("student")) == 2 * 2 * 2  # layers, projections, matrices
    with pytest.raises(UserError, match="no linear layer has such a name"):
        load(BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(targets=("to_z",))), CPU)


def test_folders_that_are_no_such_model_are_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load(BackboneConfig(path=str(tmp_path / "nowhere")), CPU)
    broken = tmp_path / "broken"
    shutil.copytree(pipeline_folder, broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated"):
        load(BackboneConfig(path=str(broken)), CPU)
    with pytest.raises(UserError, match="unknown backbone 'sd4'; did you mean 'sd3'"):
        load(BackboneConfig(kind="sd4", path=str(pipeline_folder)), CPU)
