"""Preprocessing: from pictures to what an encoder reads, in two forms that are declared side by side.

    from_pil      the official one, on 8-bit pictures: PIL resizes (antialiased) and rounds to grey levels, except
                  where the authors' code itself resizes floats (`official = "tensor"`): then the two are one
    from_tensor   the differentiable one, on floats in [0, 1]: antialiased resize, neither rounded nor clamped

For pictures that already have the encoder's size the two agree to float rounding. Otherwise they differ by what
`python -m metrics.gap` prints, most where PIL clips what overshoots a hard edge. Equal preprocessings compare equal,
so a batch is preprocessed once for all encoders that share one.

Axes: B images, C = 3 channels, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.base import UserError
from metrics.images import to_tensor

Resize = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
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
    """Resize, crop or pad around the centre, normalise: the preprocessing of CLIP and its relatives.

    `crop_offset` says how an odd border is split: OpenAI, torchvision and open_clip round (H - h) / 2 half to even,
    transformers rounds it down. That moves the crop by a pixel for every other non-square picture.
    """

    size: tuple[int, int]  # H, W of the encoder's input
    # "shortest": the shorter side to H = W, then crop; "longest": the longer one, then a black border (normalised
    # after padding); "squash": both sides, whatever the aspect ratio
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    antialias: bool = True  # of floats; PIL always does
    official: Literal["pil", "tensor"] = "pil"  # what the authors' code resizes
    crop_offset: Literal["round", "floor"] = "round"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.resize != "squash" and self.size[0] != self.size[1]:
            raise UserError(f"an encoder of {self.size[0]}x{self.size[1]} pixels needs the preprocessing 'squash'")
        if self.official == "pil" and (self.resize == "longest" or not self.antialias):
            raise UserError("padding, or resizing without antialias, is done on floats: say official='tensor'")

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return float32 [B, 3, H, W], normalised."""
        if self.official == "tensor":
            return torch.cat([self.from_tensor(to_tensor([image])) for image in images])
        resample = Image.Resampling[self.interpolation.upper()]
        pixels = []
        for image in images:
            height, width = self._resized(image.height, image.width)
            top, left = self._corner(height, width)
            resized = np.asarray(image.resize((width, height), resample))
            pixels.append(resized[top : top + self.size[0], left : left + self.size[1]])
        # NumPy, not torch: this runs ahead on a thread of its own, and torch would start a second team of OpenMP
        # threads for it, beside which the encoders' small operations wait for each other longer.
        floats_BHWC = np.stack(pixels).astype(np.float32) / np.float32(255)
        normal_BHWC = (floats_BHWC - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normal_BHWC).permute(0, 3, 1, 2)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] (float64 of float64), normalised; differentiable in images_BCHW, in [0, 1]."""
        height, width = self._resized(images_BCHW.shape[-2], images_BCHW.shape[-1])
        resized = images_BCHW if images_BCHW.dtype == torch.float64 else images_BCHW.float()
        if resized.shape[-2:] != (height, width):
            resized = F.interpolate(resized, (height, width), mode=self.interpolation, antialias=self.antialias)
        if self.resize == "longest":
            return self._normalise(_pad(resized, self.size))
        top, left = self._corner(height, width)
        return self._normalise(resized[..., top : top + self.size[0], left : left + self.size[1]])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing, before cropping or padding."""
        if self.resize == "squash":
            return self.size
        side = self.size[0]
        if self.resize == "longest":
            scale = side / max(height, width)
            return round(height * scale), round(width * scale)
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Return top and left of the crop in a resized picture."""
        borders = height - self.size[0], width - self.size[1]
        if self.crop_offset == "floor":
            return borders[0] // 2, borders[1] // 2
        return round(borders[0] / 2), round(borders[1] / 2)

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        mean_C11 = images_BCHW.new_tensor(self.mean)[:, None, None]
        std_C11 = images_BCHW.new_tensor(self.std)[:, None, None]
        return (images_BCHW - mean_C11) / std_C11


def _pad(images_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the images in the middle of black ones of the given size; an odd border is longer below and right."""
    rows, columns = size[0] - images_BCHW.shape[-2], size[1] - images_BCHW.shape[-1]
    return F.pad(images_BCHW, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


@dataclass(frozen=True, kw_only=True)
class SquareFirst:
    """Cut the middle square out of a picture, resize it by PIL's Lanczos, and go on with another preprocessing."""

    side: int
    then: Resized

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return float32 [B, 3, H, W], normalised."""
        squares = []
        for image in images:
            edge = min(image.size)
            left, top = round((image.width - edge) / 2), round((image.height - edge) / 2)
            square = image.crop((left, top, left + edge, top + edge))
            squares.append(square.resize((self.side, self.side), Image.Resampling.LANCZOS))
        return self.then.from_pil(squares)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Raises UserError: Lanczos has no differentiable form here."""
        raise UserError("Lanczos resizing has no gradient; call the metric instead of its reward")


@dataclass(frozen=True, kw_only=True)
class Uint8:
    """No preprocessing: the 8-bit picture itself, as detectors and OCR engines read it."""

    def from_pil(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Return B arrays [H, W, 3], uint8; sizes may differ."""
        return [np.asarray(image) for image in images]

    def from_tensor(self, images_BCHW: Tensor) -> list[np.ndarray]:
        """Raises UserError: 8-bit pictures have no gradient."""
        raise UserError("8-bit pictures have no gradient; call the metric instead of its reward")
