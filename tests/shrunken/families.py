"""The families' pipelines with random weights: true classes and components, narrow and shallow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from benchmarks.protocol import Protocol, write_protocol
from tests.shrunken import tokenizers
from trainers.backbones.sit_checkpoint import flow_solver

SIDE = 32  # pixels; every family's latents are 4 x 4 (FLUX.2: patches of them)
LENGTH = 16  # tokens of a prompt


def make(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a family's shrunken checkpoint with a protocol of its size; the same seed gives the same bytes."""
    build, arguments = FAMILIES[family]
    return _written(build, folder, seed, SIDE, arguments, num_inference_steps=4, guidance_scale=3.0)


def make_wide(folder: Path, seed: int = 0) -> Path:
    """Write a shrunken SD3 that draws pictures of true sizes, 512 x 512 and up to 1024 x 1024, in little time."""
    one_pass = {"num_inference_steps": 1, "guidance_scale": 1.0}
    return _written(lambda: sd3(with_t5=False, wide=True), folder, seed, 512, {"max_sequence_length": 0}, **one_pass)


def make_heavy(folder: Path, seed: int = 0) -> Path:
    """Write a random SD3 of 27 million parameters: on a CPU, what is around its network counts for little."""
    four_steps = {"num_inference_steps": 4, "guidance_scale": 1.0}
    return _written(
        lambda: sd3(with_t5=False, heavy=True), folder, seed, 128, {"max_sequence_length": 0}, **four_steps
    )


def _written(
    build: Callable[[], Any], folder: Path, seed: int, side: int, arguments: dict[str, Any], **protocol: Any
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = build()
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                _stir(component)
    pipeline.save_pretrained(folder)
    write_protocol(Protocol(height=side, width=side, call_arguments=arguments, **protocol), folder)
    return folder


def sd3(with_t5: bool, wide: bool = False, heavy: bool = False) -> StableDiffusion3Pipeline:
    """SD3-M, SD3.5: two CLIP text encoders, T5 or none, a joint transformer. wide: a latent is 32 pixels a side.

    heavy: 8 layers of width 320."""
    narrow = _clip_text(16)
    t5: Any = None
    if with_t5:
        from transformers import T5Config, T5EncoderModel

        tokenizer = tokenizers.t5()
        t5 = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                     feed_forward_proj="gated-gelu")
        )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=16, out_channels=16, num_layers=8 if heavy else 2,
            attention_head_dim=64 if heavy else 16, num_attention_heads=5 if heavy else 2, joint_attention_dim=32,
            caption_projection_dim=320 if heavy else 32, pooled_projection_dim=32,
            pos_embed_max_size=16 if wide or heavy else 8, qk_norm="rms_norm", dual_attention_layers=(0,),
        ),
        vae=_autoencoder(
            16, shift_factor=0.0609, scaling_factor=1.5305, quantised=False, widths=(4,) * 6 if wide else (8,) * 4
        ),
        text_encoder=narrow, tokenizer=tokenizers.clip(LENGTH),
        text_encoder_2=_clip_text(16), tokenizer_2=tokenizers.clip(LENGTH),
        text_encoder_3=t5, tokenizer_3=tokenizers.t5() if with_t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def sdxl(prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """SDXL: two text encoders, a UNet with size and crop conditioning, eps or v_prediction."""
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16, 32), norm_num_groups=8,
            layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2), use_linear_projection=True, cross_attention_dim=32,
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
        ),
        vae=_autoencoder(4, scaling_factor=0.13025),
        text_encoder=_clip_text(16, projected=False), tokenizer=tokenizers.clip(LENGTH),
        text_encoder_2=_clip_text(16), tokenizer_2=tokenizers.clip(LENGTH),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            timestep_spacing="leading", prediction_type=prediction_type,
        ),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def sit() -> DiTPipeline:
    """SiT as its converted checkpoints: DiT's network with a scheduler of flows."""
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
            patch_size=2, num_embeds_ada_norm=1000, norm_eps=1e-6,
        ),
        vae=_autoencoder(4, scaling_factor=0.18215),
        scheduler=flow_solver(),
    )  # fmt: skip


def flux2() -> Flux2KleinPipeline:
    """FLUX.2 klein: double- and single-stream blocks, a language model whose layers 9, 18 and 27 are read."""
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        vae=AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
            sample_size=SIDE,
        ),
        text_encoder=_qwen3(layers=28), tokenizer=tokenizers.qwen(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    """Z-Image: one stream of image and prompt tokens, refined apart first."""
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 6, 6], axes_lens=[128, 32, 32],
        ),
        vae=_autoencoder(16, shift_factor=0.1159, scaling_factor=0.3611, quantised=False),
        text_encoder=_qwen3(layers=3), tokenizer=tokenizers.qwen(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def _autoencoder(
    channels: int, quantised: bool = True, widths: tuple[int, ...] = (8, 8, 8, 8), **factors: float
) -> AutoencoderKL:
    """Return an autoencoder that halves a side at all its widths but the last."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths, layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        sample_size=SIDE, use_quant_conv=quantised, use_post_quant_conv=quantised, **factors,
    )  # fmt: skip


def _clip_text(width: int, projected: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = CLIPTextConfig(
        vocab_size=len(tokenizers.clip(LENGTH)), hidden_size=width, intermediate_size=32, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(settings)


def _qwen3(layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizers.qwen()), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def _stir(module: torch.nn.Module) -> None:
    """Move weights and statistics off their start, where adaptive and batch norms would have no effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd3": (lambda: sd3(with_t5=False), {"max_sequence_length": 0}),
    "sd3-t5": (lambda: sd3(with_t5=True), {"max_sequence_length": LENGTH}),
    "sdxl": (sdxl, {}),
    "sdxl-v": (lambda: sdxl("v_prediction"), {}),
    "sit": (sit, {}),
    "flux2": (flux2, {"max_sequence_length": LENGTH}),
    "z_image": (z_image, {"max_sequence_length": LENGTH}),
}
