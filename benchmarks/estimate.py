"""What a run will cost, before it is started: operations of one network pass, memory, hours on a stated device.

    operations  counted by torch while the denoiser runs on tensors without contents (device "meta"), at true size
    hours       images × passes × operations / (EFFICIENCY × the device's peak)
    memory      weights of all components in the protocol's dtype + what decoding one block holds

Nothing is loaded: configs and headers tell all. A pass of a denoiser whose inputs are not known here is put at
2 × parameters × tokens. EFFICIENCY is an assumption; attention over long sequences and small batches stay below it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import checkpoints
from benchmarks.budget import BYTES_PER_DRAWN_PIXEL
from benchmarks.config import UserError, nearest
from benchmarks.models import Pipeline
from benchmarks.protocol import Protocol

if TYPE_CHECKING:
    from torch import Tensor

EFFICIENCY = 0.3  # share of its peak that a denoiser reaches
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Device:
    """Peak operations a second of dense matrix products in bfloat16, and memory, by the manufacturer's data sheet."""

    operations: float
    memory_gib: float


DEVICES: Mapping[str, Device] = {
    "h200": Device(989e12, 141),
    "h100": Device(989e12, 80),
    "a100": Device(312e12, 80),
    "l40s": Device(362e12, 48),
    "a10": Device(125e12, 24),
    "rtx4090": Device(165e12, 24),
}


@dataclass(frozen=True)
class Estimate:
    """The cost of one picture's network pass, and of a block in memory."""

    operations_per_pass: int  # of one picture, without guidance
    counted: bool  # by torch; else by rule of thumb
    weights_bytes: int
    decoding_bytes: int  # of one block

    @property
    def bytes(self) -> int:
        """Memory that drawing needs."""
        return self.weights_bytes + self.decoding_bytes

    def seconds(self, passes: int, device: Device) -> float:
        """Return how long so many passes take on a device."""
        return passes * self.operations_per_pass / (EFFICIENCY * device.operations)


def find_device(name: str) -> Device:
    """Return a device by name. Raises UserError for an unknown one."""
    if name not in DEVICES:
        raise UserError(f"--plan-for {name}: unknown device; {nearest(name, DEVICES)}")
    return DEVICES[name]


def estimate(model: Pipeline, protocol: Protocol, block_size: int) -> Estimate:
    """Return what drawing with a model under a protocol costs."""
    operations = count_operations(model, protocol)
    tokens = protocol.height * protocol.width // model.pixels_per_token**2
    pixels = protocol.height * protocol.width
    return Estimate(
        operations_per_pass=operations or 2 * model.parameters * tokens,
        counted=operations is not None,
        weights_bytes=sum(model.components.values()) * BYTES[protocol.dtype],
        decoding_bytes=block_size * pixels * BYTES_PER_DRAWN_PIXEL * BYTES[protocol.dtype] // BYTES["float32"],
    )


def count_operations(model: Pipeline, protocol: Protocol) -> int | None:
    """Return the floating-point operations of one pass for one picture (a multiply-add is two).

    None for a denoiser whose inputs are not known here."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if (shadow := without_contents(model, protocol)) is None:
        return None
    network, inputs = shadow
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**inputs)
    return int(counter.get_total_flops())


def without_contents(model: Pipeline, protocol: Protocol) -> "tuple[Any, dict[str, Any]] | None":
    """Return (the denoiser at true size on device "meta", its inputs for one picture), None as `count_operations`."""
    import diffusers
    import torch

    config = checkpoints.read_json(model.files.denoiser / "config.json")
    name = str(config.get("_class_name"))
    if name not in _INPUTS:
        return None
    height, width = (pixels // model.pixels_per_latent for pixels in (protocol.height, protocol.width))
    text = TextTokens(_clip_tokens(model), protocol.call_arguments.get("max_sequence_length"))
    with torch.device("meta"):
        network = getattr(diffusers, name).from_config(config)
        return network, _INPUTS[name](network.config, height, width, text)


@dataclass(frozen=True)
class TextTokens:
    """Length of a prompt in tokens: of a CLIP text encoder, and what the protocol asks of the other one."""

    clip: int
    asked: Any  # None: the pipeline's default

    def other(self, default: int) -> int:
        """Return the length of the other encoder's part."""
        return default if self.asked is None else int(self.asked)


def _clip_tokens(model: Pipeline) -> int:
    path = model.files.folder / "tokenizer" / "tokenizer_config.json"
    return int(checkpoints.read_json(path).get("model_max_length", 77)) if path.is_file() else 77


def _sd3(config: Any, height: int, width: int, text: TextTokens) -> dict[str, "Tensor"]:
    import torch

    tokens = text.clip + text.other(256)  # zeros stand in for a T5 that is left out
    return {
        "hidden_states": torch.empty(1, config.in_channels, height, width),
        "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
        "pooled_projections": torch.empty(1, config.pooled_projection_dim),
        "timestep": torch.empty(1),
    }


def _sdxl(config: Any, height: int, width: int, text: TextTokens) -> dict[str, Any]:
    import torch

    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.empty(1, config.in_channels, height, width),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, text.clip, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)},
    }


def _flux2(config: Any, height: int, width: int, text: TextTokens) -> dict[str, "Tensor"]:
    import torch

    words, image = text.other(512), height * width // 4  # latents are packed two by two
    axes = len(config.axes_dims_rope)
    return {
        "hidden_states": torch.empty(1, image, config.in_channels),
        "encoder_hidden_states": torch.empty(1, words, config.joint_attention_dim),
        "timestep": torch.empty(1),
        "img_ids": torch.empty(1, image, axes),
        "txt_ids": torch.empty(1, words, axes),
    }


def _dit(config: Any, height: int, width: int, text: TextTokens) -> dict[str, "Tensor"]:
    import torch

    return {
        "hidden_states": torch.empty(1, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.empty(1),
        "class_labels": torch.zeros(1, dtype=torch.long),
    }


_INPUTS: Mapping[str, Callable[[Any, int, int, TextTokens], dict[str, Any]]] = {
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _sdxl,
    "Flux2Transformer2DModel": _flux2,
    "DiTTransformer2DModel": _dit,
}
