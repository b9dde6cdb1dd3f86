import json
import shutil
from pathlib import Path
from typing import Any

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


def backbone_of(folder: Path, training: str = "lora", fake_score: str = "") -> base.Backbone:
    torch.manual_seed(0)
    settings = {"path": str(folder), "training": training, "fake_score_training": fake_score}
    return load(BackboneConfig(lora=LoraConfig(rank=2, alpha=4), **settings), CPU)  # type: ignore[arg-type]


def perturb(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


KINDS = [("lora", ""), ("full", ""), ("full", "lora")]  # of student and fake score; "" = as the student


@pytest.fixture(params=KINDS, ids="-".join)
def backbone(request: pytest.FixtureRequest, pipeline_folder: Path) -> base.Backbone:
    return backbone_of(pipeline_folder, *request.param)


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


def test_features_are_the_last_blocks_image_tokens_with_gradients(backbone: base.Backbone) -> None:
    x, prompts, t = latents(backbone), backbone.encode(TEXTS), torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    perturb(backbone.parameters("fake_score"))
    before = backbone.passes
    features = backbone.features("fake_score", x.requires_grad_(), t, prompts)
    assert features.shape == (2, 16, 16) and features.dtype == torch.float32 and backbone.passes - before == 4
    features.square().mean().backward()
    assert x.grad is not None and x.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in backbone.parameters("fake_score"))
    assert not any(p.grad is not None and p.grad.any() for p in backbone.parameters("student"))
    with torch.no_grad():
        other = backbone.features("teacher", x, t, prompts)
        assert not torch.allclose(other, features, atol=1e-3)
        # what is left of the network after them: norm, projection, patches put back
        network = backbone._roles.network("fake_score")  # type: ignore[attr-defined]
        temb = network.time_text_embed(1000 * t.flatten(), prompts[1])
        patches = network.proj_out(network.norm_out(features, temb)).view(2, 4, 4, 2, 2, 4)
        v = torch.einsum("nhwpqc->nchpwq", patches).reshape(2, 4, 8, 8)
        assert torch.allclose(v, backbone.velocity("fake_score", x, t, prompts), atol=1e-5)


def test_encoding_pictures_is_the_pipelines_and_without_graph(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    found = backbone.encode_pictures(images)
    vae = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **NULL).vae
    with torch.no_grad():
        z = vae.encode(images * 2 - 1).latent_dist.mean
        decoded = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    assert found.shape == (2, *backbone.latent_shape) and not found.requires_grad
    assert torch.allclose(found, (z - vae.config.shift_factor) * vae.config.scaling_factor, atol=1e-5)
    assert torch.allclose(backbone.decode(found), decoded, atol=1e-5)


def test_exported_student_is_the_trained_one_in_stock_diffusers(
    pipeline_folder: Path, tmp_path: Path, backbone: base.Backbone
) -> None:
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


def test_an_exported_adapter_has_the_same_bytes_every_time(pipeline_folder: Path, tmp_path: Path) -> None:
    backbone, files = backbone_of(pipeline_folder), set()
    for n in range(8):
        backbone.export(tmp_path / str(n), "lora", "float32")
        files.add((tmp_path / str(n) / "pytorch_lora_weights.safetensors").read_bytes())
    assert len(files) == 1


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
    with pytest.raises(UserError, match="no linear layer or convolution is named 'to_z'; there is '"):
        load(BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(targets=("to_q", "to_z"))), CPU)


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


