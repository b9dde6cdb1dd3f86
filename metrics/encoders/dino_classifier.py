"""DINOv2's linear ImageNet classifiers: a frozen vision transformer, and one linear layer on its tokens.

    f(x) = [cls_{L-n+1}, ..., cls_L, mean over patches of layer L]      log p(y | x) = log softmax(W f(x) + b)_y

Every token is taken after the model's last norm, those of earlier layers too; n is 1 or 4.

    encoder                transformer        head
    dinov2-l/imagenet4     DINOv2 ViT-L/14    n = 4, the authors' file: `weight` [K, 5 D] and `bias` [K]
    dinov2-b/imagenet1     DINOv2 ViT-B/14    n = 1, transformers' Dinov2ForImageClassification: one file holds both

Pictures: floats, both sides to 224, bicubic, antialiased, as DMDR's reward reads them.
Source: Oquab et al. 2023, arXiv:2304.07193; what the heads read: the authors' dinov2/hub/classifiers.py. Departure:
positions are resized from 37 x 37 to 16 x 16 as transformers does, to a size and not by a factor of (16 + 0.1) / 37.
Axes: B images, C x H x W pixels, L layers, D state size, F = (n + 1) D, K = 1000 classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.encoders import dino
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Resized
from metrics.weights import Weights, manifest

if TYPE_CHECKING:
    from transformers import Dinov2Model

CLASSES = 1000
HEAD_FILE = "dinov2_vitl14_linear4_head.pth"
PICTURES = Resized(
    size=(224, 224),
    resize="squash",
    official="tensor",  # DMDR's code resizes the decoder's floats
    mean=dino.IMAGENET_MEAN,
    std=dino.IMAGENET_STD,
)


def linear_input(states: tuple[Tensor, ...], norm: nn.Module, layers: int) -> Tensor:
    """Return f [B, F] of the hidden states [B, 1 + patches, D] after each layer, class token first."""
    normed = [norm(state) for state in states[-layers:]]
    return torch.cat([*(tokens[:, 0] for tokens in normed), normed[-1][:, 1:].mean(dim=1)], dim=1)


@dataclass(frozen=True)
class Part:
    """The tensors of a file whose names begin with a prefix."""

    weights: Weights
    file: str
    prefix: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Return them without the prefix. Raises UserError where the file is missing or damaged."""
        found = self.weights.tensors(self.file).items()
        return {name.removeprefix(self.prefix): value for name, value in found if name.startswith(self.prefix)}

    @property
    def where(self) -> str:
        """The text of an error, with "{}" in the place of what is wrong."""
        path = self.weights.folder() / self.file
        return f"{path}: not the weights of this classifier ({{}}); {self.weights.mend}"


class Classifier:
    """A transformer and its head in float32, each loaded at first use."""

    def __init__(self, body: Part, head: Part, config: Mapping[str, Any], layers: int, device: torch.device) -> None:
        """config: what Dinov2Config takes; layers: n."""
        self._body, self._head, self.config, self.layers, self.device = body, head, config, layers, device

    def inputs(self, pixels_BCHW: Tensor) -> Tensor:
        """Return f [B, F] of preprocessed pictures."""
        seen = self.model(pixel_values=pixels_BCHW, output_hidden_states=True)
        return linear_input(seen.hidden_states, self.model.layernorm, self.layers)

    def log_probabilities(self, inputs_BF: Tensor) -> Tensor:
        """Return log p [B, K] of f."""
        return F.log_softmax(self.head(inputs_BF), dim=-1)

    @cached_property
    def model(self) -> "Dinov2Model":
        """The transformer. Raises UserError where the weights are missing, damaged or another model's."""
        from transformers import Dinov2Config, Dinov2Model

        tensors = {dino.native_key(name): value for name, value in self._body.tensors().items()}
        return load_strictly(lambda: Dinov2Model(Dinov2Config(**self.config)), tensors, self._body.where, self.device)

    @cached_property
    def head(self) -> nn.Linear:
        """The linear layer. Raises UserError as `model` does."""
        width = (self.layers + 1) * self.config["hidden_size"]
        return load_strictly(lambda: nn.Linear(width, CLASSES), self._head.tensors(), self._head.where, self.device)

    def encoders(self, name: str) -> Mapping[str, Encoder]:
        """Return {"inputs", "log_probabilities"} under a registered name."""
        head = self._head.weights
        return {
            "inputs": Encoder(
                reads="image", forward=self.inputs, preprocessing=lambda: PICTURES, weights=self._body.weights
            ),
            "log_probabilities": Encoder(
                reads="features", forward=self.log_probabilities, inputs=(f"{name}:inputs",), weights=head
            ),
        }


@register_encoders("dinov2-l/imagenet4")
def authors_large(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of the authors' 4-layer head on ViT-L/14."""
    body, head = Part(manifest("dinov2-large"), dino.FILE), Part(manifest("dinov2-large-imagenet-linear4"), HEAD_FILE)
    return Classifier(body, head, dino.DINOV2_L, 4, device).encoders("dinov2-l/imagenet4")


@register_encoders("dinov2-b/imagenet1")
def transformers_base(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of transformers' ViT-B/14 with its 1-layer head."""
    weights = manifest("dinov2-base-imagenet1k-1-layer")
    (file,) = (one.name for one in weights.entry.files)
    body, head = Part(weights, file, "dinov2."), Part(weights, file, "classifier.")
    return Classifier(body, head, dino.DINOV2_B, 1, device).encoders("dinov2-b/imagenet1")
