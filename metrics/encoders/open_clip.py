"""Both towers of an open_clip model folder: open_clip_config.json beside open_clip_model.safetensors.

The folder is the one that open_clip writes for the hub and reads by "local-dir:". Its tokenizer is open_clip's own
unless text_cfg.hf_tokenizer_name is given: then the tokenizer files lie in the folder.

Axes: B images or prompts, C x H x W pixels, D embedding size.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metrics.base import UserError
from metrics.features import Encoder
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Resized
from metrics.weights import WeightFolder

if TYPE_CHECKING:
    from open_clip.model import CLIP, CustomTextCLIP

CONFIG = "open_clip_config.json"
FILES = (CONFIG, "open_clip_model.safetensors")


def encoders(weights: WeightFolder, device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders {"image", "text"} of one open_clip folder; the model is loaded once, at first use."""
    towers = OpenClip(weights, device)
    return {
        "image": Encoder(reads="image", forward=towers.image, preprocessing=towers.preprocessing, weights=weights),
        "text": Encoder(reads="text", forward=towers.text, weights=weights),
    }


class OpenClip:
    """An open_clip model and its tokenizer in float32, loaded at first use."""

    def __init__(self, weights: WeightFolder, device: torch.device) -> None:
        self.weights = weights
        self.device = device

    def preprocessing(self) -> Resized:
        """Return the folder's preprocessing. Raises UserError where weights are missing or its config is not read."""
        return self._preprocessing

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self._model.encode_image(pixels_BCHW)

    def text(self, texts: list[str]) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self._model.encode_text(self._tokenizer(texts).to(self.device))

    @cached_property
    def _preprocessing(self) -> Resized:
        self.weights.check()
        return read_open_clip_config(self.weights)

    @cached_property
    def _model(self) -> "CLIP | CustomTextCLIP":
        from open_clip import create_model
        from safetensors import SafetensorError

        self.weights.check()
        folder = self.weights.path
        try:
            model: Any = create_model(f"local-dir:{folder}", precision="fp32", device=self.device)
        except (SafetensorError, RuntimeError, TypeError) as error:
            raise UserError(f"{folder}: not the weights of its config ({error}); {self.weights.mend}") from error
        return model.eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Callable[[list[str]], Tensor]:
        from open_clip import get_tokenizer

        return get_tokenizer(f"local-dir:{self.weights.path}")


def read_open_clip_config(weights: WeightFolder) -> Resized:
    """Return the preprocessing of an open_clip_config.json, with open_clip's defaults.

    Raises: UserError where it lacks what open_clip needs or asks for a padding that is not read here.
    """
    config: dict[str, Any] = weights.json(CONFIG)
    where = weights.path / CONFIG
    try:
        size = config["model_cfg"]["vision_cfg"]["image_size"]
    except KeyError as error:
        raise UserError(f"{where}: no {error} in model_cfg.vision_cfg.image_size; {weights.mend}") from error
    preprocess = config.get("preprocess_cfg", {})
    resize, interpolation = (
        preprocess.get("resize_mode", "shortest"),
        preprocess.get("interpolation", "bicubic"),
    )
    if resize not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise UserError(
            f"{where}: resize_mode {resize!r} with {interpolation!r} is not read; see metrics.preprocessing"
        )
    return Resized(
        size=(size, size) if isinstance(size, int) else tuple(size),
        resize=resize,
        interpolation=interpolation,
        mean=tuple(preprocess.get("mean", CLIP_MEAN)),
        std=tuple(preprocess.get("std", CLIP_STD)),
    )
