"""What all image-text models share: two towers in float32, loaded at first use, from nothing but their own weights.

A state dict is loaded strictly: every key and every shape must be those of the architecture, or else the file is
another model's, and a score from half of a model would look like any other score.

Axes: B images or prompts, C x H x W pixels, D embedding size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from metrics.base import UserError
from metrics.features import Encoder
from metrics.preprocessing import Resized
from metrics.weights import Weights

M = TypeVar("M", bound=nn.Module)


class Towers(ABC):
    """An image-text model of which nothing is read before `preprocessing`, `image` or `text` is first called."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights = weights
        self.device = device

    @abstractmethod
    def preprocessing(self) -> Resized:
        """Return the preprocessing. Raises UserError where weights are missing or their config is not read."""

    @abstractmethod
    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""

    @abstractmethod
    def text(self, texts: list[str]) -> Tensor:
        """Return projected embeddings [B, D], float32, not normalised."""

    def encoders(self) -> Mapping[str, Encoder]:
        """Return {"image", "text"}; the model is loaded once for both."""
        return {
            "image": Encoder(
                reads="image", forward=self.image, preprocessing=self.preprocessing, weights=self.weights
            ),
            "text": Encoder(reads="text", forward=self.text, weights=self.weights),
        }


def load_strictly(
    make: Callable[[], M],
    tensors: Mapping[str, Tensor],
    where: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> M:
    """Return the model that `make` builds, with exactly these tensors as `dtype`, frozen, in evaluation mode.

    where: the error's text, with "{}" in the place of what is wrong.
    Raises: UserError naming the first key that is missing, unexpected or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # a billion random numbers would be drawn to be thrown away
        model = make()
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if problem := layout_problem(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise UserError(where.format(problem))
    exact = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(exact, assign=True)
    return model.to(device).eval().requires_grad_(False)


def layout_problem(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first difference of two layouts (shapes by key) in words, or "" where they are equal."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        counts = [f"{len(missing)} keys missing, first {missing[0]}"] if missing else []
        counts += [f"{len(unexpected)} unexpected, first {unexpected[0]}"] if unexpected else []
        return "; ".join(counts)
    other = next((name for name in sorted(expected) if expected[name] != found[name]), None)
    return f"{other} has shape {found[other]}, should be {expected[other]}" if other else ""
