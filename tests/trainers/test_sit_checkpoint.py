"""Published SiT layouts against a SiT written out here from its paper's equations."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.config import UserError
from tests.shrunken.families import make
from trainers.backbones.base import BackboneConfig, load
from trainers.backbones.sit_checkpoint import converted, read_weights, time_features_map, write_folder

WIDTH, HEADS, BLOCKS, SIDE = 32, 2, 2, 4  # SIDE: latents


def positions(width: int, side: int) -> Tensor:
    """Return sines and cosines of column, then of row, [1, side^2, width]."""
    omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = (g.flatten()[:, None] * omega for g in torch.meshgrid(*2 * [torch.arange(side)], indexing="ij"))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None].float()


def weights(out_channels: int, prefix: str = "") -> dict[str, Tensor]:
    shapes = {
        "x_embedder.proj": (WIDTH, 4, 2, 2), "t_embedder.mlp.0": (WIDTH, 256), "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (4 * out_channels, WIDTH), "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }  # fmt: skip
    inside = {"attn.qkv": 3 * WIDTH, "attn.proj": WIDTH, "mlp.fc1": 4 * WIDTH, "adaLN_modulation.1": 6 * WIDTH}
    for n in range(BLOCKS):
        shapes |= {f"blocks.{n}.{name}": (rows, WIDTH) for name, rows in inside.items()}
        shapes[f"blocks.{n}.mlp.fc2"] = (WIDTH, 4 * WIDTH)
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    state["y_embedder.embedding_table.weight"] = torch.randn(11, WIDTH, generator=generator)
    state["pos_embed"] = positions(WIDTH, SIDE // 2)
    return state


def sit(w: dict[str, Tensor], x: Tensor, tau: Tensor, y: Tensor) -> Tensor:
    """Return SiT's output [B, C, h, w] at its own time tau in [0, 1]."""

    def linear(name: str, z: Tensor) -> Tensor:
        return F.linear(z, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(z, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = tau[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2).flatten(2).transpose(1, 2)
    h = h + w["pos_embed"]
    for n in range(BLOCKS):
        m = linear(f"blocks.{n}.adaLN_modulation.1", c).chunk(6, dim=1)
        qkv = (
            linear(f"blocks.{n}.attn.qkv", normed(h, m[0], m[1])).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        h = h + m[2][:, None] * linear(f"blocks.{n}.attn.proj", attended)
        inner = F.gelu(linear(f"blocks.{n}.mlp.fc1", normed(h, m[3], m[4])), approximate="tanh")
        h = h + m[5][:, None] * linear(f"blocks.{n}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    patches = linear("final_layer.linear", normed(h, shift, scale)).unflatten(1, (SIDE // 2, SIDE // 2))
    patches = patches.unflatten(3, (2, 2, -1))  # rows, columns, their pixels' rows, columns, channels
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize(("data_at", "out_channels"), [(1, 8), (0, 4)])
def test_a_converted_checkpoint_computes_what_sit_computes(tmp_path: Path, data_at: Any, out_channels: int) -> None:
    """SiT: data at 1, v = x0 - eps, a learned variance beside it. REPA: data at 0, v = eps - x0 alone."""
    state = weights(out_channels)
    torch.save({"ema": state, "steps": 3}, tmp_path / "sit.pt")
    vae = make("sit", tmp_path / "shrunken") / "vae"
    extra = {"projectors.0.0.weight": torch.zeros(3)} if data_at == 0 else {}
    write_folder(read_weights(tmp_path / "sit.pt") | extra, data_at, vae, tmp_path / "folder", HEADS)
    backbone = load(BackboneConfig(kind="sit", path=str(tmp_path / "folder")), torch.device("cpu"))
    x = torch.randn(5, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([0.0, 0.02, 0.37, 0.98, 1.0]), ["0", "9", "3", "", "5"]
    with torch.no_grad():
        found = backbone.velocity("teacher", x, t.view(5, 1, 1, 1), backbone.encode(labels))
        theirs = sit(state, x, 1 - t if data_at else t, torch.tensor([0, 9, 3, 10, 5]))[:, :4]
    assert theirs.std() > 0.1
    assert torch.allclose(found, -theirs if data_at else theirs, atol=2e-5)


def test_the_time_features_are_a_linear_map_of_diffusers_own() -> None:
    from diffusers.models.embeddings import Timesteps

    t = torch.rand(500, generator=torch.Generator().manual_seed(0))
    psi = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=1)(1000 * t)
    for data_at in (0, 1):
        angles = (1 - t if data_at else t)[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
        phi = torch.cat([angles.cos(), angles.sin()], dim=1)
        assert (psi @ time_features_map(data_at).float().T - phi).abs().max() < 5e-6  # type: ignore[arg-type]


def test_what_is_no_plain_sit_is_named(tmp_path: Path) -> None:
    state = weights(4)
    with pytest.raises(UserError, match=r"it lacks 't_embedder\.mlp\.0\.weight'"):
        converted({k: v for k, v in state.items() if k != "t_embedder.mlp.0.weight"}, 0, HEADS)
    with pytest.raises(UserError, match=r"no place for 'blocks.0.attn.q_norm.weight'"):
        converted(state | {"blocks.0.attn.q_norm.weight": torch.ones(16)}, 0, HEADS)
    with pytest.raises(UserError, match="no place for 'decoder"):
        converted(state | {"decoder.weight": torch.ones(16)}, 0, HEADS)
    with pytest.raises(UserError, match="none of S, B, L, XL: say how many --heads"):
        converted(state, 0)
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "nowhere.pt")
    torch.save({"ema": state, "args": Path("x")}, tmp_path / "more.pt")
    with pytest.raises(UserError, match="more than tensors, or damaged"):
        read_weights(tmp_path / "more.pt")
    vae = make("sit", tmp_path / "shrunken") / "vae"
    with pytest.raises(UserError, match="positions are not the fixed"):
        write_folder(state | {"pos_embed": state["pos_embed"].flip(1)}, 0, vae, tmp_path / "out", HEADS)
