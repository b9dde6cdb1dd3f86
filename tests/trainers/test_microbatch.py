"""A batch that is gone through in parts: the same numbers, and the graph of one part in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from tests.shrunken.families import make
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.plan import _saved_bytes

CPU = torch.device("cpu")
ROLES = ("student", "fake_score")
IMAGES = 5  # by two: the last part is a smaller one


def backbone_of(folder: Path, family: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    table = {"kind": family, "path": str(folder), "lora": {"rank": 2, "alpha": 4}, "precision": "float64"} | settings
    backbone = load(build(BackboneConfig, table, "backbone"), CPU)
    with torch.no_grad():
        for parameter in (p for role in ROLES for p in backbone.parameters(role)):  # type: ignore[arg-type]
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


def inputs(backbone: Backbone, family: str) -> tuple[Tensor, Tensor, Any]:
    """Return latents, levels and prompts, of every image its own."""
    x = torch.randn(IMAGES, *backbone.latent_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    texts = ["207", "3", "5", "7", "9"] if family == "sit" else ["a", "a b", "a b a", "b", "b a"]
    return x, torch.linspace(0.1, 0.9, IMAGES).view(-1, 1, 1, 1), backbone.encode(texts)


def answers(backbone: Backbone, family: str) -> list[Tensor]:
    """Return a chain of two calls up to its pictures, the guided teacher, hidden states, and all gradients."""
    x, t, prompts = inputs(backbone, family)
    x = x.requires_grad_()
    first = backbone.velocity("student", x, t, prompts)
    with torch.no_grad():
        teacher = backbone.velocity("teacher", x, t, prompts, 2.0)  # another role is at work before the backward
    second = backbone.velocity("student", x - first, t, prompts)
    hidden = backbone.features("fake_score", x, t, prompts)
    images = backbone.decode(x - second)
    (images.mean() + (first - teacher).square().mean() + hidden.square().mean()).backward()
    assert x.grad is not None
    gradients = [p.grad for role in ROLES for p in backbone.parameters(role) if p.grad is not None]  # type: ignore[arg-type]
    return [first.detach(), teacher, second.detach(), hidden.detach(), images.detach(), x.grad, *gradients]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sd3", {}),
        ("sd3", {"gradient_checkpointing": True, "offload_autoencoder": True}),
        ("sd3", {"training": "full"}),
        ("sdxl", {}),
        ("flux2", {}),
        ("z_image", {}),
        ("sit", {}),
    ],
)
def test_parts_give_what_the_whole_gives(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = make(family, tmp_path / family)
    whole, parts = (backbone_of(folder, family, microbatch=size, **settings) for size in (0, 2))
    expected, found = answers(whole, family), answers(parts, family)
    assert len(found) == len(expected) and parts.passes == whole.passes
    for mine, theirs in zip(found, expected, strict=True):
        # pictures are float32; norms take their mean squares so
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_graph_of_one_part_is_kept_of_none_before_the_backward(tmp_path: Path) -> None:
    folder, saved = make("sd3", tmp_path / "sd3"), {}
    for size in (0, 1, 2):
        backbone = backbone_of(folder, "sd3", microbatch=size)
        x, t, prompts = inputs(backbone, "sd3")
        network = backbone._roles.network("student")  # type: ignore[attr-defined]
        with _saved_bytes(network) as seen:
            backbone.velocity("student", x.requires_grad_(), t, prompts)
        saved[size] = sum(seen.values())
    assert max(saved[1], saved[2]) < 0.1 * saved[0]


def test_parts_are_refused_where_they_could_go_wrong() -> None:
    with pytest.raises(UserError, match="sharded and microbatch exclude each other"):
        build(BackboneConfig, {"path": "x", "sharded": True, "microbatch": 2}, "x.toml")
    with pytest.raises(UserError, match="compile and microbatch exclude each other"):
        build(BackboneConfig, {"path": "x", "compile": True, "microbatch": 2}, "x.toml")
    with pytest.raises(UserError, match="microbatch must be at least 0"):
        build(BackboneConfig, {"path": "x", "microbatch": -1}, "x.toml")
