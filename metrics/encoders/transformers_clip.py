"""Both towers of a transformers CLIPModel: a folder as `save_pretrained` writes it, or one published file.

image: projected embedding of a picture; `hidden`: the class token's last state, before the last norm and projection
text:  projected embedding of the state at the first end-of-text token; longer prompts are cut to the context length

A folder brings its config, preprocessing and tokenizer; for a published file they stand in
`metrics.encoders.published`.
Axes: B images or prompts, C x H x W pixels, D embedding size, L tokens.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.base import UserError
from metrics.encoders.towers import Towers, load_strictly
from metrics.features import Encoder
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Interpolation, Resize, Resized
from metrics.weights import Weights

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")
RESAMPLE: dict[int, Interpolation] = {
    2: "bilinear",
    3: "bicubic",
}  # PIL's numbers, as preprocessor_config.json writes them


class ClipFile:
    """A CLIPModel in float32 from one state dict, loaded at first use."""

    def __init__(
        self, weights: Weights, file: str, device: torch.device, config: Mapping[str, Any] | None = None
    ) -> None:
        """config: what CLIPConfig takes, None = the config.json beside the file, which is held to it, key by key."""
        self.weights, self.file, self.device, self.config = weights, file, device, config

    def image(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Return {"embedding": projected [B, D], "post": before that, "hidden": before the last norm, too}, float32,
        not normalised."""
        seen = self._model.vision_model(pixel_values=pixels_BCHW)
        embedding_BD = self._model.visual_projection(seen.pooler_output)
        return {"embedding": embedding_BD, "post": seen.pooler_output, "hidden": seen.last_hidden_state[:, 0]}

    def text(self, ids_BL: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        # No mask: attention is causal and the state is read at the end token, so what follows it has no effect.
        hidden_BD = self._model.text_model(input_ids=ids_BL.to(self.device)).pooler_output
        return self._model.text_projection(hidden_BD)

    def logits(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Return exp(logit_scale) times the cosine [B] of each image and its own prompt."""
        return self._model.logit_scale.exp() * F.cosine_similarity(image_BD, text_BD.to(image_BD.dtype), dim=-1)

    @property
    def context(self) -> int:
        """The largest number of tokens that the text tower reads."""
        return self._model.text_model.embeddings.position_embedding.num_embeddings

    @cached_property
    def _model(self) -> "CLIPModel":
        from transformers import CLIPConfig, CLIPModel

        tensors = self.weights.tensors(self.file)
        # Older transformers wrote these counters into the file; they are no weights.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
        config = CLIPConfig.from_dict(self.config or self.weights.json("config.json"))
        where = f"{self.weights.folder() / self.file}: not the weights of this model ({{}}); {self.weights.mend}"
        return load_strictly(lambda: CLIPModel(config), tensors, where, self.device)


def encoders(weights: Weights, device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders {"image", "text"} of one CLIPModel folder; the model is loaded once, at first use."""
    return TransformersClip(weights, device).encoders()


class TransformersClip(Towers):
    """A CLIPModel folder with its tokenizer and preprocessing."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        super().__init__(weights, device)
        self.clip = ClipFile(weights, "model.safetensors", device)

    def preprocessing(self) -> Resized:
        """Return the folder's preprocessing. Raises UserError where weights are missing or its config is not read."""
        return self._preprocessing

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        return self.clip.image(pixels_BCHW)["embedding"]

    def text(self, texts: list[str]) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""
        cut = {"truncation": True, "max_length": self.clip.context}
        return self.clip.text(self._tokenizer(texts, padding=True, return_tensors="pt", **cut)["input_ids"])

    @cached_property
    def _preprocessing(self) -> Resized:
        self.weights.check()
        return read_preprocessor_config(self.weights)

    @cached_property
    def _tokenizer(self) -> "CLIPTokenizer":
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.weights.folder(), local_files_only=True)


def read_preprocessor_config(weights: Weights) -> Resized:
    """Return the preprocessing that a preprocessor_config.json describes, as CLIPImageProcessorPil does it.

    Raises: UserError where the config asks for anything else than resize, centre crop, 1/255 and normalise.
    """
    config = weights.json("preprocessor_config.json")
    where = weights.folder() / "preprocessor_config.json"
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
