"""Features: what a metric needs to know of an image or a prompt, computed once for all metrics together.

An *encoder* is weights + preprocessing + forward. Models register their encoders under a name; a feature's key is
"<name>:<output>", such as "openai/clip-vit-l-14:image". `FeatureRunner` applies each distinct preprocessing once per
batch and runs each encoder once, whatever number of metrics ask, along one of two paths:

    run            official: 8-bit PIL pictures, the preprocessing of the authors' code
    run_tensors    differentiable: floats in [0, 1], the preprocessing's tensor form

Everything runs in float32, without autocast and TF32. A prompt is encoded alone, and once: its feature depends
neither on its batch nor on what was asked before.

Axes: B images of a batch and their B prompts, C x H x W pixels, D embedding size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from metrics.base import Features, Prompt, UserError, nearest
from metrics.preprocessing import Preprocessing
from metrics.weights import WeightFolder


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One output of one model. Nothing is read from disk before `preprocessing` or `forward` is first called.

    forward takes, by `reads`:
        "image"   the preprocessed batch                   -> features of B images
        "text"    a list of prompts' texts                 -> [number of texts, D]
        "pair"    the preprocessed batch and its B Prompts -> features of B pairs
    Features are a tensor whose first axis is the batch, or a list with one entry per image.
    """

    reads: Literal["image", "text", "pair"]
    forward: Callable[..., Any]
    preprocessing: Callable[[], Preprocessing] | None = None  # of encoders that read images
    weights: WeightFolder | None = None  # None: nothing learned


Factory = Callable[[torch.device], Mapping[str, Encoder]]
F = TypeVar("F", bound=Factory)
_FACTORIES: dict[str, Factory] = {}


def register_encoders(name: str) -> Callable[[F], F]:
    """Function decorator: make a model's encoders known by a name without ":".

    The function takes a device and returns encoders by output, such as {"image": …, "text": …}; they share what it
    makes, so that two towers of one model are loaded once. Raises UserError where the name is taken.
    """

    def register(factory: F) -> F:
        if name in _FACTORIES:
            raise UserError(f"encoder name {name!r} is taken twice: rename one of the two")
        _FACTORIES[name] = factory
        return factory

    return register


class FeatureRunner:
    """Runs the encoders behind a set of feature keys on one device."""

    def __init__(self, keys: Iterable[str], device: str | torch.device = "cpu") -> None:
        """Raises: UserError where a key is unknown, naming the nearest one."""
        self.device = torch.device(device)
        self._encoders = _make_encoders(dict.fromkeys(keys), self.device)
        self._texts: dict[tuple[str, str], Tensor] = {}
        self._digests: dict[WeightFolder, str] = {}

    def missing(self, key: str) -> str | None:
        """Return why the weights behind a key cannot be used and what mends it, or None where they can be."""
        weights = self._encoders[key].weights
        return weights.missing() if weights else None

    def weights_digest(self, key: str) -> str:
        """Return the sha256 over the weight folder behind a key; "" where nothing is learned."""
        weights = self._encoders[key].weights
        if weights is None:
            return ""
        if weights not in self._digests:
            self._digests[weights] = weights.digest()
        return self._digests[weights]

    @torch.no_grad()
    def run(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Features:
        """Return the features of B RGB pictures and their B prompts by key, without gradients."""
        return self._run(prompts, lambda preprocessing: preprocessing.from_pil(images))

    def run_tensors(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Features:
        """Return the features by key, differentiable in images_BCHW (floats in [0, 1])."""
        images_BCHW = images_BCHW.to(self.device)
        return self._run(prompts, lambda preprocessing: preprocessing.from_tensor(images_BCHW))

    def _run(self, prompts: Sequence[Prompt], prepare: Callable[[Preprocessing], Any]) -> Features:
        inputs: dict[Preprocessing, Any] = {}
        features: dict[str, Any] = {}
        with exact_float32(self.device):
            for key, encoder in self._encoders.items():
                if encoder.reads == "text":
                    features[key] = self._encode_texts(key, encoder, [prompt.text for prompt in prompts])
                    continue
                assert encoder.preprocessing is not None  # as `Encoder` says
                preprocessing = encoder.preprocessing()
                if preprocessing not in inputs:
                    inputs[preprocessing] = _to(prepare(preprocessing), self.device)
                pair = (prompts,) if encoder.reads == "pair" else ()
                features[key] = encoder.forward(inputs[preprocessing], *pair)
        return features

    @torch.no_grad()
    def _encode_texts(self, key: str, encoder: Encoder, texts: Sequence[str]) -> Tensor:
        for text in dict.fromkeys(texts):
            if (key, text) not in self._texts:
                # Alone: in a batch, the shapes of the matrix products and so the last bits would depend on its mates.
                self._texts[key, text] = encoder.forward([text])[0]
        return torch.stack([self._texts[key, text] for text in texts])


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Run in float32 as written: no autocast, no TF32, no benchmarked kernels, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with torch.autocast(device.type, enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _make_encoders(keys: Iterable[str], device: torch.device) -> dict[str, Encoder]:
    made: dict[str, Mapping[str, Encoder]] = {}
    encoders = {}
    for key in keys:
        name, _, output = key.rpartition(":")
        if name not in _FACTORIES:
            raise UserError(f"feature {key!r}: unknown encoder {name!r}; {nearest(name, _FACTORIES)}")
        if name not in made:
            made[name] = _FACTORIES[name](device)
        if output not in made[name]:
            raise UserError(f"feature {key!r}: {name!r} has no output {output!r}; {nearest(output, made[name])}")
        encoders[key] = made[name][output]
    return encoders


def _to(inputs: Any, device: torch.device) -> Any:
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs
