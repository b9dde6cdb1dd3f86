"""Shrunken DINOv3, DINOv2 and CLIP at 336 pixels: the configs that both sides of the parity run make.

Of the DINOs, patch sizes, registers and the grid of positions are the true ones, so that every preprocessing and the
interpolation of positions are those of the published models.
"""

from typing import Any

from tests.parity import common

PICTURES = 256
DINOV3: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16,
    "num_register_tokens": 4, "image_size": 224,
}  # fmt: skip
DINOV2: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14, "image_size": 518,
    "mlp_ratio": 4, "layer_norm_eps": 1e-6,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 56,
    "image_size": 336, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 49408,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 49407,
}  # fmt: skip
CLIP: dict[str, Any] = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 32}


def pictures() -> list[Any]:
    """Return RGB pictures of all shapes, those of every parity run."""
    return [picture for picture, _ in common.pairs(PICTURES)]
