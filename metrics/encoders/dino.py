"""DINO's vision transformers: the class token after the last norm.

    encoder                  model                        pictures                                         states
    facebook/dinov3-vitl16   DINOv3 ViT-L/16, 4 registers floats, both sides to 224, bilinear, antialiased 1024
    facebook/dinov2-base     DINOv2 ViT-B/14              PIL bicubic, shorter side to 256, middle 224      768
    facebook/dinov2-large    DINOv2 ViT-L/14              the same                                         1024
    dinov2l/squash           DINOv2 ViT-L/14              PIL bicubic, both sides to 224 (FD-DINOv2)       1024

Modules: transformers' DINOv3ViTModel and Dinov2Model. The published files have the keys of transformers 4; RENAMES
says where they go. Source: arXiv:2508.10104 (DINOv3), arXiv:2304.07193 (DINOv2).
Axes: B images, C x H x W pixels, D state size.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from metrics.base import UserError
from metrics.encoders.published import tower
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Preprocessing, Resized
from metrics.weights import Weights, manifest

if TYPE_CHECKING:
    from transformers import Dinov2Model, DINOv3ViTModel

FILE = "model.safetensors"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV3_L: dict[str, Any] = {**tower(1024, 24, 16), "patch_size": 16, "num_register_tokens": 4, "image_size": 224}
DINOV2: dict[str, Any] = {"patch_size": 14, "image_size": 518, "mlp_ratio": 4, "layer_norm_eps": 1e-6}
DINOV2_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, **DINOV2}
DINOV2_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, **DINOV2}
RENAMES = (
    (r"^layer\.", "model.layer."),  # DINOv3
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1_proj."),  # DINOv2, from here on
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.(query|key|value)_proj\.", lambda match: f".{match[1][0]}_proj."),
)


def native_key(key: str) -> str:
    """Return where a tensor of a published file goes in transformers 5."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


@dataclass(frozen=True, kw_only=True)
class ShorterSideThenCrop:
    """PIL bicubic: the shorter side to `side`, then the middle square of `crop` pixels, then the norm."""

    side: int
    crop: int

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return float32 [B, 3, crop, crop], normalised."""
        squares = []
        for image in images:
            shorter = min(image.size)
            width, height = (int(self.side * length / shorter) for length in image.size)
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - self.crop) // 2, (height - self.crop) // 2
            squares.append(resized.crop((left, top, left + self.crop, top + self.crop)))
        return squashed(self.crop).from_pil(squares)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Raises UserError: diversity is no reward of a single picture."""
        raise UserError("no differentiable form of this preprocessing; call the metric on pictures")


def squashed(side: int) -> Resized:
    """Return the preprocessing of FD-DINOv2: both sides, PIL bicubic, ImageNet's norm."""
    return Resized(size=(side, side), resize="squash", mean=IMAGENET_MEAN, std=IMAGENET_STD)


DINOV3_PICTURES = Resized(
    size=(224, 224),
    resize="squash",
    interpolation="bilinear",
    official="tensor",  # the library rescales to floats first, so nothing is rounded
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
DINOV2_PICTURES = ShorterSideThenCrop(side=256, crop=224)


class DinoFile:
    """One model in float32, loaded at first use; config: what its transformers config takes."""

    def __init__(self, weights: Weights, device: torch.device, config: Mapping[str, Any]) -> None:
        self.weights, self.device, self.config = weights, device, config

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the class token after the last norm [B, D], not normalised."""
        return self._model(pixel_values=pixels_BCHW).pooler_output

    @cached_property
    def _model(self) -> "DINOv3ViTModel | Dinov2Model":
        from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

        def make() -> Any:
            if "num_register_tokens" in self.config:
                return DINOv3ViTModel(DINOv3ViTConfig(**self.config))
            return Dinov2Model(Dinov2Config(**self.config))

        tensors = {native_key(name): value for name, value in self.weights.tensors(FILE).items()}
        where = f"{self.weights.folder() / FILE}: not the weights of this model ({{}}); {self.weights.mend}"
        return load_strictly(make, tensors, where, self.device)


def _image(
    weights: str, device: torch.device, config: Mapping[str, Any], pictures: Preprocessing
) -> dict[str, Encoder]:
    file = DinoFile(manifest(weights), device, config)
    return {"image": Encoder(reads="image", forward=file.image, preprocessing=lambda: pictures, weights=file.weights)}


@register_encoders("facebook/dinov3-vitl16")
def dinov3_l(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image"} of DINOv3 ViT-L/16."""
    return _image("dinov3-vitl16", device, DINOV3_L, DINOV3_PICTURES)


@register_encoders("facebook/dinov2-base")
def dinov2_b(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image"} of DINOv2 ViT-B/14."""
    return _image("dinov2-base", device, DINOV2_B, DINOV2_PICTURES)


@register_encoders("facebook/dinov2-large")
def dinov2_l(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image"} of DINOv2 ViT-L/14."""
    return _image("dinov2-large", device, DINOV2_L, DINOV2_PICTURES)


@register_encoders("dinov2l/squash")
def dinov2_l_squash(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image"} of DINOv2 ViT-L/14 with FD-DINOv2's resizing."""
    return _image("dinov2-large", device, DINOV2_L, squashed(224))
