"""Perceptual distance of two pictures: how far apart the features of a network's layers lie.

    d(a, b) = sum_l mean_xy sum_c w_lc (f_lcxy(a) - f_lcxy(b))^2        f_l = layer l, of unit length over channels c

Source: LPIPS, Zhang et al. 2018, arXiv:1801.03924, Eq. 1. `micro_perceptual` is that formula with w = 1 (the paper's
uncalibrated form) on the layers of micro CLIP's vision tower, for the micro world: its values are not LPIPS, and a
student trained with it has been trained on micro CLIP's features.
Axes: B pairs, C x H x W pixels in [0, 1]; a layer is [B, C, positions].
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from metrics.encoders import transformers_clip
from metrics.encoders.lpips import load_lpips
from metrics.encoders.towers import load_strictly
from metrics.lpips import lpips_distance
from metrics.weights import WeightFolder

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]  # of images [B, 3, H, W] in [0, 1]; distances [B]
Perceptual = Literal["lpips_vgg", "micro_perceptual"]
MICRO_CLIP = Path(metrics.__file__).parent / "micro" / "clip"
# The metrics that see by a distance's network: of a student that was trained with it they are no longer held out.
MEASURED_BY: dict[Perceptual, tuple[str, ...]] = {
    "lpips_vgg": ("lpips_diversity.vgg",),
    "micro_perceptual": ("micro_clip",),
}


def reduced(images: Tensor, size: int) -> Tensor:
    """Return images [B, 3, H, W] whose shorter side is at most `size`, antialiased; smaller ones as they are."""
    shorter = min(images.shape[-2:])
    if shorter <= size:
        return images
    height, width = (round(side * size / shorter) for side in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def load_perceptual(kind: Perceptual, device: torch.device) -> PerceptualDistance:
    """Return a distance by name, differentiable in both pictures."""
    return LOADERS[kind](device)


def micro_perceptual(device: torch.device) -> PerceptualDistance:
    """Return the distance of the micro world. Raises UserError where its weights are missing or damaged."""
    from transformers import CLIPConfig, CLIPModel

    weights = WeightFolder(path=MICRO_CLIP, mend="restore it with git", needs=transformers_clip.FILES)
    config, tensors = CLIPConfig.from_dict(weights.json("config.json")), weights.tensors("model.safetensors")
    where = f"{MICRO_CLIP}: not the weights of this model ({{}}); {weights.mend}"
    tower = load_strictly(lambda: CLIPModel(config), tensors, where, device).vision_model
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    heads = [torch.ones(config.vision_config.hidden_size, device=device)] * (
        config.vision_config.num_hidden_layers + 1
    )

    def layers(images: Tensor) -> list[Tensor]:
        pixels = F.interpolate(2 * images - 1, (side, side), mode="bilinear", antialias=True)
        states = tower(pixels, output_hidden_states=True).hidden_states
        square = (side // patch, side // patch)
        return [state_BPD[:, 1:].transpose(1, 2).unflatten(2, square) for state_BPD in states]  # no class token

    return lambda a, b: lpips_distance(layers(a), layers(b), heads)


LOADERS: dict[Perceptual, Callable[[torch.device], PerceptualDistance]] = {
    "lpips_vgg": lambda device: load_lpips("vgg", device).distance,
    "micro_perceptual": micro_perceptual,
}
