"""Published SiT checkpoints (SiT, REPA, SRA) as folders that stock diffusers loads: the same function, other weights.

    python -m trainers.backbones.sit_checkpoint SOURCE OUT --vae VAE_FOLDER --data-at 1     (SiT; REPA: --data-at 0)

SiT's network is DiT's, and diffusers has DiT. Two things differ, and both go into weights:
    time      SiT shows its first linear layer W the features phi(tau), tau in [0, 1], of frequencies 10000^(-i/128);
              diffusers' DiT shows psi(1000 t), of frequencies 10000^(-i/127). On [0, 1] phi is smooth, and a linear
              map of psi's slow part to within 1e-6: phi(tau) = M psi(1000 t), so W M takes W's place. tau = t where
              the checkpoint calls noise 1 (REPA), tau = 1 - t where it calls data 1 (SiT).
    sign      where data is at 1 the network predicts x0 - eps: the last linear layer changes its sign.
Source: layouts and conventions of the authors' code (SiT models.py, transport/path.py; REPA models/sit.py, loss.py).
Departure: diffusers' DiT embeds time and class in every block: equal copies here, which full fine-tuning may part.
"""

import argparse
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.config import UserError

DataAt = Literal[0, 1]  # the time that a checkpoint gives to data
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: S, B, L, XL
FEATURES, PERIOD = 256, 10_000.0  # of the time embedding
SLOW = 4.0  # radians on [0, 1]; above it float32 loses digits of psi
IGNORED = re.compile(r"projectors?\.|(x_)?pos_embed$")  # REPA's alignment heads; positions are fixed in both

BLOCK = {  # ours: theirs, within a block
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def time_features_map(data_at: DataAt) -> Tensor:
    """Return M [256, 256] float64 with phi(tau) = M psi(1000 t) for all t in [0, 1]; both are (cos, sin)."""
    half = FEATURES // 2
    index = torch.arange(half, dtype=torch.float64)
    theirs, ours = PERIOD ** (-index / half), 1000 * PERIOD ** (-index / (half - 1))
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    tau, slow = (1 - t if data_at else t), ours <= SLOW
    phi = torch.cat([(tau * theirs).cos(), (tau * theirs).sin()], dim=1)
    psi = torch.cat([(t * ours[slow]).cos(), (t * ours[slow]).sin()], dim=1)
    found = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    found[:, slow.repeat(2)] = torch.linalg.lstsq(psi, phi, rcond=1e-8, driver="gelsd").solution.T
    return found


def converted(state: Mapping[str, Tensor], data_at: DataAt, heads: int | None = None) -> tuple[dict[str, Any], Any]:
    """Return (settings, state) of a DiTTransformer2DModel that computes v = eps - x0 at timestep 1000 t.

    heads: of attention; None = those of the published width. Raises UserError where the layout is not SiT's."""
    try:
        settings = _settings(state, heads)
        new = _outside_blocks(state, data_at)
        for block in range(settings["num_layers"]):
            new |= _block(state, block, data_at)
    except KeyError as error:
        raise UserError(f"not a SiT checkpoint: it lacks {error}; pass a file of SiT, REPA or SRA") from error
    used = {"x_embedder", "t_embedder", "y_embedder", "final_layer", "blocks"}
    foreign = [key for key in state if key.split(".")[0] not in used and not IGNORED.match(key)]
    foreign += [key for key in state if ".q_norm." in key or ".k_norm." in key]
    if foreign:
        raise UserError(f"not a plain SiT checkpoint: DiT has no place for {foreign[0]!r}")
    return settings, new


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights: safetensors, or a pickle of tensors; of the parts "ema" and "model" the first.

    Raises UserError where the file is missing, damaged or holds more than tensors."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path}: more than tensors, or damaged ({str(error).splitlines()[0]}); save its weights alone as "
            "safetensors"
        ) from error
    return next((table[part] for part in ("ema", "model") if part in table), table)


