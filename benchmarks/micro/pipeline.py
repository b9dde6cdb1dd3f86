"""The teacher as a stock StableDiffusion3Pipeline: assembled, saved in float16, loaded, and drawn from."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.micro.text import new_tokenizer
from benchmarks.protocol import Protocol
from metrics.micro.world import SIZE

# How the teacher is meant to be sampled; guidance was chosen on the dev prompts.
PROTOCOL = Protocol(
    sampler="euler",
    num_inference_steps=28,
    guidance_scale=4.0,
    height=SIZE,
    width=SIZE,
    call_arguments={"max_sequence_length": 0},  # else 256 zero tokens stand in for the missing T5, unseen in training
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

    from benchmarks.micro.teacher import Networks


def assemble(networks: "Networks", vae: "AutoencoderKL") -> "StableDiffusion3Pipeline":
    """Return the pipeline over these very modules (not copies); the third text encoder is None."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline(
        transformer=networks.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=networks.text_encoder,
        tokenizer=new_tokenizer(),
        text_encoder_2=networks.text_encoder_2,
        tokenizer_2=new_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(networks: "Networks", vae: "AutoencoderKL", folder: Path) -> None:
    """Write the pipeline as float16 safetensors; the modules given keep their precision."""
    import copy

    pipeline = assemble(copy.deepcopy(networks), copy.deepcopy(vae))
    pipeline.to(dtype=torch.float16)
    pipeline.vae.register_to_config(_name_or_path="")  # diffusers notes where a model was loaded from
    pipeline.save_pretrained(folder, safe_serialization=True)


def load(folder: Path) -> "StableDiffusion3Pipeline":
    """Return the saved pipeline in float32."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw(
    pipeline: "StableDiffusion3Pipeline",
    prompts: Sequence[str],
    seed: int,
    steps: int = PROTOCOL.num_inference_steps,
    guidance: float = PROTOCOL.guidance_scale,
    batch_size: int = 128,
    bfloat16: bool = True,
) -> np.ndarray:
    """Return one picture per prompt, uint8 [N, 64, 64, 3], on the even grid that students use (1, .75, .5, .25).

    Noise depends on (seed, place in `prompts`) only."""
    pictures = []
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + index) for index in range(len(batch))]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            output: Any = pipeline(
                batch,
                sigmas=np.linspace(1, 0, steps + 1)[:-1],  # the stock grid of few steps ends in a nearly empty one
                guidance_scale=guidance,
                height=PROTOCOL.height,
                width=PROTOCOL.width,
                generator=generators,
                output_type="np",
                **PROTOCOL.call_arguments,
            )
        pictures.append(np.round(output.images * 255).astype(np.uint8))
    return np.concatenate(pictures)
