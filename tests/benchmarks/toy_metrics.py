"""Metrics in closed form, registered as a user's plugin would be: no weights, or weights that are missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metrics.base import Batch, Card, Features, PerImage, Prompt, Rows, Summary, register
from metrics.diversity import PairwiseDiversity
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Uint8
from metrics.weights import WeightFolder


def channel_means(arrays: list[np.ndarray]) -> Tensor:
    """Return [B, 3] in [0, 1]."""
    return torch.stack([torch.from_numpy(array.astype(np.float32)).mean(dim=(0, 1)) / 255 for array in arrays])


def broken_forward(arrays: list[np.ndarray]) -> Tensor:
    """Tests put something here that fails."""
    raise NotImplementedError


def text_lengths(texts: list[str]) -> Tensor:
    """Return [B, 1]; tests count the calls."""
    return torch.tensor([[float(len(text))] for text in texts])


@register_encoders("toy")
def toy_encoders(device: torch.device) -> Mapping[str, Encoder]:
    def lengths(texts: list[str]) -> Tensor:
        return text_lengths(texts)

    gone = WeightFolder(path=Path("no/such/folder"), mend="python -m make.them (3 GB)")
    return {
        "means": Encoder(reads="image", forward=channel_means, preprocessing=Uint8),
        "text": Encoder(reads="text", forward=lengths, truncates=lambda text: " and " in text, precision="bfloat16"),
        "broken": Encoder(reads="image", forward=lambda arrays: broken_forward(arrays), preprocessing=Uint8),
        "gone": Encoder(reads="image", forward=channel_means, preprocessing=Uint8, weights=gone),
    }


def card(identity: str, **changes: object) -> Card:
    common = {"version": 1, "title": identity, "unit": "", "higher_is_better": True, "range": (0.0, 1.0)}
    return Card(id=identity, source="none", description="", **{**common, **changes})  # type: ignore[arg-type]


@register
class Redness(PerImage):
    card = card("toy_redness")
    features = ("toy:means",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        return {"score": features["toy:means"][:, 0]}


@register
class Verdict(PerImage):
    """0 or 1 with a reason, averaged over categories, as judges are."""

    card = card("toy_verdict", aggregate="categories")
    features = ("toy:means",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        right = features["toy:means"][:, 0] > features["toy:means"][:, 2]
        return {
            "score": right.float(),
            "reason": ["" if r else f"{p.id}: blue" for r, p in zip(right, batch.prompts, strict=True)],
        }


@register
class Spread(PairwiseDiversity):
    card = card("toy_spread", min_images_per_prompt=2)
    features = ("toy:means",)


@register
class NotFinite(PerImage):
    """A metric that fails on the images of one prompt."""

    card = card("toy_nan")
    features = ("toy:means",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        score = features["toy:means"][:, 0].clone()
        score[[prompt.id == "colors-1" for prompt in batch.prompts]] = float("nan")
        return {"score": score}


@register
class Long(PerImage):
    """A metric whose encoder reads prompts up to the word "and", in bfloat16."""

    card = card("toy_long")
    features = ("toy:text",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        return {"score": features["toy:text"][:, 0]}


@register
class Wordy(PerImage):
    """Another reader of the same texts."""

    card = card("toy_wordy")
    features = ("toy:means", "toy:text")

    def measure(self, features: Features, batch: Batch) -> Rows:
        return {"score": features["toy:means"][:, 0] + features["toy:text"][:, 0]}


@register
class Unread(PerImage):
    """A metric that finds no value for the pictures of one prompt and says so in its summary."""

    card = card("toy_unread")
    features = ("toy:means",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        readable = [prompt.id != "colors-1" for prompt in batch.prompts]
        return {"score": features["toy:means"][:, 0], "answer": ["0.5" if read else "?" for read in readable]}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        readable_N = np.array([answer != "?" for answer in rows["answer"]])
        values_N = super().summarise(rows, prompts).per_image_N
        return Summary(per_image_N=np.where(readable_N, values_N, np.nan).astype(np.float32))


@register
class Broken(PerImage):
    """A metric whose encoder fails."""

    card = card("toy_broken")
    features = ("toy:broken",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        return {"score": features["toy:broken"][:, 0]}


@register
class Gone(PerImage):
    card = card("toy_gone")
    features = ("toy:gone",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        return {"score": features["toy:gone"][:, 0]}
