"""CLIPScore: agreement of an image with its own prompt, seen by an image-text model.

    s(x, c) = cos(f(x), g(c))

Source: Hessel et al. 2021, arXiv:2104.08718, Sec. 3. Departure: the raw cosine, neither clamped at 0 nor scaled by
the paper's 2.5; a table that imitates a paper scales by the card.
Axes: B images and their prompts, D embedding size.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.base import Batch, Card, Features, PerImage, Rows


def clip_score(image_BD: Tensor, text_BD: Tensor) -> Tensor:
    """Return scores_B in [-1, 1], row by row: float32, or float64 where the embeddings are."""
    # In bfloat16 the values next to 0.3 lie 0.002 apart: wider than the gap between close models.
    dtype = torch.promote_types(image_BD.dtype, torch.float32)
    return F.cosine_similarity(image_BD.to(dtype), text_BD.to(dtype), dim=-1)


class ClipScore(PerImage):
    """Base of all CLIP scores: a variant is a card and the keys of an image and a text encoder."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str, str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": scores_B} in [-1, 1]: every image against its own prompt."""
        image, text = self.features
        return {"score": clip_score(features[image], features[text])}
