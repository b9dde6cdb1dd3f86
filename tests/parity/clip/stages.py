"""What is recorded of a scorer of the CLIP family, whoever its authors are; runs in their environments.

    ids         of each prompt, as the text tower reads them
    pixels      sha256 of each picture's grey levels; where the authors resize floats, values of a few pictures
    image, text normalised embeddings of a few pairs
    score       of each pair
    gradient    of a few pairs' scores in the preprocessed pixels, and its largest entry
    raised      on which modes of a picture the authors' code fails (stages are of RGB)

Of pixels and gradients every STRIDE-th row and column is kept.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.parity import common

ROOT = Path(__file__).resolve().parents[3]
STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class Official:
    """A scorer as its authors wrote it, one pair at a time."""

    ids: Callable[[str], Tensor]  # of a prompt, [1, L]
    pixels: Callable[[Image.Image], Tensor]  # of an RGB picture, [1, 3, H, W]
    image: Callable[[Tensor], Tensor]  # of pixels, [1, D]
    text: Callable[[str], Tensor]  # of a prompt, [1, D]
    reward: Callable[[Tensor, str], Tensor]  # of pixels and a prompt: the score, with a gradient
    score: Callable[[Image.Image, str], float] | None = None  # the authors' own call, where they have one
    floats: bool = False  # pictures are resized as floats, so that pixels are no grey levels

    @torch.no_grad()
    def call(self, picture: Image.Image, prompt: str) -> float:
        """Return the score of a picture in any mode."""
        return self.score(picture, prompt) if self.score else self.reward(self.pixels(picture), prompt).item()


def record(official: Official, count: int = common.PAIRS) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return all stages of the first pairs, and the pixels' digests."""
    stages: dict[str, list[np.ndarray]] = {}
    digests = []

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            stages.setdefault(name, []).append(value.detach().numpy())

    for index, (picture, prompt) in enumerate(common.pairs(count)):
        pixels = official.pixels(picture)
        if not official.floats:
            digests.append(common.digest(common.grey_levels(pixels[0].numpy(), exact=True)))
        add(ids=official.ids(prompt)[0].to(torch.uint16))
        add(score=torch.tensor(official.call(picture, prompt), dtype=torch.float32))
        if index < common.SHOWN:
            add(image=F.normalize(official.image(pixels))[0], text=F.normalize(official.text(prompt))[0])
            if official.floats:
                add(pixels=pixels[0, :, ::STRIDE, ::STRIDE])
            pixels = pixels.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(official.reward(pixels, prompt).sum(), pixels)
            add(gradient=gradient[0, :, ::STRIDE, ::STRIDE], gradient_max=gradient.abs().max())
    about: dict[str, object] = {"raised": common.raised(lambda picture: official.call(picture, "a"), 2 * common.SIDE)}
    if digests:
        about["pixels"] = digests
    return {name: np.stack(values) for name, values in stages.items()}, about


def save(name: str, stages: dict[str, np.ndarray], about: dict[str, Any], packages: Sequence[str]) -> None:
    """Write the golden of one metric, and with it the versions of the packages that made it; say how large it is."""
    path = ROOT / f"{name}.npz"
    versions = {package: importlib.metadata.version(package) for package in (*packages, "torch", "torchvision")}
    versions |= {package: importlib.metadata.version(package) for package in ("numpy", "pillow")}
    common.save(path, stages, about | {"official": packages[0], "versions": versions})
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
