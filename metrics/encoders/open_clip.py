"""Both towers of an open_clip model: a folder with its config, or one published file.

The folder is the one that open_clip writes for the hub and reads by "local-dir:". Its tokenizer is open_clip's own
unless text_cfg.hf_tokenizer_name is given: then the tokenizer files lie in the folder. For one published file,
architecture, preprocessing and tokenizer stand in `metrics.encoders.published`.

Axes: B images or prompts, C x H x W pixels, D embedding size.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metrics.base import UserError
from metrics.encoders.towers import Towers, load_strictly
from metrics.features import Encoder
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Resized
from metrics.weights import Weights

if TYPE_CHECKING:
    from open_clip.model import CLIP, CustomTextCLIP

CONFIG = "open_clip_config.json"
FILES = (CONFIG, "open_clip_model.safetensors")


class OpenClipFile:
    """An open_clip model in float32 from one state dict, loaded at first use."""

    def __init__(
        self, weights: Weights, file: str, device: torch.device, config: Callable[[], Mapping[str, Any]]
    ) -> None:
        """config: returns what open_clip calls model_cfg; the file is held to it, key by key."""
        self.weights, self.file, self.device, self.config = weights, file, device, config

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self._model.encode_image(pixels_BCHW)

    def text(self, ids_BL: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self._model.encode_text(ids_BL.to(self.device))

    @cached_property
    def _model(self) -> "CLIP | CustomTextCLIP":
        from open_clip.model import CLIP, CustomTextCLIP

        tensors = self.weights.tensors(self.file)
        config = dict(self.config())
        make = CustomTextCLIP if config.pop("custom_text", False) else CLIP
        where = f"{self.weights.folder() / self.file}: not the weights of this model ({{}}); {self.weights.mend}"
        return load_strictly(lambda: make(**config), tensors, where, self.device)


def encoders(weights: Weights, device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders {"image", "text"} of one open_clip folder; the model is loaded once, at first use."""
    return OpenClip(weights, device).encoders()


class OpenClip(Towers):
    """An open_clip folder with its tokenizer and preprocessing."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        super().__init__(weights, device)
        self.clip = OpenClipFile(weights, FILES[1], device, lambda: weights.json(CONFIG)["model_cfg"])

    def preprocessing(self) -> Resized:
        """Return the folder's preprocessing. Raises UserError where weights are missing or its config is not read."""
        return self._preprocessing

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self.clip.image(pixels_BCHW)

    def text(self, texts: list[str]) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self.clip.text(self._tokenizer(texts))

    @cached_property
    def _preprocessing(self) -> Resized:
        self.weights.check()
        return read_open_clip_config(self.weights)

    @cached_property
    def _tokenizer(self) -> Callable[[list[str]], Tensor]:
        from open_clip import get_tokenizer

        return get_tokenizer(f"local-dir:{self.weights.folder()}")


def read_open_clip_config(weights: Weights) -> Resized:
    """Return the preprocessing of an open_clip_config.json, with open_clip's defaults.

    Raises: UserError where it lacks what open_clip needs or asks for a padding that is not read here.
    """
    config: dict[str, Any] = weights.json(CONFIG)
    where = weights.folder() / CONFIG
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
