"""Metrics made ready to use: several at once for scoring (`Scorer`), or one as a function and as a reward.

Both run the same `measure` on the same features, so a reward is the metric, not a copy of it.
Axes: B images and their B prompts, C = 3 channels, H x W pixels, N images over all batches.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.base import Batch, Card, Features, Metric, NotHere, Prompt, Rows, UserError, make, unfit_prompts
from metrics.features import FeatureRunner, Inputs, Models
from metrics.images import Picture, as_pils
from metrics.sets import WholePrompts
from metrics.weights import Weights

Prompts = Sequence[str | Prompt]
TRUNCATED = "prompt_truncated"  # column of rows: whether an encoder read only the beginning of the prompt


class Scorer:
    """Scores batches of images with several metrics; what they share is computed once."""

    def __init__(
        self,
        ids: Iterable[str],
        device: str | torch.device = "cpu",
        texts: Iterable[str] = (),
        models: Models | None = None,
    ) -> None:
        """texts and models: as of `metrics.features.FeatureRunner`.

        Raises: UserError where an id is unknown, naming the nearest one."""
        self.metrics: Mapping[str, Metric] = {identity: make(identity) for identity in ids}
        self.device = torch.device(device)
        keys = (key for metric in self.metrics.values() for key in metric.features)
        self._runner = FeatureRunner(keys, self.device, texts, models)
        self._digests: dict[Weights, str] = {}
        self._cut: dict[tuple[str, str], bool] = {}

    def card(self, identity: str) -> Card:
        """Return a metric's card."""
        return self.metrics[identity].card

    def missing(self, identity: str) -> str | None:
        """Return why a metric cannot be computed here and what mends it, or None where it can be."""
        return self._runner.missing(*self.metrics[identity].features)

    def weights(self, identity: str) -> list[Weights]:
        """Return the distinct weights behind a metric."""
        keys = self.metrics[identity].features
        return list(dict.fromkeys(weights for key in keys for weights in self._runner.weights(key)))

    def weights_digest(self, identity: str) -> str:
        """Return the sha256 over all weights behind a metric; "" where nothing is learned."""
        for weights in self.weights(identity):
            if weights not in self._digests:
                self._digests[weights] = weights.digest()
        distinct = sorted({self._digests[weights] for weights in self.weights(identity)})
        return hashlib.sha256("\n".join(distinct).encode()).hexdigest() if distinct else ""

    def precision(self, identity: str) -> str:
        """Return the number format of the passes behind a metric: "float32" unless an encoder declares another."""
        found = {self._runner.precision(key) for key in self.metrics[identity].features}
        return "+".join(sorted(found - {"float32"})) or "float32"

    def prepare(self, images: Sequence[Image.Image]) -> Inputs:
        """Return what `features` needs of B RGB images; on any thread, ahead of it. Raises UserError as it does."""
        return self._runner.prepare(images)

    def features(self, images: Sequence[Image.Image] | Inputs, batch: Batch) -> Features:
        """Return all metrics' features of B RGB images, or of what `prepare` made of them.

        Raises: UserError where weights are missing or damaged."""
        pictures = len(batch.seeds) if isinstance(images, Mapping) else len(images)
        if not pictures == len(batch.prompts) == len(batch.seeds):
            raise UserError(f"{pictures} images, {len(batch.prompts)} prompts, {len(batch.seeds)} seeds: pair them")
        return self._runner.run(images, batch.prompts)

    @torch.no_grad()
    def measure(self, identity: str, features: Features, batch: Batch) -> Rows:
        """Return one metric's rows, tensors on the CPU; where its encoders cut long prompts, with a column that says
        which ones were cut. Raises UserError naming metric and image for a NaN."""
        rows = self.metrics[identity].measure(features, batch)
        rows = {name: column.cpu() if isinstance(column, Tensor) else column for name, column in rows.items()}
        check_finite(identity, rows, batch)
        readers = [key for key in self.metrics[identity].features if self._runner.truncates(key)]
        if readers:
            cut = [any(self._cuts(key, prompt.text) for key in readers) for prompt in batch.prompts]
            rows[TRUNCATED] = torch.tensor(cut)
        return rows

    def _cuts(self, key: str, text: str) -> bool:
        truncates = self._runner.truncates(key)
        assert truncates is not None  # `measure` asks for those only
        if (key, text) not in self._cut:
            self._cut[key, text] = truncates(text)
        return self._cut[key, text]

    def score(self, images: Sequence[Image.Image], batch: Batch) -> dict[str, Rows]:
        """Return all metrics' rows of B RGB images by id; errors as of `features` and `measure`."""
        features = self.features(images, batch)
        return {identity: self.measure(identity, features, batch) for identity in self.metrics}


