"""Pipelines of the true sizes with random weights: SD3-M and SDXL, whose text encoders alone are shallow.

Prompts are encoded once in a training and cost next to nothing of a picture, so two layers of the true width do. The
denoiser and the autoencoder are those of the published configurations, number by number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.protocol import Protocol, write_protocol
from tests.shrunken import tokenizers
from tests.shrunken.families import make as make_shrunken

WORDS = 77  # tokens of a prompt
SIDE = 1024  # pixels


def make_sized(model: str, folder: Path, device: str, small: bool = False) -> Path:
    """Write a model's folder unless it is there; small: its shrunken stand-in, for tests of what uses it."""
    if (folder / "protocol.json").exists():
        return folder
    if small:
        return make_shrunken({"sd3m": "sd3", "sdxl": "sdxl"}[model], folder)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        pipeline = SIZED[model]()
    pipeline.to(dtype=torch.bfloat16).save_pretrained(folder)
    arguments = {"max_sequence_length": 256} if model == "sd3m" else {}
    protocol = Protocol(height=SIDE, width=SIDE, guidance_scale=7.0, dtype="bfloat16", call_arguments=arguments)
    write_protocol(protocol, folder)  # the last file: a folder that has it is whole
    return folder


def sd3_medium() -> Any:
    """Return Stable Diffusion 3 Medium without T5, for which zeros stand as in its own pipeline."""
    return StableDiffusion3Pipeline(
        transformer=sd3_transformer(),
        vae=_autoencoder(16, shift_factor=0.0609, scaling_factor=1.5305, quantised=False),
        text_encoder=_text(768, 12, projected=True), tokenizer=tokenizers.clip(WORDS),
        text_encoder_2=_text(1280, 20, projected=True), tokenizer_2=tokenizers.clip(WORDS),
        text_encoder_3=None, tokenizer_3=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def sdxl() -> Any:
    """Return Stable Diffusion XL base 1.0."""
    return StableDiffusionXLPipeline(
        unet=sdxl_unet(),
        vae=_autoencoder(4, scaling_factor=0.13025),
        text_encoder=_text(768, 12, projected=False), tokenizer=tokenizers.clip(WORDS),
        text_encoder_2=_text(1280, 20, projected=True), tokenizer_2=tokenizers.clip(WORDS),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            timestep_spacing="leading",
        ),
    )  # fmt: skip


def sd3_transformer() -> SD3Transformer2DModel:
    """Return SD3-M's transformer, 2.0 B parameters."""
    return SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )  # fmt: skip


def sdxl_unet() -> UNet2DConditionModel:
    """Return SDXL's UNet, 2.6 B parameters."""
    return UNet2DConditionModel(
        sample_size=128, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, cross_attention_dim=2048,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def _autoencoder(channels: int, quantised: bool = True, **factors: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels, sample_size=SIDE,
        use_quant_conv=quantised, use_post_quant_conv=quantised, **factors,
    )  # fmt: skip


def _text(width: int, heads: int, projected: bool) -> Any:
    settings = CLIPTextConfig(
        vocab_size=len(tokenizers.clip(WORDS)), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=heads, max_position_embeddings=WORDS, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(settings)


SIZED: dict[str, Callable[[], Any]] = {"sd3m": sd3_medium, "sdxl": sdxl}
