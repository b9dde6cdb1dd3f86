"""Record what transformers 4.57 makes of seeded, shrunken DINOv3, DINOv2 and CLIP: tox -e parity-dino

    dinov3    DINOv3ViTImageProcessorFast, pooler_output        (DP-DMD's diversity)
    dinov2    BitImageProcessor, pooler_output                  (its monitor during training)
    squash    PIL bicubic to 224 x 224, ImageNet's norm, pooler (FD-DINOv2, as dgm-eval reads pictures)
    clip336   middle square, PIL bicubic to 336, image_embeds   (CMMD, as its authors' code reads pictures)
    cmmd      of the first half of these embeddings and the second, kernel by kernel in float64

The layouts of the published files (keys, shapes) are recorded, too: ours has to read them.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity import common
from tests.parity.dino import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "dino" / "shrunken.npz"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Prepare = Callable[[Image.Image], torch.Tensor]


def seeded(model: torch.nn.Module) -> tuple[torch.nn.Module, np.ndarray]:
    """Return the model with seeded weights, and its layout as JSON."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    state = {name: torch.from_numpy(value) for name, value in common.seeded_weights(shapes).items()}
    model.load_state_dict(state, strict=False)
    return model.eval(), np.asarray(json.dumps(shapes, sort_keys=True))


def normalised(picture: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Return [3, H, W] of an RGB picture."""
    pixels = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def squash(picture: Image.Image) -> torch.Tensor:
    return normalised(picture.resize((224, 224), Image.Resampling.BICUBIC), IMAGENET_MEAN, IMAGENET_STD)


def square(picture: Image.Image) -> torch.Tensor:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cut = picture.crop((left, top, left + side, top + side))
    return normalised(cut.resize((336, 336), Image.Resampling.BICUBIC), CLIP_MEAN, CLIP_STD)


def of_processor(processor: Any) -> Prepare:
    return lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0]


@torch.no_grad()
def features(prepare: Prepare, forward: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    return np.concatenate([forward(prepare(picture)[None]).numpy() for picture in sizes.pictures()])


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return 1000 MMD^2 with exp(-||a - b||^2 / 200), diagonals included, pair by pair."""

    def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([np.exp(-((a - b) ** 2).sum() / 200) for a in first for b in second]))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def main() -> None:
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        DINOv3ViTConfig,
        DINOv3ViTImageProcessorFast,
        DINOv3ViTModel,
    )

    v3, v3_layout = seeded(DINOv3ViTModel(DINOv3ViTConfig(**sizes.DINOV3)))
    v2, v2_layout = seeded(Dinov2Model(Dinov2Config(**sizes.DINOV2)))
    clip, clip_layout = seeded(CLIPModel(CLIPConfig(**sizes.CLIP)))
    resized = BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=Image.Resampling.BICUBIC,
        image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
    )  # fmt: skip
    stages = {
        "dinov3": features(of_processor(DINOv3ViTImageProcessorFast()), lambda x: v3(x).pooler_output),
        "dinov2": features(of_processor(resized), lambda x: v2(x).pooler_output),
        "squash": features(squash, lambda x: v2(x).pooler_output),
        "clip336": features(square, clip.get_image_features),
        "dinov3_layout": v3_layout,
        "dinov2_layout": v2_layout,
        "clip336_layout": clip_layout,
    }
    unit = stages["clip336"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    stages["cmmd"] = np.asarray(cmmd(unit[: sizes.PICTURES // 2], unit[sizes.PICTURES // 2 :]))
    packages = ("transformers", "torch", "torchvision", "numpy", "pillow")
    common.save(GOLDEN, stages, {name: version(name) for name in packages})
    print({name: (value.shape, float(value.std())) for name, value in stages.items() if value.dtype.kind == "f"})


if __name__ == "__main__":
    sys.exit(main())