class LoadedMetric:
    """One metric as a function of images and prompts. Weights are read at the first call."""

    def __init__(
        self, identity: str, device: str | torch.device = "cpu", batch_size: int = 32, remembered: int = 0
    ) -> None:
        """remembered: of how many pictures, the latest, the rows are kept, so that a picture that comes again with
        the same prompt is not measured again; gradients (`reward`) are never remembered.

        Raises: UserError where the id is unknown, naming the nearest one."""
        self.metric = make(identity)
        self.card = self.metric.card
        self.batch_size = batch_size
        self._runner = FeatureRunner(self.metric.features, device)
        # What is measured of a whole prompt at once belongs to no picture alone.
        self._remembered = 0 if isinstance(self.metric, WholePrompts) else remembered
        self._known: dict[bytes, Rows] = {}

    def __call__(self, images: Sequence[Picture] | Tensor | np.ndarray, prompts: Prompts) -> Tensor:
        """Return float32 [N]: what each image contributes to the metric's value, on the CPU.

        For most metrics that is the image's score; for diversity, its share among the images of its prompt. NaN
        where a metric found no value for an image and says so, such as a rating that cannot be read.
        images: PIL images, paths, arrays [H, W, 3] or tensors [3, H, W]; uint8, or floats in [0, 1].
        Raises: UserError where images and prompts do not pair up, a picture or weights cannot be read, a score is
        not finite, or the metric is a statistic of a whole set.
        """
        paired = _pair(self.card.id, len(images), prompts)
        parts: list[Rows] = []
        for start in range(0, len(paired), self.batch_size):
            pictures = as_pils(images[start : start + self.batch_size], first=start)
            prompts_here = paired[start : start + self.batch_size]
            parts += (
                self._recall(pictures, prompts_here) if self._remembered else [self._rows(pictures, prompts_here)]
            )
        per_image_N = self.metric.summarise(concatenate(parts), paired).per_image_N
        if per_image_N is None:
            raise UserError(f"{self.card.id}: a statistic of a whole set has no value per image")
        return torch.from_numpy(per_image_N)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise NotHere where weights are not, UserError where pictures of some prompts cannot be judged: before any
        is."""
        if unfit := unfit_prompts(self.metric, prompts):
            raise UserError(f"{self.card.id}: {unfit}")
        if reason := self._runner.missing(*self.metric.features):
            raise NotHere(f"{self.card.id}: {reason}")

    def _rows(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Rows:
        batch = _batch(prompts)
        with torch.no_grad():
            rows = self.metric.measure(self._runner.run(pictures, prompts), batch)
        check_finite(self.card.id, rows, batch)
        return rows

    def _recall(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Rows]:
        """Return the rows of each picture, measuring only those that are not remembered."""
        keys = [_key(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if new:
            rows = self._rows([pictures[i] for i in new.values()], [prompts[i] for i in new.values()])
            for place, key in enumerate(new):
                self._known[key] = {name: column[place : place + 1] for name, column in rows.items()}
        found = [self._known[key] for key in keys]
        for key in list(self._known)[: -self._remembered]:
            del self._known[key]
        return found

    def reward(self, images_BCHW: Tensor, prompts: Prompts) -> Tensor:
        """Return scores_B, differentiable in images_BCHW (floats in [0, 1]): the same measure, tensor preprocessing.

        Raises: UserError where the metric is not differentiable, shapes do not fit or a score is not finite.
        """
        return self.rewards(images_BCHW, [prompts])[0]

    def rewards(self, images_BCHW: Tensor, several: Sequence[Prompts]) -> list[Tensor]:
        """Return what `reward` does, for each of several lists of prompts; the images are looked at once."""
        if not self.card.differentiable:
            raise UserError(f"{self.card.id} is not differentiable; call it on images, as a reward without gradient")
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or not images_BCHW.is_floating_point():
            shape, dtype = tuple(images_BCHW.shape), images_BCHW.dtype
            raise UserError(f"{self.card.id}: images {shape} {dtype}; pass floats in [0, 1] of shape [B, 3, H, W]")
        batches = [_batch(_pair(self.card.id, len(images_BCHW), prompts)) for prompts in several]
        found = self._runner.run_tensors_beside(images_BCHW, [batch.prompts for batch in batches])
        return [self._score(features, batch) for features, batch in zip(found, batches, strict=True)]

    def _score(self, features: Features, batch: Batch) -> Tensor:
        rows = self.metric.measure(features, batch)
        check_finite(self.card.id, rows, batch)
        score_B = rows["score"]
        assert isinstance(score_B, Tensor)
        return score_B


def check_finite(identity: str, rows: Rows, batch: Batch) -> None:
    """Raise UserError naming metric and image where a row holds a NaN or an infinity: it is never stored."""
    for name, column in rows.items():
        if not isinstance(column, Tensor):
            continue
        finite_B = column.detach().isfinite().reshape(len(column), -1).all(dim=1)
        if not finite_B.all():
            worst = int(finite_B.logical_not().nonzero()[0])
            prompt = batch.prompts[worst]
            raise UserError(
                f"{identity}: {name} of the image of prompt {prompt.id or prompt.text!r}, seed {batch.seeds[worst]}, "
                "is not finite; look at that image and at the metric's weights"
            )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all batches as one."""
    rows: Rows = {}
    for name, first in parts[0].items():
        columns = [part[name] for part in parts]
        if isinstance(first, Tensor):
            rows[name] = torch.cat([column for column in columns if isinstance(column, Tensor)])
        else:
            rows[name] = [text for column in columns for text in column if isinstance(text, str)]
    return rows


def _key(picture: Image.Image, prompt: Prompt) -> bytes:
    """Return the sha256 of all that a metric can see: pixels, size, prompt and its metadata."""
    seen = [picture.size, prompt.text, prompt.id, prompt.category, prompt.metadata]
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode() + picture.tobytes()).digest()


def _batch(prompts: Sequence[Prompt]) -> Batch:
    return Batch(prompts=prompts, seeds=range(len(prompts)))


def _pair(identity: str, count: int, prompts: Prompts) -> list[Prompt]:
    """Return B Prompts for B images. Raises UserError where there are none, or another number of them."""
    if isinstance(prompts, (str, Prompt)):
        raise UserError(f"{identity}: pass a list of prompts, one for each image")
    if count == 0 or count != len(prompts):
        raise UserError(f"{identity}: {count} images, {len(prompts)} prompts; pass one prompt for each image")
    return [prompt if isinstance(prompt, Prompt) else Prompt(text=prompt) for prompt in prompts]
