"""Every model family on shrunken random checkpoints of its true layout, against its stock pipeline."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from peft import PeftModel
from torch import Tensor

from benchmarks.checkpoints import check_pipeline
from benchmarks.config import UserError, build
from benchmarks.models import noise_generator, open_model
from benchmarks.native import call_arguments, class_labels, load_pipeline
from benchmarks.protocol import Protocol, write_protocol
from benchmarks.samplers import FewStepScheduler, shifted
from metrics.base import Prompt
from tests.shrunken.families import SIDE, make
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, Role, load
from trainers.backbones.checkpoint import open_base
from trainers.backbones.flux2 import empirical_shift
from trainers.base import Roles, SamplerConfig, World
from trainers.dmd import Dmd, DmdConfig
from trainers.flow import interpolate
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rehearsal import Rehearsal
from trainers.rewards import RewardBank
from trainers.rollout import rollout

CPU = torch.device("cpu")
KIND = {"sdxl-v": "sdxl", "sd3-t5": "sd3"}  # of the backbone, where the family's name is not it
TEXTS = ["a photo of a red circle", "a blue square"]
GUIDANCE = 3.0
NEW = ["sdxl", "sit", "flux2", "z_image"]


class Folders(dict[str, Path]):
    """The shrunken checkpoints by family, made when first asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, family: str) -> Path:
        self[family] = make(family, self._root / family)
        return self[family]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Folders(tmp_path_factory.mktemp("shrunken"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backbone_of(folders: dict[str, Path], family: str, training: str = "lora") -> Backbone:
    torch.manual_seed(0)
    settings = {"kind": KIND.get(family, family), "path": str(folders[family]), "training": training}
    return load(BackboneConfig(**settings, lora=LoraConfig(rank=2, alpha=4)), CPU)  # type: ignore[arg-type]


def state_of(backbone: Backbone, role: Role) -> dict[str, Tensor]:
    """Return a role's weights, as they are now."""
    return {name: tensor.clone() for name, tensor in backbone._roles.merged(role)}  # type: ignore[attr-defined]


def texts_of(family: str) -> list[str]:
    return ["207", "3"] if family == "sit" else TEXTS


def noise(backbone: Backbone, count: int = 2) -> Tensor:
    return torch.randn(count, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))


def perturb(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def stock(folder: Path) -> Any:
    return load_pipeline(check_pipeline(folder), None, "float32", "cpu")


def drawn(pipe: Any, protocol: Protocol, family: str, latents: Tensor) -> Tensor:
    """Return the stock pipeline's pictures of given latents [B, ...]."""
    arguments = call_arguments(pipe, protocol, texts_of(family))
    generators = [torch.Generator().manual_seed(n) for n in range(len(latents))]
    if isinstance(pipe.scheduler, FewStepScheduler):
        pipe.scheduler.generators = generators
    if family == "sit":  # it takes no latents, and draws its own with this function
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *_, **__: latents)
            return pipe(output_type="pt", **arguments).images
    return pipe(output_type="pt", latents=latents, generator=generators, **arguments).images


def ours(backbone: Backbone, protocol: Protocol, family: str, x: Tensor, role: str = "teacher") -> Tensor:
    """Return the pictures of our sampler over the backbone's velocity."""
    prompts = backbone.encode(texts_of(family))

    def velocity(x_t: Tensor, t: Any) -> Tensor:
        return backbone.velocity(role, x_t, t, prompts, protocol.guidance_scale)  # type: ignore[arg-type]

    with torch.no_grad():
        return backbone.decode(rollout(velocity, x, protocol, lambda k: torch.zeros_like(x))[-1].x_next)


@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize("family", ["sd3-t5", "flux2", "z_image"])
def test_flow_families_sample_as_their_stock_pipeline(folders: dict[str, Path], family: str, steps: int) -> None:
    backbone, pipe = backbone_of(folders, family), stock(folders[family])
    x = noise(backbone)
    native = replace(backbone.protocol(), num_inference_steps=steps, guidance_scale=GUIDANCE)
    theirs = drawn(pipe, native, family, x)
    sigmas = [float(s) for s in pipe.scheduler.sigmas]  # whatever grid, shift and mu the pipeline laid
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    protocol = replace(native, sampler="euler", sigmas=tuple(sigmas[:-1]))
    mine = ours(backbone, protocol, family, x)
    assert (mine - theirs).abs().max() <= 1e-4 and theirs.std() > 0.01
    pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
    assert (drawn(pipe, protocol, family, x) - mine).abs().max() <= 1e-4


@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize("family", ["sdxl", "sdxl-v"])
def test_ddim_is_euler_in_the_bridge(folders: dict[str, Path], family: str, steps: int) -> None:
    """DDIM (eta = 0) on the VP path is the Euler step of the same (x0, eps) on the flow path."""
    from diffusers import DDIMScheduler

    backbone, pipe = backbone_of(folders, family), stock(folders[family])
    x = noise(backbone)
    native = replace(backbone.protocol(), num_inference_steps=steps, guidance_scale=GUIDANCE)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    theirs = drawn(pipe, native, family, x)
    path = backbone._path  # type: ignore[attr-defined]
    levels = tuple(path.level(int(timestep)) for timestep in pipe.scheduler.timesteps)
    protocol = replace(native, sampler="euler", sigmas=levels)
    first = path.alpha_bar[int(pipe.scheduler.timesteps[0])]
    x_flow = x / float(first.sqrt() + (1 - first).sqrt())
    assert (ours(backbone, protocol, family, x_flow) - theirs).abs().max() <= 1e-4 and theirs.std() > 0.01


@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize("family", ["sdxl", "sdxl-v", "sit"])
def test_students_are_benchmarked_as_they_are_trained(folders: dict[str, Path], family: str, steps: int) -> None:
    backbone, pipe = backbone_of(folders, family), stock(folders[family])
    x = noise(backbone)
    for guidance in (1.0, GUIDANCE):  # guided: against zeros, or no class
        native = replace(backbone.protocol(), num_inference_steps=steps, guidance_scale=guidance)
        protocol = replace(native, sampler="euler")
        pipe.scheduler = FewStepScheduler.of(protocol, stock(folders[family]).scheduler)
        mine = ours(backbone, protocol, family, x)
        assert (drawn(pipe, protocol, family, x) - mine).abs().max() <= 1e-4
        assert mine.std() > 0.01


@pytest.mark.parametrize("family", ["sdxl", "sdxl-v"])
def test_a_student_that_begins_at_timestep_399_is_benchmarked_as_it_is_trained(
    folders: dict[str, Path], family: str
) -> None:
    backbone, pipe = backbone_of(folders, family), stock(folders[family])
    z, level = noise(backbone), backbone._path.level(399)  # type: ignore[attr-defined]
    protocol = replace(
        backbone.protocol(), sampler="renoise", num_inference_steps=1, sigmas=(level,), guidance_scale=1.0
    )
    pipe.scheduler, seen = FewStepScheduler.of(protocol, pipe.scheduler), []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    theirs = drawn(pipe, protocol, family, z)
    ((shown, timestep),) = (inputs[:2] for inputs in seen)
    assert int(timestep) == 399 and torch.allclose(shown, z, atol=1e-5)
    mine = ours(backbone, protocol, family, backbone.noise_scale(level) * z)
    assert (mine - theirs).abs().max() <= 1e-4 and theirs.std() > 0.01


@pytest.mark.parametrize("family", ["sdxl", "sdxl-v"])
def test_a_sample_noised_to_a_timestep_is_what_the_schedulers_own_noise_makes_of_it(
    folders: dict[str, Path], family: str
) -> None:
    backbone, pipe = backbone_of(folders, family), stock(folders[family])
    x0, eps, shown = noise(backbone), torch.randn(noise(backbone).shape), list[tuple[Any, ...]]()
    theirs = DDPMScheduler.from_config(pipe.scheduler.config)
    network = backbone._roles.network("teacher")  # type: ignore[attr-defined]
    network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    for share, timestep in ((0.0, 0), (0.4, 400), (0.7272, 727), (0.999, 999), (1.0, 999)):
        t = backbone.level_at(torch.full((2, 1, 1, 1), share))
        with torch.no_grad():
            backbone.velocity("teacher", interpolate(x0, eps, t), t, backbone.encode(TEXTS))
        x_t, asked = shown[-1][:2]
        assert asked.tolist() == [timestep] * 2
        assert torch.allclose(x_t, theirs.add_noise(x0, eps, torch.tensor([timestep] * 2)), atol=1e-5)


@pytest.mark.parametrize("family", ["sd3-t5", "sit", "flux2", "z_image"])
def test_timesteps_of_flow_families_are_their_levels(folders: dict[str, Path], family: str) -> None:
    share = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(backbone_of(folders, family).level_at(share), share)


LONG = " ".join(["a photo of a red circle"] * 12)


@pytest.mark.parametrize("family", ["sd3-t5", "flux2", "z_image"])
def test_a_length_of_texts_holds_in_training_in_the_students_protocol_and_in_its_benchmark(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    settings = BackboneConfig(
        kind=KIND.get(family, family), path=str(folders[family]), max_text_length=24, lora=LoraConfig(rank=2),
        prompt_cache_folder=str(tmp_path / "prompts"),
    )  # fmt: skip
    kept = [load(one, CPU) for one in (settings, replace(settings, max_text_length=0))]
    short, own = (
        [x for part in one.encode([LONG]) for x in (part if isinstance(part, list) else [part])] for one in kept
    )
    tokens = short[0].shape[-2]
    beside = 16 if family == "sd3-t5" else 0  # of CLIP, whose length is its own
    assert tokens == 24 + beside != own[0].shape[-2]
    assert len(list((tmp_path / "prompts").iterdir())) == 2  # rows of one length are not those of another
    backbone, pipe = kept[0], stock(folders[family])
    protocol = SamplerConfig(sampler="euler", num_inference_steps=2).protocol(backbone.protocol())
    assert protocol.call_arguments["max_sequence_length"] == 24
    assert open_base(settings).protocol == backbone.protocol()
    pipe.scheduler, x = FewStepScheduler.of(protocol, pipe.scheduler), noise(backbone, 1)
    with torch.no_grad():
        prompts = backbone.encode([LONG])
        steps = rollout(lambda x_t, t: backbone.velocity("student", x_t, t, prompts), x, protocol, lambda k: x)
        mine = backbone.decode(steps[-1].x_next)
    pipe.scheduler.generators = [torch.Generator()]
    arguments = call_arguments(pipe, protocol, [LONG])
    theirs = pipe(output_type="pt", latents=x, generator=[torch.Generator()], **arguments).images
    assert (theirs - mine).abs().max() <= 1e-4 and theirs.std() > 0.01


@pytest.mark.parametrize("family", ["sdxl", "sit"])
def test_a_length_of_texts_is_refused_where_a_family_has_one_alone(folders: dict[str, Path], family: str) -> None:
    settings = BackboneConfig(kind=family, path=str(folders[family]), max_text_length=128)
    for opened in (lambda: load(settings, CPU), lambda: open_base(settings)):
        with pytest.raises(UserError, match=r"has one length of texts: leave backbone.max_text_length out"):
            opened()
    with pytest.raises(UserError, match=r"max_text_length must lie in \[0, 512\]"):
        build(BackboneConfig, {"path": "x", "max_text_length": 513}, "x.toml")


@pytest.mark.parametrize("family", ["sdxl", "flux2", "z_image"])
def test_rows_and_columns_of_a_wide_picture_are_the_pipelines(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    shutil.copytree(folders[family], tmp_path / "wide")
    write_protocol(replace(open_model(folders[family]).protocol, width=2 * SIDE), tmp_path / "wide")
    wide = {family: tmp_path / "wide"}
    backbone, pipe = backbone_of(wide, family), stock(wide[family])
    x, protocol = noise(backbone), replace(backbone.protocol(), sampler="euler", num_inference_steps=2)
    assert x.shape[3] == 2 * x.shape[2]
    pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
    theirs = drawn(pipe, protocol, family, x)
    assert theirs.shape == (2, 3, SIDE, 2 * SIDE)
    assert (ours(backbone, protocol, family, x) - theirs).abs().max() <= 1e-4


def test_the_solver_of_a_sit_folder_is_euler_at_order_one(folders: dict[str, Path]) -> None:
    backbone, pipe = backbone_of(folders, "sit"), stock(folders["sit"])
    for steps in (4, 28):
        native = replace(backbone.protocol(), num_inference_steps=steps, guidance_scale=GUIDANCE)
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
        lay = scheduler.set_timesteps

        def exact(count: int, lay: Any = lay, scheduler: Any = scheduler) -> None:
            lay(count)  # which rounds timesteps down to whole numbers, where the network takes any
            scheduler.timesteps = 1000 * scheduler.sigmas[:-1]

        scheduler.set_timesteps, pipe.scheduler, x = exact, scheduler, noise(backbone)
        theirs = drawn(pipe, native, "sit", x)
        sigmas = tuple(float(s) for s in scheduler.sigmas[:-1])
        mine = ours(backbone, replace(native, sampler="euler", sigmas=sigmas), "sit", x)
        assert (mine - theirs).abs().max() <= 1e-4 and theirs.std() > 0.01


@pytest.mark.parametrize(
    ("tokens", "mu", "levels"),
    [(1024, 2.0307, [1, 0.9581, 0.8840, 0.7175]), (4096, 2.2912, [1, 0.9674, 0.9081, 0.7672])],
)
def test_kleins_own_schedule_is_an_explicit_shift(tokens: int, mu: float, levels: list[float]) -> None:
    shift = empirical_shift(tokens, 4)
    assert math.log(shift) == pytest.approx(mu, abs=1e-4)
    assert [shifted(1 - k / 4, shift) for k in range(4)] == pytest.approx(levels, abs=1e-4)
    assert math.log(empirical_shift(6400, 4)) == pytest.approx(1.6927e-4 * 6400 + 0.45666666, abs=1e-6)


@pytest.mark.parametrize("family", NEW)
def test_a_family_trains_exports_and_generates(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    backbone = backbone_of(folders, family)
    config = DmdConfig(
        batch_size=2, fake_score_updates=1, guidance_scale=2.0, sampler=SamplerConfig(num_inference_steps=2),
        student=OptimiserConfig(lr=1e-2), fake_score=OptimiserConfig(lr=1e-2),
    )  # fmt: skip
    trainer = Dmd(config, backbone, RewardBank([], {}), World(seed=0))
    teacher = backbone.teacher_digest()
    for iteration in range(3):
        logs = trainer.step([Prompt(text=text) for text in texts_of(family)], iteration)
        assert all(torch.tensor(value).isfinite() for value in logs.values())
    assert backbone.teacher_digest() == teacher
    protocol = replace(trainer.protocol(), sampler="euler")
    x = noise(backbone)
    student, base = (ours(backbone, protocol, family, x, role) for role in ("student", "teacher"))
    assert (student - base).abs().max() > 1e-3
    backbone.export(tmp_path / "merged", "merged", "float32")
    pipe = stock(tmp_path / "merged")
    pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
    assert (drawn(pipe, protocol, family, x) - student).abs().max() <= 1e-4
    backbone.export(tmp_path / "lora", "lora", "float32")
    pipe = stock(folders[family])
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(tmp_path / "lora")
    else:
        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path / "lora").merge_and_unload()
    pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
    assert (drawn(pipe, protocol, family, x) - student).abs().max() <= 1e-4
    model = open_model(tmp_path / "merged")
    pictures = model.generate(texts_of(family), [noise_generator(0, "p", n) for n in range(2)], trainer.protocol())  # type: ignore[arg-type]
    assert len(pictures.images) == 2 and pictures.images[0].size == (SIDE, SIDE) and pictures.nfe == 2


@pytest.mark.parametrize("family", NEW)
def test_roles_features_and_pictures_of_a_family(folders: dict[str, Path], family: str) -> None:
    backbone = backbone_of(folders, family)
    x, prompts, t = noise(backbone), backbone.encode(texts_of(family)), torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    with torch.no_grad():
        teacher = backbone.velocity("teacher", x, t, prompts)
        alone = backbone.velocity("teacher", x[1:], 0.9, backbone.encode(texts_of(family)[1:]))
        assert torch.allclose(teacher[1:], alone, atol=1e-4)  # levels and prompts belong to their rows
        perturb(backbone.parameters("fake_score"))
        fake = backbone.velocity("fake_score", x, t, prompts)
        assert not torch.allclose(fake, teacher, atol=1e-3)
        assert torch.equal(backbone.velocity("teacher", x, t, prompts, fake_scale=1.0), fake)
        assert torch.equal(backbone.velocity("fake_score", x, t, prompts, fake_scale=0.0), teacher)
    features = backbone.features("fake_score", x.requires_grad_(), t, prompts)
    assert features.ndim == 3 and len(features) == 2
    features.square().mean().backward()
    assert x.grad is not None and x.grad[0].any() and x.grad[1].any()
    assert any(p.grad is not None and p.grad.any() for p in backbone.parameters("fake_score"))
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    found = backbone.encode_pictures(images)
    assert found.shape == (2, *backbone.latent_shape) and not found.requires_grad
    raw = backbone.raw_latents(found)  # type: ignore[attr-defined]
    assert torch.allclose(backbone.trained_latents(raw), found, atol=1e-5)  # type: ignore[attr-defined]


def test_full_copies_of_a_unet_train_apart_and_export(folders: dict[str, Path], tmp_path: Path) -> None:
    backbone = backbone_of(folders, "sdxl", "full")
    x, prompts = noise(backbone), backbone.encode(TEXTS)

    def is_now(role: Role, expected: Tensor, weights: dict[str, Tensor]) -> bool:
        found = state_of(backbone, role)
        # Equal weights, not equal bits of the answer: a frozen weight may be multiplied by another kernel than a
        # trained one, on some processors
        same = all(torch.equal(weights[name], tensor) for name, tensor in found.items())
        return same and torch.allclose(backbone.velocity(role, x, 0.5, prompts), expected, rtol=0, atol=1e-5)

    with torch.no_grad():
        teacher, base = backbone.velocity("teacher", x, 0.5, prompts), state_of(backbone, "teacher")
        perturb(backbone.parameters("student"))
        backbone.keep_reference()
        student, own = backbone.velocity("student", x, 0.5, prompts), state_of(backbone, "student")
        assert not torch.allclose(student, teacher, atol=1e-3)
        assert is_now("reference", student, own) and is_now("fake_score", teacher, base)
        backbone.export(tmp_path / "student", "merged", "float32")
        backbone.reset()
        assert is_now("student", teacher, base) and is_now("reference", student, own)
    again = load(BackboneConfig(kind="sdxl", path=str(tmp_path / "student")), CPU)
    with torch.no_grad():
        assert torch.allclose(again.velocity("teacher", x, 0.5, again.encode(TEXTS)), student, atol=1e-5)
    for refused in ({"weights": "lora"}, None):
        with pytest.raises(UserError, match=r'export.weights = "lora" needs|backbone.training = "full" has no'):
            if refused:
                backbone.export(tmp_path / "lora", dtype="float32", **refused)
            else:
                backbone.velocity("fake_score", x, 0.5, prompts, fake_scale=0.5)


def test_adapters_lie_on_convolutions_that_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(
        rank=2, alpha=4, init="gaussian", targets=("to_q", "conv1", "conv_shortcut", "downsamplers.0.conv")
    )
    backbone = load(BackboneConfig(kind="sdxl", path=str(folders["sdxl"]), lora=lora), CPU)
    matrices = backbone.parameters("student")
    assert {matrix.ndim for matrix in matrices} == {2, 4}
    x, prompts = noise(backbone), backbone.encode(TEXTS)
    with torch.no_grad():
        teacher = backbone.velocity("teacher", x, 0.5, prompts)
        assert torch.equal(backbone.velocity("student", x, 0.5, prompts), teacher)
        perturb([matrix for matrix in matrices if matrix.ndim == 4])
        student = backbone.velocity("student", x, 0.5, prompts)
        assert not torch.allclose(student, teacher, atol=1e-3)
        assert torch.equal(backbone.velocity("teacher", x, 0.5, prompts), teacher)
    backbone.velocity("student", x, 0.5, prompts).square().mean().backward()
    assert all(matrix.grad is not None for matrix in matrices)
    protocol = replace(backbone.protocol(), sampler="euler", num_inference_steps=2)
    pictures = ours(backbone, protocol, "sdxl", x, "student")
    for weights in ("merged", "lora"):
        backbone.export(tmp_path / weights, weights, "float32")
    merged, adapted = stock(tmp_path / "merged"), stock(folders["sdxl"])
    adapted.load_lora_weights(tmp_path / "lora")
    for pipe in (merged, adapted):
        pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
        assert (drawn(pipe, protocol, "sdxl", x) - pictures).abs().max() <= 1e-4


@pytest.mark.parametrize(("family", "training"), [("sdxl", "lora"), ("sdxl", "full"), ("sit", "lora")])
def test_checkpointing_changes_no_gradient(folders: dict[str, Path], family: str, training: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        settings = {"kind": family, "path": str(folders[family]), "training": training}
        lora = LoraConfig(rank=2, alpha=4)
        backbone = load(BackboneConfig(**settings, lora=lora, gradient_checkpointing=checkpointing), CPU)  # type: ignore[arg-type]
        perturb(backbone.parameters("student"))
        x, prompts = noise(backbone), backbone.encode(texts_of(family))
        loss = backbone.velocity("student", x, 0.5, prompts).square().mean()
        with torch.no_grad():
            backbone.velocity("fake_score", x, 0.5, prompts)
        loss.backward()
        gradients.append([p.grad for p in backbone.parameters("student")])
    assert any(gradient is not None and gradient.any() for gradient in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.allclose(plain, again, rtol=1e-3, atol=1e-6)


def test_guidance_of_sdxl_is_against_zeros_unless_a_negative_prompt_is_given(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders, "sdxl")
    assert not any(x.any() for x in backbone.negative())  # type: ignore[attr-defined]
    backbone._protocol = replace(backbone.protocol(), negative_prompt="a cross")  # type: ignore[attr-defined]
    for x, own in zip(backbone.negative(), backbone.encode(["a cross"]), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(x, own[0]) and x.any()


@pytest.mark.parametrize("family", ["sd3", "sdxl", "z_image", "sit"])
def test_guided_calls_bring_the_negative_prompt_to_the_device_once(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of(folders, family)
    prompts, z = backbone.encode(texts_of(family)), noise(backbone)
    asked: list[list[str]] = []
    encoded = backbone._rows  # type: ignore[attr-defined]
    monkeypatch.setattr(backbone, "_rows", lambda texts: asked.append(list(texts)) or encoded(texts))  # type: ignore[func-returns-value]
    with torch.no_grad():
        first, again = (backbone.velocity("teacher", z, 0.5, prompts, GUIDANCE) for _ in range(2))
        bare = backbone.velocity("teacher", z, 0.5, prompts)
    assert asked == [[backbone.protocol().negative_prompt]]  # type: ignore[attr-defined]
    assert torch.equal(first, again) and not torch.equal(first, bare)


@pytest.mark.parametrize(("unconditional", "zeros"), [("zeros", True), ("empty_prompt", False), ("model", None)])
@pytest.mark.parametrize("folders_own", [True, False])
def test_the_teacher_is_guided_against_what_it_is_said_to_be_whatever_its_folder_says(
    folders: dict[str, Path], tmp_path: Path, unconditional: str, zeros: bool | None, folders_own: bool
) -> None:
    folder = tmp_path / "sdxl"
    shutil.copytree(folders["sdxl"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": folders_own}))
    backbone = load(BackboneConfig(kind="sdxl", path=str(folder), unconditional=unconditional), CPU)  # type: ignore[arg-type]
    pipe = stock(folder)
    pipe.register_to_config(force_zeros_for_empty_prompt=folders_own if zeros is None else zeros)
    protocol = replace(backbone.protocol(), sampler="euler", num_inference_steps=4, guidance_scale=GUIDANCE)
    pipe.scheduler = FewStepScheduler.of(protocol, pipe.scheduler)
    theirs = drawn(pipe, protocol, "sdxl", noise(backbone))
    assert (ours(backbone, protocol, "sdxl", noise(backbone)) - theirs).abs().max() <= 1e-4 and theirs.std() > 0.01
    pipe.register_to_config(force_zeros_for_empty_prompt=not pipe.config.force_zeros_for_empty_prompt)
    assert (drawn(pipe, protocol, "sdxl", noise(backbone)) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd3", "sit", "flux2", "z_image"])
def test_an_unconditional_is_refused_where_a_family_has_one_alone(family: str) -> None:
    with pytest.raises(
        UserError, match=rf"unconditional = 'zeros': models of kind '{family}' are guided against one"
    ):
        load(BackboneConfig(kind=family, path="nowhere", unconditional="zeros"), CPU)


def test_an_unconditional_contradicts_a_negative_prompt(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
    write_protocol(replace(backbone_of(folders, "sdxl").protocol(), negative_prompt="a cross"), tmp_path / "sdxl")
    with pytest.raises(UserError, match=r"has a negative prompt, which backbone.unconditional = 'zeros' contradicts"):
        load(BackboneConfig(kind="sdxl", path=str(tmp_path / "sdxl"), unconditional="zeros"), CPU)
    load(BackboneConfig(kind="sdxl", path=str(tmp_path / "sdxl")), CPU)


def test_a_guided_student_is_refused_another_unconditional_than_its_pipelines() -> None:
    backbone = Rehearsal(BackboneConfig(kind="sdxl", path="", unconditional="empty_prompt"), Protocol())
    parts = backbone, OptimiserConfig(), None, EmaConfig(), World()
    Roles(*parts)
    with pytest.raises(UserError, match=r"backbone\.unconditional is what a teacher is guided against"):
        Roles(*parts, student_guidance=4.5)


def test_eps_models_start_from_pure_noise(folders: dict[str, Path]) -> None:
    model = open_model(folders["sdxl"])
    model.check(replace(model.protocol, sampler="cps", eta=1.0))  # type: ignore[union-attr]
    with pytest.raises(UserError, match="let the first of them be 1"):
        model.check(replace(model.protocol, sampler="cps", num_inference_steps=1, sigmas=(0.9,)))  # type: ignore[union-attr]


def test_a_dit_that_predicts_eps_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sit"], tmp_path / "dit")
    scheduler = json.loads((folders["sdxl"] / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "dit" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((tmp_path / "dit" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (tmp_path / "dit" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a flow model; make the folder with"):
        load(BackboneConfig(kind="sit", path=str(tmp_path / "dit")), CPU)
    with pytest.raises(UserError, match="a DiTPipeline; this backbone trains StableDiffusionXLPipeline folders"):
        load(BackboneConfig(kind="sdxl", path=str(folders["sit"])), CPU)


def test_a_shrunken_checkpoint_is_a_function_of_its_seed(folders: dict[str, Path], tmp_path: Path) -> None:
    digest = open_model(folders["sit"]).digest
    assert open_model(make("sit", tmp_path / "same")).digest == digest
    assert open_model(make("sit", tmp_path / "other", seed=1)).digest != digest


def test_a_prompt_names_its_class_by_number_or_label() -> None:
    labels = {"goldfish": 1}
    assert class_labels(["207", "goldfish", "0"], labels, 1000) == [207, 1, 0]
    for wrong in ("1000", "a dog", "-1", "²"):
        with pytest.raises(UserError, match="names no class"):
            class_labels([wrong], labels, 1000)