def write_folder(
    weights: Mapping[str, Tensor], data_at: DataAt, vae: Path, out: Path, heads: int | None = None
) -> None:
    """Write a DiTPipeline folder of a checkpoint's weights and an AutoencoderKL folder."""
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

    settings, state = converted(weights, data_at, heads)
    network = DiTTransformer2DModel(**settings)
    network.load_state_dict(state, assign=True)
    if not torch.allclose(network.pos_embed.pos_embed, weights["pos_embed"].float(), atol=1e-4):
        raise UserError("not a plain SiT checkpoint: its positions are not the fixed sines and cosines of DiT")
    autoencoder = AutoencoderKL.from_pretrained(vae, use_safetensors=True)
    DiTPipeline(network, autoencoder, flow_solver()).save_pretrained(out)


def flow_solver() -> Any:
    """Return a scheduler of flows that DiTPipeline can call: diffusers' own flow schedulers lack one of its calls."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def _settings(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    patches, pixels = state["x_embedder.proj.weight"], state["pos_embed"].shape[1]
    width, channels, patch, _ = patches.shape
    if heads is None and width not in HEADS:
        raise UserError(f"a SiT of width {width} is none of S, B, L, XL: say how many --heads it has")
    heads = heads or HEADS[width]
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": len(state["final_layer.linear.weight"]) // patch**2,
        "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "sample_size": patch * math.isqrt(pixels),
        "patch_size": patch,
        "num_embeds_ada_norm": len(state["y_embedder.embedding_table.weight"]) - 1,
        "norm_eps": 1e-6,
    }


def _outside_blocks(state: Mapping[str, Tensor], data_at: DataAt) -> dict[str, Tensor]:
    sign = -1 if data_at else 1
    new = {}
    for part in ("weight", "bias"):
        new[f"pos_embed.proj.{part}"] = state[f"x_embedder.proj.{part}"]
        new[f"proj_out_1.{part}"] = state[f"final_layer.adaLN_modulation.1.{part}"]
        new[f"proj_out_2.{part}"] = sign * state[f"final_layer.linear.{part}"]
    return new


def _block(state: Mapping[str, Tensor], block: int, data_at: DataAt) -> dict[str, Tensor]:
    ours, theirs = f"transformer_blocks.{block}", f"blocks.{block}"
    time, new = f"{ours}.norm1.emb.timestep_embedder", {}
    for part in ("weight", "bias"):
        for name, other in BLOCK.items():
            new[f"{ours}.{name}.{part}"] = state[f"{theirs}.{other}.{part}"]
        for name, rows in zip("qkv", state[f"{theirs}.attn.qkv.{part}"].chunk(3), strict=True):
            new[f"{ours}.attn1.to_{name}.{part}"] = rows.clone()
        new[f"{time}.linear_2.{part}"] = state[f"t_embedder.mlp.2.{part}"].clone()
    first = state["t_embedder.mlp.0.weight"]
    new[f"{time}.linear_1.weight"] = (first.double() @ time_features_map(data_at)).to(first.dtype)
    new[f"{time}.linear_1.bias"] = state["t_embedder.mlp.0.bias"].clone()
    new[f"{ours}.norm1.emb.class_embedder.embedding_table.weight"] = state[
        "y_embedder.embedding_table.weight"
    ].clone()
    return new


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m trainers.backbones.sit_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="the checkpoint: .pt of tensors, or .safetensors")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--vae", type=Path, required=True, help="folder of its autoencoder (sd-vae-ft-ema)")
    parser.add_argument("--data-at", type=int, choices=(0, 1), required=True, help="the checkpoint's time of data")
    parser.add_argument("--heads", type=int, help="of attention, where the width is none of the published ones")
    arguments = parser.parse_args()
    try:
        write_folder(read_weights(arguments.source), arguments.data_at, arguments.vae, arguments.out, arguments.heads)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
