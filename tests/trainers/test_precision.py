"""Narrow numbers and parts off the device: what they may change, and what not. On a CPU, so bfloat16 by autocast."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, build
from tests.shrunken.families import make
from trainers.backbones.base import Backbone, BackboneConfig, load

CPU = torch.device("cpu")
NARROW = {"precision": "bfloat16", "storage": "bfloat16"}


def backbone_of(folder: Path, kind: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    table = {"kind": kind, "path": str(folder), "lora": {"rank": 2, "alpha": 4}} | settings
    return load(build(BackboneConfig, table, "backbone"), CPU)


def answer_and_gradient(backbone: Backbone, prompt: str) -> tuple[Tensor, Tensor]:
    """Return the student's velocity, and the gradient of its square over all adapters, as one vector each."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in backbone.parameters("student"):
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    x = torch.randn(2, *backbone.latent_shape, generator=generator)
    v = backbone.velocity("student", x, 0.5, backbone.encode([prompt, prompt]))
    assert v.dtype == torch.float32
    (v**2).mean().backward()
    gradients = [p.grad for p in backbone.parameters("student")]
    assert all(g is not None and g.dtype == torch.float32 for g in gradients)
    return v.detach().flatten(), torch.cat([g.flatten() for g in gradients if g is not None])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("family", ["sd3", "sdxl", "flux2", "z_image", "sit"])
def test_bfloat16_answers_and_learns_nearly_as_float32(family: str, tmp_path: Path) -> None:
    folder, prompt = make(family, tmp_path / family), "207" if family == "sit" else "a red circle"
    v, gradient = answer_and_gradient(backbone_of(folder, family), prompt)
    for settings in ({"precision": "bfloat16"}, NARROW):
        v_16, gradient_16 = answer_and_gradient(backbone_of(folder, family, **settings), prompt)
        assert (v_16 - v).norm() <= 0.03 * v.norm() and not torch.equal(v_16, v)  # 8 bits: 0.4 % a rounding
        assert cosine(gradient_16, gradient) >= 0.99


def test_a_narrow_base_takes_half_the_memory_and_its_adapters_stay_wide(tmp_path: Path) -> None:
    wide, narrow = (backbone_of(make("sd3", tmp_path / "sd3"), "sd3", **settings) for settings in ({}, NARROW))
    size = [sum(t.nbytes for t in b._roles.base_state().values() if t.is_floating_point()) for b in (wide, narrow)]  # type: ignore[attr-defined]
    assert size[0] == 2 * size[1]
    assert {p.dtype for role in ("student", "fake_score") for p in narrow.parameters(role)} == {torch.float32}  # type: ignore[arg-type]
    merged = narrow._roles.merged("student")  # type: ignore[attr-defined]
    assert {tensor.dtype for name, tensor in merged if name.endswith("to_q.weight")} == {torch.float32}


@pytest.mark.parametrize("changes", [{"precision": "float32"}, {"training": "full"}])
def test_a_narrow_base_is_for_adapters_in_bfloat16(changes: dict[str, str]) -> None:
    with pytest.raises(UserError, match='storage = "bfloat16" needs training = "lora" and precision = "bfloat16"'):
        build(BackboneConfig, {"path": "x"} | NARROW | changes, "x.toml")


@pytest.mark.parametrize("family", ["sd3", "flux2"])
def test_an_autoencoder_off_the_device_decodes_the_same_and_leaves_when_no_graph_needs_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(family, tmp_path / family)
    plain, kept = backbone_of(folder, family), backbone_of(folder, family, offload_autoencoder=True)
    z = torch.randn(1, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = plain.decode(z)
    places: list[str] = []
    monkeypatch.setattr(kept.pipeline.vae, "to", lambda device: places.append(str(device)))  # type: ignore[attr-defined]
    kept.device = torch.device("cpu:0")  # told from the "cpu" it goes back to
    with torch.no_grad():
        assert torch.equal(kept.decode(z), images)
    assert places == ["cpu:0", "cpu"]
    kept.decode(z.requires_grad_()).sum().backward()
    assert places == ["cpu:0", "cpu", "cpu:0"] and z.grad is not None  # it stays, for the way back
    kept.encode_pictures(images)
    assert places == ["cpu:0", "cpu", "cpu:0", "cpu:0", "cpu"]
