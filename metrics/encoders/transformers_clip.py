"""Both towers of a transformers CLIPModel folder, as `save_pretrained` writes it and the hub serves it.

image: projected embedding of 8-bit pictures, after the folder's own preprocessor_config.json
text:  projected embedding of the state at the first end-of-text token; longer prompts are cut to the context length

Axes: B images or prompts, C x H x W pixels, D embedding size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metrics.base import UserError
from metrics.features import Encoder
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Interpolation, Resize, Resized
from metrics.weights import WeightFolder

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")
RESAMPLE: dict[int, Interpolation] = {
    2: "bilinear",
    3: "bicubic",
}  # PIL's numbers, as preprocessor_config.json writes them


def encoders(weights: WeightFolder, device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders {"image", "text"} of one CLIPModel folder; the model is loaded once, at first use."""
    towers = TransformersClip(weights, device)
    return {
        "image": Encoder(reads="image", forward=towers.image, preprocessing=towers.preprocessing, weights=weights),
        "text": Encoder(reads="text", forward=towers.text, weights=weights),
    }


class TransformersClip:
    """A CLIPModel and its tokenizer in float32, loaded at first use."""

    def __init__(self, weights: WeightFolder, device: torch.device) -> None:
        self.weights = weights
        self.device = device

    def preprocessing(self) -> Resized:
        """Return the folder's preprocessing. Raises UserError where weights are missing or its config is not read."""
        return self._preprocessing

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        hidden_BD = self._model.vision_model(pixel_values=pixels_BCHW).pooler_output
        return self._model.visual_projection(hidden_BD)

    def text(self, texts: list[str]) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        length = self._model.text_model.embeddings.position_embedding.num_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden_BD = self._model.text_model(**tokens).pooler_output
        return self._model.text_projection(hidden_BD)

    @cached_property
    def _preprocessing(self) -> Resized:
        self.weights.check()
        return read_preprocessor_config(self.weights)

    @cached_property
    def _model(self) -> "CLIPModel":
        from safetensors import SafetensorError
        from transformers import CLIPModel

        self.weights.check()
        folder = self.weights.path
        try:
            with quiet():
                loaded: Any = CLIPModel.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except (
            SafetensorError,
            OSError,
            RuntimeError,
        ) as error:  # truncated file; shapes that differ from the config
            raise UserError(f"{folder}: not the weights of its config ({error}); {self.weights.mend}") from error
        model, report = loaded
        if wrong := sorted(report["missing_keys"]) or sorted(report["unexpected_keys"]):
            raise UserError(f"{folder}: not a complete CLIPModel (first key: {wrong[0]}); {self.weights.mend}")
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> "CLIPTokenizer":
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.weights.path, local_files_only=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bar off the screen, where the caller's own progress is."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_preprocessor_config(weights: WeightFolder) -> Resized:
    """Return the preprocessing that a preprocessor_config.json describes, as CLIPImageProcessorPil does it.

    Raises: UserError where the config asks for anything else than resize, centre crop, 1/255 and normalise.
    """
    config = weights.json("preprocessor_config.json")
    where = weights.path / "preprocessor_config.json"
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise UserError(f"{where}: {step} = false is not a CLIP preprocessing")
    size = config.get("size", {"shortest_edge": 224})
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    interpolation = RESAMPLE.get(config.get("resample", 3))
    if interpolation is None:
        raise UserError(f"{where}: resample {config['resample']} is neither bicubic (3) nor bilinear (2)")
    crop = _height_width(config.get("crop_size", shortest)) if config.get("do_center_crop", True) else None
    resize: Resize = "squash" if shortest is None else "shortest"
    target = _height_width(size if shortest is None else shortest)
    if crop not in (None, target) or (crop is None and resize == "shortest"):
        raise UserError(f"{where}: size {size} and crop {crop} differ; only equal ones are read")
    return Resized(
        size=target,
        resize=resize,
        interpolation=interpolation,
        crop_offset="floor",
        mean=tuple(config.get("image_mean", CLIP_MEAN)),
        std=tuple(config.get("image_std", CLIP_STD)),
    )


def _height_width(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])
