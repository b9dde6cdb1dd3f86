"""What the speed of scoring is measured on: pictures, prompts, and random weights in files of the true layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Layout = Callable[[], Mapping[str, Tensor]]  # the state dict on the meta device: names, shapes, dtypes


@dataclass(frozen=True)
class Peer:
    """An official package: its name in `scoring_peers`, and the tox environment it lives in."""

    name: str
    environment: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Metrics that are measured together, the weights they need, and whom they are measured against."""

    metrics: tuple[str, ...]
    weights: tuple[str, ...]
    peer: Peer | None = None


CASES = {
    "hps_v21": Case(metrics=("hps_v21",), weights=("hps-v2.1",), peer=Peer("hpsv2", "parity-hpsv2")),
    "clip_score + aesthetic": Case(
        metrics=("clip_score", "aesthetic"), weights=("clip-vit-large-patch14", "laion-aesthetic-v2")
    ),
}


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write `<n>.png` as a model would draw them: smooth, with some noise, so that PNG packs them as usual."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + generator.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png", compress_level=1)


def prompt(number: int) -> str:
    """Return the prompt of a picture: 14 words, which is usual."""
    return f"a photograph of castle number {number} above a calm sea at dusk, highly detailed, wide"


def write_weights(folder: Path, ids: tuple[str, ...]) -> None:
    """Write DIR/<id>/<file> for published weights, with random values."""
    from metrics.weights import find_entry

    for identity in ids:
        (file,) = (file for file in find_entry(identity).files if file.name.endswith((".safetensors", ".pt", ".pth")))
        path = folder / identity / file.name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: random_values(name, tensor) for name, tensor in LAYOUTS[identity]().items()}
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, path)
        else:
            torch.save({"state_dict": tensors} if identity.startswith("hps") else tensors, path)


def random_values(name: str, like: Tensor) -> Tensor:
    """Return values with which activations stay finite: a tile of noise, since a billion draws take long."""
    if not like.is_floating_point():
        return torch.arange(like.numel()).reshape(like.shape).to(like.dtype)
    if name == "logit_scale":
        return torch.tensor(4.6052, dtype=like.dtype)
    tile = torch.randn(1_000_003, generator=torch.Generator().manual_seed(len(name)))
    values = tile.repeat(-(-like.numel() // len(tile)))[: like.numel()].reshape(like.shape)
    is_norm = like.ndim == 1 and name.endswith("weight")
    return (values * 0.02 + (1 if is_norm else 0)).to(like.dtype)


def _on_meta(make: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return make().state_dict()


def _hps() -> Mapping[str, Tensor]:
    from open_clip import get_model_config
    from open_clip.model import CLIP

    config: Any = get_model_config("ViT-H-14")
    return {name: tensor.half() for name, tensor in _on_meta(lambda: CLIP(**config)).items()}


def _clip_l14() -> Mapping[str, Tensor]:
    from transformers import CLIPConfig, CLIPModel

    from metrics.encoders.published import CLIP_L14

    return _on_meta(lambda: CLIPModel(CLIPConfig.from_dict(dict(CLIP_L14))))


def _aesthetic() -> Mapping[str, Tensor]:
    from metrics.aesthetic import AestheticHead

    return _on_meta(AestheticHead)


LAYOUTS: Mapping[str, Layout] = {
    "hps-v2.1": _hps,
    "clip-vit-large-patch14": _clip_l14,
    "laion-aesthetic-v2": _aesthetic,
}
