"""Preprocessing: from pictures to what an encoder reads, in two forms that are declared side by side.

    from_pil      the official one, on 8-bit pictures: PIL resizes (antialiased) and rounds to grey levels
    from_tensor   the differentiable one, on floats in [0, 1]: antialiased resize, neither rounded nor clamped

For pictures that already have the encoder's size the two agree to float rounding; otherwise they differ by 0.014 to
0.027 of the [0, 1] scale at single pixels (bicubic, 100 to 1024 px). Equal preprocessings compare equal, so that a
batch is preprocessed once for all encoders that share one.

Axes: B images, C = 3 channels, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from metrics.base import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocessing(Protocol):
    """Hashable; equal objects do the same."""

    def from_pil(self, images: Sequence[Image.Image]) -> Any:
        """Return the encoder's input for B RGB images."""
        ...

    def from_tensor(self, images_BCHW: Tensor) -> Any:
        """Return the encoder's input for floats in [0, 1], differentiably. Raises UserError where that cannot be."""
        ...


@dataclass(frozen=True, kw_only=True)
class Resized:
    """Resize, crop around the centre, normalise: the preprocessing of CLIP and its relatives.

    `crop_offset` says how an odd border is split: OpenAI, torchvision and open_clip round (H - h) / 2 half to even,
    transformers rounds it down. That moves the crop by a pixel for every other non-square picture.
    """

    size: tuple[int, int]  # H, W of the encoder's input
    resize: Literal["shortest", "squash"] = "shortest"  # squash: to `size` whatever the aspect ratio
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_offset: Literal["round", "floor"] = "round"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return float32 [B, 3, H, W], normalised."""
        pixels = [np.asarray(self._crop(self._resize(image), *image.size[::-1])) for image in images]
        return self._normalise(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W], normalised; differentiable in images_BCHW, floats in [0, 1]."""
        height, width = images_BCHW.shape[-2:]
        return self._normalise(self._crop(self._resize(images_BCHW.float()), height, width))

    def __str__(self) -> str:
        crop = ", centre crop" if self.resize == "shortest" else ""
        return f"{self.interpolation} to {self.size[0]}x{self.size[1]} ({self.resize}{crop}), normalised"

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Return the size after resizing, before cropping."""
        if self.resize == "squash":
            return self.size
        short = max(self.size)
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short

    def _resize(self, image: Any) -> Any:
        height, width = TF.get_size(image)
        mode = InterpolationMode(self.interpolation)
        return TF.resize(image, list(self._target(height, width)), interpolation=mode, antialias=True)

    def _crop(self, image: Any, height: int, width: int) -> Any:
        borders = [full - part for full, part in zip(self._target(height, width), self.size, strict=True)]
        top, left = (round(b / 2) if self.crop_offset == "round" else b // 2 for b in borders)
        return TF.crop(image, top, left, *self.size)

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        return TF.normalize(images_BCHW, list(self.mean), list(self.std))


@dataclass(frozen=True, kw_only=True)
class Uint8:
    """No preprocessing: the 8-bit picture itself, as detectors and OCR engines read it."""

    def from_pil(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Return B arrays [H, W, 3], uint8; sizes may differ."""
        return [np.asarray(image) for image in images]

    def from_tensor(self, images_BCHW: Tensor) -> list[np.ndarray]:
        """Raises UserError: 8-bit pictures have no gradient."""
        raise UserError("8-bit pictures have no gradient; call the metric instead of its reward")

    def __str__(self) -> str:
        return "8-bit RGB at its own size"
