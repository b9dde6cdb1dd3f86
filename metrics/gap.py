"""How far the differentiable path is from the official one: `python -m metrics.gap [METRIC ...]`.

A reward sees floats, resized without rounding; the metric sees what PIL made of 8-bit pictures. This prints, for each
preprocessing with two forms, the difference of the pixels over seeded pictures of several sizes, and, for metrics
whose weights are here, that of the scores (as the self-check does, which keeps it for the metric's page). The
pictures are half smooth and half noise: real ones lie between.

Axes: N pictures, B = 1 picture, C = 3 channels, H x W pixels.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.base import Prompt, UserError, available, nearest
from metrics.commands import deferred, guarded, parsed
from metrics.encoders.qwen2_vl import Patches, SmartPatches
from metrics.images import to_tensor
from metrics.preprocessing import CLIP_STD, Preprocessing, Resized

SIZES = ((100, 100), (256, 256), (512, 512), (1024, 1024), (768, 1344), (640, 320), (224, 224))  # H, W
PROMPT = Prompt(text="a photo", metadata={"class": 0})
PROFILES: dict[str, Preprocessing] = {
    "shorter side to 224, crop": Resized(size=(224, 224), crop_offset="floor"),
    "both sides to 224": Resized(size=(224, 224), resize="squash"),
    "both sides to 378": Resized(size=(378, 378), resize="squash"),
    "multiples of 28, about 200,704 pixels": SmartPatches(),
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
    gaps = []
    for picture in pictures:
        difference = _values(preprocessing.from_tensor(to_tensor([picture])))
        difference = difference - _values(preprocessing.from_pil([picture]))
        gaps.append((difference * torch.tensor(CLIP_STD)[:, None]).abs().flatten())
    gap = torch.cat(gaps)
    return gap.mean().item(), gap.max().item()


def _values(prepared: Tensor | Patches) -> Tensor:
    """Return normalised values [..., 3, pixels], whatever form an encoder reads them in."""
    values = prepared.values_PD if isinstance(prepared, Patches) else prepared
    return values.reshape(len(values), 3, -1)


def score_gap(identity: str, pictures: Sequence[Image.Image], prompt: Prompt = PROMPT) -> Tensor:
    """Return |reward - score| [N] of each picture. Raises UserError where weights are missing."""
    from metrics.loaded import LoadedMetric

    metric = LoadedMetric(identity)
    with torch.no_grad():
        rewards = torch.cat([metric.reward(to_tensor([picture]), [prompt]).cpu() for picture in pictures])
    return (rewards - metric(pictures, [prompt] * len(pictures))).abs()


def run(metrics: Sequence[str] = ()) -> int:
    """Print the gaps; return the exit code. Raises UserError where a metric has no reward or no weights."""
    known = available()
    for metric in metrics:
        if metric not in known:
            raise UserError(f"unknown metric {metric!r}; {nearest(metric, known)}")
    for name, preprocessing in PROFILES.items():
        mean, worst = pixel_gap(preprocessing, seeded_pictures())
        print(f"{name}: pixels differ by {mean:.4f} of the [0, 1] scale on average, {worst:.3f} at most")
    for metric in metrics:
        gap = score_gap(metric, list(seeded_pictures()))
        print(f"{metric}: scores differ by {gap.mean():.2g} on average, {gap.max():.2g} at most")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from typing import Annotated

    import tyro

    @deferred
    def command(metrics: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> int:
        return run(metrics)

    cli = partial(tyro.cli, command)
    return guarded(lambda: parsed(cli, arguments, prog="python -m metrics.gap", description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