def test_fake_scale_scales_the_adapter_and_0_is_bitwise_the_base(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder)
    x, prompts = latents(backbone), backbone.encode(TEXTS)

    def velocity(role: str, fake_scale: float | None = None, guidance_scale: float = 1.0) -> Tensor:
        with torch.no_grad():
            return backbone.velocity(role, x, 0.5, prompts, guidance_scale, fake_scale)  # type: ignore[arg-type]

    teacher, guided = velocity("teacher"), velocity("teacher", guidance_scale=3.0)
    assert torch.equal(velocity("fake_score", 2.0), teacher)  # adapters begin at 0
    perturb(backbone.parameters("fake_score"))
    fake = velocity("fake_score")
    assert torch.equal(velocity("teacher", 0.0), teacher) and torch.equal(velocity("fake_score", 0.0), teacher)
    assert torch.equal(velocity("teacher", 1.0), fake) and torch.equal(velocity("fake_score", 1.0), fake)
    twice = velocity("fake_score", 2.0)
    assert torch.equal(velocity("teacher", 2.0), twice) and not torch.allclose(twice, fake, atol=1e-4)
    assert not torch.allclose(velocity("teacher", 0.5, 3.0), guided, atol=1e-4)
    merged = dict(backbone._roles.merged("fake_score"))  # type: ignore[attr-defined]
    assert torch.equal(velocity("fake_score"), fake) and torch.equal(velocity("teacher"), teacher)
    velocity("fake_score", 2.0)
    again = dict(backbone._roles.merged("fake_score"))  # type: ignore[attr-defined]
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    with torch.no_grad():  # the scale s is that of the delta: s = 2 is the adapter with B doubled
        for parameter in backbone.parameters("fake_score")[1::2]:
            parameter.mul_(2)
    assert torch.allclose(velocity("fake_score"), twice, atol=1e-5)


def test_full_copies_have_no_adapter_to_scale(pipeline_folder: Path) -> None:
    backbone = backbone_of(pipeline_folder, "full")
    with pytest.raises(UserError, match=r"backbone\.training = \"full\" has no adapter to scale"):
        backbone.velocity("teacher", latents(backbone), 0.5, backbone.encode(TEXTS), 1.0, 0.5)


def test_a_full_student_beside_an_adapter_trains_its_weights_and_the_fake_score_two_matrices_a_layer(
    pipeline_folder: Path,
) -> None:
    backbone = backbone_of(pipeline_folder, "full", "lora")
    bare = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **NULL).transformer
    linear = [layer for layer in bare.modules() if isinstance(layer, torch.nn.Linear)]
    student, fake_score = backbone.parameters("student"), backbone.parameters("fake_score")
    assert [p.shape for p in student] == [p.shape for p in bare.parameters()]
    assert sum(p.numel() for p in fake_score) == sum(2 * (one.in_features + one.out_features) for one in linear)
    assert all(p.requires_grad for p in (*student, *fake_score)) and backbone.parameters("teacher") == []
    base = backbone._roles.base_state()  # type: ignore[attr-defined]
    assert base.keys() == bare.state_dict().keys()
    assert not any(p.requires_grad for p in base.values())

    x, prompts = latents(backbone), backbone.encode(TEXTS)

    def velocity(role: str, scale: float | None = None) -> Tensor:
        return backbone.velocity(role, x, 0.5, prompts, 1.0, scale)  # type: ignore[arg-type]

    teacher, digest = velocity("teacher").detach(), backbone.teacher_digest()
    perturb(fake_score)
    leaning = velocity("teacher", 0.5)
    assert torch.equal(velocity("teacher"), teacher)
    # Trained weights may be multiplied by another kernel than frozen ones, on some processors
    assert torch.allclose(velocity("student"), teacher, rtol=0, atol=1e-5)
    own = dict(backbone._roles.merged("student"))  # type: ignore[attr-defined]
    assert own.keys() == base.keys() and all(torch.equal(own[name], one) for name, one in base.items())
    assert not torch.allclose(leaning, teacher, atol=1e-4)
    assert torch.equal(velocity("fake_score", 0.5), leaning) and torch.equal(velocity("fake_score", 0.0), teacher)
    velocity("student").mean().backward()
    assert all(p.grad is None for p in fake_score) and any(p.grad is not None for p in student)
    perturb(student)
    assert torch.equal(velocity("teacher"), teacher) and backbone.teacher_digest() == digest
    with pytest.raises(UserError, match=r'export.weights = "lora" needs backbone.training = "lora"'):
        backbone.export(pipeline_folder / "never", "lora", "float32")
    backbone.reset()
    assert torch.allclose(velocity("student"), teacher, rtol=0, atol=1e-5)
    assert torch.equal(velocity("fake_score"), teacher)


