"""Pictures: read safely, and converted between PIL, arrays and tensors in this one place.

A picture is untrusted. Only four formats are decoded, the header's size is checked before a pixel is, and whatever
is wrong ends in a UserError that names the file. What a metric sees is always 8-bit RGB.

Axes: B images, C = 3 channels (RGB), H x W pixels. Float pictures lie in [0, 1], uint8 ones in [0, 255].
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.base import UserError

MAX_PIXELS = 8192 * 8192  # of one picture: 64 MP, 192 MiB decoded
MAX_ASPECT = 32  # resizing the shorter side to 224 would turn a 1 x 30,000 line into 1.5 GP
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Convert to 8-bit RGB without guessing. CMYK and 16-bit modes are refused: their conversion needs a choice.
RGB_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "PA", "1"})

Picture = Image.Image | str | Path | np.ndarray | Tensor


def read_image(path: str | Path) -> Image.Image:
    """Return the file's picture, decoded, as 8-bit RGB (alpha is dropped, as the official scorers do).

    Raises: UserError naming path and reason where the file is missing, is no picture, is truncated or damaged, is
    larger than MAX_PIXELS, is longer than MAX_ASPECT times its width, or has a mode that is not 8 bits a channel.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = _problem(image)
            if not problem:
                image.load()
                return image.convert("RGB")
    except FileNotFoundError:
        problem = "no such file; generate it again, or correct the path"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = f"more than {MAX_PIXELS:,} pixels; the largest picture read is 8192x8192"
    except Image.UnidentifiedImageError:
        problem = f"not a picture in any of {', '.join(FORMATS)}"
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # what PIL raises for damaged data
        problem = f"truncated or damaged ({error}); generate it again"
    raise UserError(f"{path}: {problem}")


def as_pil(picture: Picture, name: str = "image") -> Image.Image:
    """Return any accepted picture as an 8-bit RGB PIL image.

    Accepts a PIL image, a path, an array [H, W, 3] or a tensor [3, H, W]; uint8, or floats in [0, 1].
    Raises: UserError naming `name` where it is none of these.
    """
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        if problem := _problem(picture):
            raise UserError(f"{name}: {problem}")
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.array(picture))
        picture = picture.permute(2, 0, 1) if picture.ndim == 3 else picture
    if not isinstance(picture, Tensor):
        raise UserError(f"{name}: {type(picture).__name__} is no picture; pass a PIL image, a path or an array")
    if picture.ndim != 3 or picture.shape[0] != 3:
        shape = tuple(picture.shape)
        raise UserError(f"{name}: shape {shape}; pass an array [H, W, 3] or a tensor [3, H, W]")
    return to_pil(picture[None])[0]


def to_tensor(images: Iterable[Image.Image]) -> Tensor:
    """Return float32 [B, 3, H, W] in [0, 1] of RGB images of one size. Raises UserError where sizes differ."""
    arrays = [np.asarray(image) for image in images]
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise UserError(f"images of different sizes cannot be one tensor: {sorted(s[:2] for s in sizes)[:3]}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div(255)


def to_uint8(images_BCHW: Tensor) -> Tensor:
    """Return uint8 [B, 3, H, W]: clamped to [0, 1], times 255, rounded, as diffusers' postprocessing does.

    uint8 input passes unchanged. Raises UserError naming the first image with a NaN or infinite pixel.
    """
    if images_BCHW.dtype == torch.uint8:
        return images_BCHW
    finite = images_BCHW.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise UserError(f"image {int(finite.logical_not().nonzero()[0])}: a pixel is NaN or infinite")
    return images_BCHW.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pil(images_BCHW: Tensor) -> list[Image.Image]:
    """Return B RGB images of a tensor [B, 3, H, W], uint8 or floats in [0, 1]."""
    arrays = to_uint8(images_BCHW).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def as_pils(pictures: Sequence[Picture] | Tensor | np.ndarray, first: int = 0) -> list[Image.Image]:
    """Return accepted pictures (`as_pil`) as RGB images; an error names the position, counted from `first`."""
    return [as_pil(picture, f"image {index}") for index, picture in enumerate(pictures, first)]


def _problem(image: Image.Image) -> str:
    """Return why a picture of this header is not read, or "" where it is."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"{width}x{height} pixels; the largest picture read is 8192x8192"
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        return f"{width}x{height} pixels; sides may differ by a factor of at most {MAX_ASPECT}"
    if image.mode not in RGB_MODES:
        return f"mode {image.mode!r} is not 8-bit RGB; convert it first"
    return ""
