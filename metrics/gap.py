"""How far the differentiable path is from the official one: `python -m metrics.gap [METRIC ...]`.

A reward sees floats, resized without rounding; the metric sees what PIL made of 8-bit pictures. This prints, for each
preprocessing with two forms, the difference of the pixels over seeded pictures of several sizes, and, for metrics
whose weights are here, that of the scores. The pictures are half smooth and half noise: real ones lie between.

Axes: N pictures, B = 1 picture, C = 3 channels, H x W pixels.
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.base import UserError
from metrics.images import to_tensor
from metrics.preprocessing import CLIP_STD, Preprocessing, Resized

SIZES = ((100, 100), (256, 256), (512, 512), (1024, 1024), (768, 1344), (640, 320), (224, 224))  # H, W
PROFILES: dict[str, Preprocessing] = {
    "shorter side to 224, crop": Resized(size=(224, 224), crop_offset="floor"),
    "both sides to 378": Resized(size=(378, 378), resize="squash"),
}


def seeded_pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Image.Image]:
    """Return for each size a smooth picture and one of noise, always the same ones."""
    for seed, (height, width) in enumerate(sizes):
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        coarse = Image.fromarray(noise[: max(height // 32, 2), : max(width // 32, 2)].copy())
        yield coarse.resize((width, height), Image.Resampling.BICUBIC)
        yield Image.fromarray(noise)


def pixel_gap(preprocessing: Preprocessing, pictures: Iterator[Image.Image]) -> tuple[float, float]:
    """Return mean and maximum of |from_tensor - from_pil| over all pixels, on the [0, 1] scale."""
    std_C11 = torch.tensor(CLIP_STD)[:, None, None]
    gaps = []
    for picture in pictures:
        difference = preprocessing.from_tensor(to_tensor([picture])) - preprocessing.from_pil([picture])
        gaps.append((difference * std_C11).abs().flatten())
    gap = torch.cat(gaps)
    return gap.mean().item(), gap.max().item()


def score_gap(identity: str, pictures: Sequence[Image.Image], prompt: str = "a photo") -> Tensor:
    """Return |reward - score| [N] of each picture. Raises UserError where weights are missing."""
    from metrics.loaded import LoadedMetric

    metric = LoadedMetric(identity)
    with torch.no_grad():
        rewards = torch.cat([metric.reward(to_tensor([picture]), [prompt]).cpu() for picture in pictures])
    return (rewards - metric(pictures, [prompt] * len(pictures))).abs()


def main(metrics: Sequence[str]) -> int:
    """Print the gaps; return the exit code."""
    for name, preprocessing in PROFILES.items():
        mean, worst = pixel_gap(preprocessing, seeded_pictures())
        print(f"{name}: mean {mean:.4f}, at most {worst:.3f} of the [0, 1] scale")
    for identity in metrics:
        try:
            gap = score_gap(identity, list(seeded_pictures()))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{identity}: scores differ by {gap.mean():.2g} on average, {gap.max():.2g} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