def test_reference_is_the_student_as_it_was_and_stays(backbone: base.Backbone) -> None:
    x, prompts = latents(backbone), backbone.encode(TEXTS)

    def velocity(role: str) -> Tensor:
        with torch.no_grad():
            return backbone.velocity(role, x, 0.5, prompts)  # type: ignore[arg-type]

    assert backbone.parameters("reference") == []
    digest = backbone.teacher_digest()
    perturb(backbone.parameters("student"))
    backbone.keep_reference()
    student, reference = velocity("student"), velocity("reference")
    assert torch.allclose(reference, student, atol=1e-6)
    perturb(backbone.parameters("student"))
    assert torch.equal(velocity("reference"), reference)
    assert not torch.allclose(velocity("student"), student, atol=1e-4)
    backbone.velocity("student", x, 0.5, prompts).mean().backward()
    assert not backbone.velocity("reference", x, 0.5, prompts).requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters("reference"))
    assert all(p.requires_grad for p in backbone.parameters("student"))
    assert backbone.teacher_digest() == digest
    backbone.keep_reference()
    assert torch.allclose(velocity("reference"), velocity("student"), atol=1e-6)


@pytest.mark.parametrize(("training", "fake_score"), KINDS)
def test_checkpointed_gradients_are_those_of_the_role_whatever_ran_since(
    pipeline_folder: Path, training: str, fake_score: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        settings = BackboneConfig(
            path=str(pipeline_folder), training=training, fake_score_training=fake_score,
            lora=LoraConfig(rank=2, alpha=4), gradient_checkpointing=checkpointing,
        )  # type: ignore[arg-type] # fmt: skip
        backbone = load(settings, CPU)
        for network in backbone._roles.networks():  # type: ignore[attr-defined]
            network.train()
        for role in ("student", "fake_score"):
            perturb(backbone.parameters(role))
        x, prompts = latents(backbone), backbone.encode(TEXTS)
        scale = 2.0 if settings.fake_score_is_adapter else None
        loss = backbone.velocity("fake_score", x, 0.5, prompts, fake_scale=scale).square().mean()
        with torch.no_grad():
            backbone.velocity("student", x, 0.5, prompts)
            backbone.velocity("teacher", x, 0.5, prompts)
        loss.backward()
        assert all(p.grad is None for p in backbone.parameters("student"))
        gradients.append([p.grad for p in backbone.parameters("fake_score")])
    assert any(g is not None and g.any() for g in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-7)


def test_the_fake_scores_adapter_may_have_a_shape_of_its_own(pipeline_folder: Path) -> None:
    lora = LoraConfig(rank=4, alpha=8, fake_score_rank=2, fake_score_alpha=2, targets=("to_q",))
    backbone = load(BackboneConfig(path=str(pipeline_folder), lora=lora), CPU)
    ranks = {role: backbone.parameters(role)[0].shape[0] for role in ("student", "fake_score")}  # type: ignore[arg-type]
    assert ranks == {"student": 4, "fake_score": 2}
    perturb(backbone.parameters("fake_score"))
    name, merged = next(item for item in backbone._roles.merged("fake_score") if "to_q.weight" in item[0])  # type: ignore[attr-defined]
    a, b = backbone.parameters("fake_score")[:2]  # alpha / rank is 1
    base_weight = backbone._roles.base_state()[name]  # type: ignore[attr-defined]
    assert torch.allclose(merged, base_weight + b @ a, atol=1e-6)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_adapters_begin_with_the_law_that_is_named(init: Any, again: bool, pipeline_folder: Path) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(rank=16, alpha=16, fake_score_rank=8, init=init)
    backbone = load(BackboneConfig(path=str(pipeline_folder), lora=lora), CPU)
    if again:
        for role in ("student", "fake_score"):
            perturb(backbone.parameters(role))  # type: ignore[arg-type]
        backbone.reset()
    for role, rank in (("student", 16), ("fake_score", 8)):
        matrices = backbone.parameters(role)  # type: ignore[arg-type]
        down, up = matrices[::2], matrices[1::2]
        assert all(len(a) == b.shape[1] == rank and not b.any() for a, b in zip(down, up, strict=True))
        unit = (
            1 / rank
            if init == "gaussian"
            else torch.cat([(3 * a.shape[1] * torch.ones_like(a)).rsqrt().flatten() for a in down])
        )
        drawn = torch.cat([a.detach().flatten() for a in down]) / unit
        assert drawn.std().item() == pytest.approx(1, abs=0.03)
        assert drawn.abs().max() > 3 if init == "gaussian" else drawn.abs().max() <= 3**0.5 + 1e-6
