"""Features: what a metric needs to know of an image or a prompt, computed once for all metrics together.

An *encoder* is weights + preprocessing + forward. Models register their encoders under a name; a feature's key is
"<name>:<output>", such as "openai/clip-vit-large-patch14:image". `FeatureRunner` applies each distinct preprocessing
once per batch and runs each distinct forward once, whatever number of metrics ask, along one of two paths:

    run            official: 8-bit PIL pictures, the preprocessing of the authors' code
    run_tensors    differentiable: floats in [0, 1], the preprocessing's tensor form

Everything runs in float32, without autocast and TF32, unless an encoder declares another precision. A prompt is
encoded once (`metrics.texts`): its feature does not depend on the batch of images it is asked for with.

Axes: B images of a batch and their B prompts, C x H x W pixels, D embedding size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from metrics.base import Features, Prompt, Registry, UserError, nearest
from metrics.preprocessing import Preprocessing
from metrics.texts import TextFeatures
from metrics.weights import Weights

Inputs = Mapping[Preprocessing, Any]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One output of one model. Nothing is read from disk before `preprocessing` or `forward` is first called.

    forward takes, by `reads`:
        "image"     the preprocessed batch                   -> features of B images
        "text"      a list of prompts' texts                 -> [number of texts, D]
        "pair"      the preprocessed batch and its B Prompts -> features of B pairs
        "features"  the features of the keys in `inputs`     -> features of B images: a head on other encoders
    Features are a tensor whose first axis is the batch, or a list with one entry per image.

    Encoders whose forward and preprocessing compare equal (bound methods of one object do) share one pass; `pick`
    takes each one's output from what it returned.
    """

    reads: Literal["image", "text", "pair", "features"]
    forward: Callable[..., Any]
    preprocessing: Callable[[], Preprocessing] | None = None  # of encoders that read images
    pick: Callable[[Any], Any] | None = None
    inputs: tuple[str, ...] = ()  # of heads
    weights: Weights | None = None  # None: nothing learned
    truncates: Callable[[str], bool] | None = None  # whether a prompt is longer than what is read of it
    precision: str = "float32"  # of the forward pass; rows of different precisions never mix


Models = dict[str, Mapping[str, Encoder]]  # encoders that were made for one device, by the name of their model
Factory = Callable[[torch.device], Mapping[str, Encoder]]
F = TypeVar("F", bound=Factory)
_FACTORIES: Registry[Factory] = Registry("encoder")


def register_encoders(name: str) -> Callable[[F], F]:
    """Function decorator: make a model's encoders known by a name without ":".

    The function takes a device and returns encoders by output, such as {"image": …, "text": …}; they share what it
    makes, so that two towers of one model are loaded once. Raises UserError where the name is taken.
    """
    return _FACTORIES.register(name)


