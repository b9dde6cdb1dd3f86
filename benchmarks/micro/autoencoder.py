"""The micro pipeline's autoencoder: an AutoencoderKL of factor 4 with 4 channels, trained on renders.

    loss = |x - D(E(x))|_1 + 4e-4 KL(E(x) || N(0, 1))

Factor 8 would blur edges beyond what the shape detector forgives. Latents are normalised by the scaling and shift
factors that SD3's pipeline reads from the config, here scalars from the latents' own statistics.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.micro.renders import draw_combinations, render_all
from benchmarks.micro.training import Log, load_checkpoint, numpy_rng, save_checkpoint, to_floats, torch_rng

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """How the autoencoder is trained."""

    steps: int = 2000
    batch_size: int = 16
    lr: float = 2e-3
    kl_weight: float = 4e-4
    renders: int = 8192
    seed: int = 0


def build_autoencoder() -> "AutoencoderKL":
    """Return the untrained model."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    # Begin with little posterior noise (log-variance about -5): reconstruction is learnt several times sooner.
    log_variance = slice(model.config["latent_channels"], None)
    with torch.no_grad():
        model.encoder.conv_out.weight[log_variance] *= 0.1
        model.encoder.conv_out.bias[log_variance] = -5.0
    return model


def train_autoencoder(config: AutoencoderConfig, work: Path) -> "AutoencoderKL":
    """Return the trained model, its scaling and shift factor set; continues from `work` where a run was cut."""
    torch.manual_seed(config.seed)
    model = build_autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps, pct_start=0.05)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    path, log = work / "autoencoder.pt", Log(work / "autoencoder.log")
    done = load_checkpoint(path, parts)
    pictures, _ = render_all(draw_combinations(config.renders, config.seed), config.seed)
    for step in range(done, config.steps):
        chosen = numpy_rng(config.seed, step).integers(len(pictures), size=config.batch_size)
        x_BCHW = to_floats(pictures[chosen])
        # bfloat16 is faster, but its rounding is as large as the loss of the last steps
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step < 0.85 * config.steps):
            posterior = model.encode(x_BCHW).latent_dist
            decoded_BCHW = model.decode(posterior.sample(torch_rng(config.seed, step))).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        l1 = F.l1_loss(decoded_BCHW.float(), x_BCHW)
        loss = l1 + config.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == config.steps:
            log(f"autoencoder step {step + 1} L1 {l1.item():.4f} KL {kl.item():.2f}")
            save_checkpoint(path, step + 1, parts)
    latents = encode(model, pictures[:2048])
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return model.eval().requires_grad_(False)


@torch.no_grad()
def encode(model: "AutoencoderKL", pictures_NHWC: np.ndarray, batch_size: int = 64) -> Tensor:
    """Return normalised latents [N, 4, 16, 16], float32, of uint8 pictures."""
    shift, scale = model.config["shift_factor"], model.config["scaling_factor"]
    batches = [
        model.encode(to_floats(pictures_NHWC[first : first + batch_size])).latent_dist.mean
        for first in range(0, len(pictures_NHWC), batch_size)
    ]
    return (torch.cat(batches) - shift) * scale


@torch.no_grad()
def decode(model: "AutoencoderKL", latents_BCHW: Tensor) -> np.ndarray:
    """Return uint8 pictures [B, 64, 64, 3] of normalised latents, rounded as diffusers does."""
    x_BCHW = model.decode(latents_BCHW / model.config["scaling_factor"] + model.config["shift_factor"]).sample
    return (x_BCHW * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
