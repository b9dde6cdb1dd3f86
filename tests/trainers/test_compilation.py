"""Compiled blocks: nearly the same numbers, whatever role is at work, scaled, recomputed or looked into."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.config import UserError, build
from tests.shrunken.families import make
from trainers.backbones import compilation
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.backbones.compilation import compile_blocks
from trainers.backbones.sharding import blocks

CPU = torch.device("cpu")
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler (g++) on this machine")


def backbone_of(folder: Path, family: str = "sd3", **settings: object) -> Backbone:
    torch.manual_seed(0)
    lora = {"rank": 2, "alpha": 4, "targets": ["to_q"]}
    backbone = load(build(BackboneConfig, {"kind": family, "path": str(folder), "lora": lora} | settings, "b"), CPU)
    with torch.no_grad():
        for parameter in [*backbone.parameters("student"), *backbone.parameters("fake_score")]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def answers(backbone: Backbone) -> list[Tensor]:
    """Return the roles' velocities, hidden states and gradients; a graph waits while other roles are at work."""
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    prompts = backbone.encode(["a red circle", "a blue square"])
    v = backbone.velocity("student", x, 0.5, prompts)
    with torch.no_grad():
        others = [
            backbone.velocity("teacher", x, 0.5, prompts, 2.0),
            backbone.velocity("fake_score", x, 0.5, prompts),
        ]
        others += [backbone.velocity("teacher", x, 0.5, prompts, fake_scale=scale) for scale in (0.9, 0.8, 0.7)]
        others.append(backbone.features("student", x, 0.5, prompts))
    v.square().mean().backward()
    return [v.detach(), *others, *(p.grad for p in backbone.parameters("student") if p.grad is not None)]


def one_role(backbone: Backbone) -> list[Tensor]:
    """Return the student's velocity, and its gradients where there are any."""
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    v = backbone.velocity("student", x, 0.5, backbone.encode(["a red circle", "a blue square"]))
    if torch.is_grad_enabled():
        v.square().mean().backward()
    return [v.detach(), *(p.grad for p in backbone.parameters("student") if p.grad is not None)]


def agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all((mine - theirs).norm() <= 1e-4 * theirs.norm() for mine, theirs in pairs)


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the first block alone: one kind of block takes half the time of two."""
    monkeypatch.setattr(compilation, "blocks", lambda network: blocks(network)[:1])


@COMPILER
def test_compiled_blocks_answer_nearly_as_eager_ones(
    pipeline_folder: Path, one_block: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real compiler; without gradients, whose graphs take it minutes more and are those of the next test."""
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # starting helpers takes longer than the work
    with torch.no_grad():
        expected, counted = one_role(backbone_of(pipeline_folder)), counters["frames"]["ok"]
        assert agree(one_role(backbone_of(pipeline_folder, compile=True)), expected)
    assert counters["frames"]["ok"] > counted  # something was compiled


@pytest.mark.parametrize("training", ["lora", "full"])
def test_roles_scales_and_recomputed_blocks_find_their_graphs(
    training: str, pipeline_folder: Path, one_block: None
) -> None:
    """With the compiler's front half alone, which is what tells one adapter from another; no graph is made twice."""
    settings = {"training": training, "gradient_checkpointing": True}
    eager, backbone = (backbone_of(pipeline_folder, **settings) for _ in range(2))
    for network in backbone._roles.networks():  # type: ignore[attr-defined]
        compile_blocks(network, backend="aot_eager")
    ask = answers if training == "lora" else one_role
    expected = ask(eager)
    assert agree(ask(backbone), expected)
    made = counters["stats"]["unique_graphs"]
    for parameter in backbone.parameters("student"):
        parameter.grad = None
    assert agree(ask(backbone), expected) and counters["stats"]["unique_graphs"] == made


@pytest.mark.parametrize("family", ["sd3", "sdxl", "flux2", "z_image", "sit"])
def test_every_family_names_its_blocks(family: str, tmp_path: Path) -> None:
    pipeline = backbone_of(make(family, tmp_path / family), family).pipeline  # type: ignore[attr-defined]
    network = pipeline.unet if family == "sdxl" else pipeline.transformer
    found = blocks(network)
    within = {id(part) for block in found for part in block.modules()}
    attentions = [part for part in network.modules() if type(part).__name__.endswith("Attention")]
    assert found and attentions and all(id(part) in within for part in attentions)
    assert len(found) == len({id(block) for block in found})


def test_what_cannot_be_compiled_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="compile and sharded exclude each other"):
        build(BackboneConfig, {"path": "x", "compile": True, "sharded": True}, "x.toml")
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and none of .*absent is on this machine"):
        backbone_of(make("sd3", tmp_path / "sd3"), compile=True)