class FeatureRunner:
    """Runs the encoders behind a set of feature keys on one device."""

    def __init__(
        self,
        keys: Iterable[str],
        device: str | torch.device = "cpu",
        texts: Iterable[str] = (),
        models: Models | None = None,
    ) -> None:
        """texts: the prompts of the run, in its order; see `metrics.texts`. models: shared with other runners on the
        same device, so that weights are loaded once for all.

        Raises: UserError where a key is unknown, naming the nearest one."""
        self.device = torch.device(device)
        self._encoders = _make_encoders(keys, self.device, {} if models is None else models)
        of_texts = [encoder for encoder in self._encoders.values() if encoder.reads == "text"]
        self._texts = TextFeatures(((e.forward, e.pick) for e in of_texts), self.device, texts)

    def weights(self, key: str) -> list[Weights]:
        """Return the distinct weights behind a key, those of the features it reads among them."""
        encoder = self._encoders[key]
        found = {weights: None for inner in encoder.inputs for weights in self.weights(inner)}
        return list(found | ({encoder.weights: None} if encoder.weights else {}))

    def missing(self, *keys: str) -> str | None:
        """Return why the weights behind keys cannot be used and what mends it, or None where they can be."""
        of_all = (weights for key in keys for weights in self.weights(key))
        return next((reason for weights in of_all if (reason := weights.missing())), None)

    def precision(self, key: str) -> str:
        """Return the number format of the passes behind a key, such as "float32"."""
        encoder = self._encoders[key]
        found = {encoder.precision, *(self.precision(inner) for inner in encoder.inputs)}
        return "+".join(sorted(found - {"float32"})) or "float32"

    def truncates(self, key: str) -> Callable[[str], bool] | None:
        """Return what tells whether a prompt is cut by the encoder behind a key, None where none is ever cut."""
        return self._encoders[key].truncates

    def prepare(self, images: Sequence[Image.Image]) -> Inputs:
        """Return what the encoders read of B RGB pictures, on the CPU; safe on any thread, ahead of `run`.

        Raises: UserError where weights that say how to preprocess are missing or damaged."""
        return self._prepare(lambda preprocessing: preprocessing.from_pil(images))

    @torch.no_grad()
    def run(self, images: Sequence[Image.Image] | Inputs, prompts: Sequence[Prompt]) -> Features:
        """Return the features of B RGB pictures (or of what `prepare` made of them) and their B prompts by key,
        without gradients."""
        return self._run(images if isinstance(images, Mapping) else self.prepare(images), prompts, {})

    def run_tensors(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Features:
        """Return the features by key, differentiable in images_BCHW (floats in [0, 1])."""
        return self.run_tensors_beside(images_BCHW, [prompts])[0]

    def run_tensors_beside(self, images_BCHW: Tensor, several: Sequence[Sequence[Prompt]]) -> list[Features]:
        """Return what `run_tensors` does for each of several lists of prompts; what reads images alone runs once."""
        images_BCHW = images_BCHW.to(self.device)
        with exact_float32(self.device):
            inputs = self._prepare(lambda preprocessing: preprocessing.from_tensor(images_BCHW))
        seen: dict[Any, Any] = {}
        return [self._run(inputs, prompts, seen) for prompts in several]

    def _prepare(self, prepare: Callable[[Preprocessing], Any]) -> Inputs:
        wanted = {encoder.preprocessing(): None for encoder in self._encoders.values() if encoder.preprocessing}
        return {preprocessing: prepare(preprocessing) for preprocessing in wanted}

    def _run(self, inputs: Inputs, prompts: Sequence[Prompt], seen: dict[Any, Any]) -> Features:
        """seen: what each distinct forward returned for these images alone; it is added to."""
        inputs = {preprocessing: _to(prepared, self.device) for preprocessing, prepared in inputs.items()}
        of_batch: dict[Any, Any] = {}  # the same for the images with these prompts
        features: dict[str, Any] = {}
        with exact_float32(self.device):
            for key, encoder in self._encoders.items():
                if encoder.reads == "text":
                    texts = [prompt.text for prompt in prompts]
                    features[key] = self._texts.of(encoder.forward, encoder.pick, texts)
                    continue
                name, arguments = _call(encoder, inputs, features, prompts)
                passes = seen if encoder.reads == "image" else of_batch
                if name not in passes:
                    passes[name] = encoder.forward(*arguments)
                features[key] = encoder.pick(passes[name]) if encoder.pick else passes[name]
        return features


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


def _make_encoders(keys: Iterable[str], device: torch.device, made: Models) -> dict[str, Encoder]:
    """Return the encoders of keys and of what they read, in an order in which each can run."""
    encoders: dict[str, Encoder] = {}

    def make(key: str) -> None:
        if key in encoders:
            return
        name, _, output = key.rpartition(":")
        if name not in made:
            made[name] = _FACTORIES.find(name, f"feature {key!r}: ")(device)
        if output not in made[name]:
            raise UserError(f"feature {key!r}: {name!r} has no output {output!r}; {nearest(output, made[name])}")
        for inner in made[name][output].inputs:
            make(inner)
        encoders[key] = made[name][output]

    for key in keys:
        make(key)
    return encoders


def _call(
    encoder: Encoder, inputs: Inputs, features: Features, prompts: Sequence[Prompt]
) -> tuple[Any, tuple[Any, ...]]:
    """Return what names an encoder's pass over a batch, and the arguments of its forward."""
    if encoder.reads == "features":
        return (encoder.forward, encoder.inputs), tuple(features[key] for key in encoder.inputs)
    assert encoder.preprocessing is not None  # as `Encoder` says
    preprocessing = encoder.preprocessing()
    pair = (prompts,) if encoder.reads == "pair" else ()
    return (encoder.forward, preprocessing, encoder.reads), (inputs[preprocessing], *pair)


def _to(inputs: Any, device: torch.device) -> Any:
    """Return a batch on a device: a tensor, what moves itself there (transformers' BatchFeature), or plain lists."""
    return inputs.to(device) if hasattr(inputs, "to") else inputs
