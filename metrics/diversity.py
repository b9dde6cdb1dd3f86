"""Diversity: how different the images of one prompt are, in the eyes of an encoder.

    D = 2 / (N (N - 1)) sum_{i<j} (1 - cos(f_i, f_j)) = mean_i d_i
    d_i = 1/(N - 1) sum_{j != i} (1 - cos(f_i, f_j)) = (N - <u_i, sum_j u_j>) / (N - 1),    u = f / ||f||

so a prompt of N images costs N D operations, not N^2 D, and every image has a share in the value. A mean over prompts
weighs each prompt the same. Range [0, N / (N - 1)].

Source: DP-DMD's "DINO" and "CLIP" diversity. Departure: unit vectors are made in float64 instead of float32, which
moves D by less than 1e-7. Axes: N images, D embedding size.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from metrics.base import Batch, Card, Features, Prompt, Rows, Summary, UserError
from metrics.vendi import vendi_score


class PerImageMetric(Protocol):
    """A metric whose rows have a column "score"."""

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": [B], …}."""
        ...


def pairwise_distance_shares(embeddings_ND: np.ndarray) -> np.ndarray:
    """Return d_N, float64: each image's mean distance 1 - cos to the others of its prompt.

    Raises: UserError where there are fewer than two images.
    """
    n = len(embeddings_ND)
    if n < 2:
        raise UserError(f"diversity needs at least two images of every prompt, found {n}; generate more seeds")
    unit_ND = embeddings_ND.astype(np.float64)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    return (n - unit_ND @ unit_ND.sum(axis=0)) / (n - 1)


def gated_distance_shares(embeddings_ND: np.ndarray, passes_N: np.ndarray) -> np.ndarray:
    """Return each image's mean distance to the others of its prompt, 0 for pairs of which one does not pass.

    Raises: UserError as `pairwise_distance_shares`."""
    n, passing = len(embeddings_ND), int(passes_N.sum())
    shares_N = np.zeros(n)
    if n < 2:
        raise UserError(f"diversity needs at least two images of every prompt, found {n}; generate more seeds")
    if passing >= 2:
        shares_N[passes_N] = pairwise_distance_shares(embeddings_ND[passes_N]) * (passing - 1) / (n - 1)
    return shares_N


def mean_pairwise_distance(embeddings_ND: np.ndarray) -> float:
    """Return the mean over pairs of 1 - cos, in [0, N / (N - 1)]. Raises UserError below two images."""
    return float(pairwise_distance_shares(embeddings_ND).mean())


class PairwiseDiversity:
    """Base of all feature diversities: a variant is a card and the key of one image encoder.

    An image's row is its embedding: a score needs the other images of its prompt, which may lie in other batches.
    """

    card: ClassVar[Card]
    features: ClassVar[tuple[str, ...]]  # the first is the embedding

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"embedding": [B, D]}, float32."""
        return {"embedding": features[self.features[0]].float()}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return every image's share d_i in its prompt's diversity; their mean is the prompt's value.

        Raises: UserError naming a prompt with fewer than two images.
        """
        embeddings_ND = column(rows, "embedding")
        shares_N = np.empty(len(prompts), np.float32)
        for members in groups(self, prompts):
            shares_N[members] = pairwise_distance_shares(embeddings_ND[members])
        return Summary(per_image_N=shares_N)


class GatedDiversity(PairwiseDiversity):
    """Base of quality-gated diversities: a card, the key of one image encoder, a quality metric and a threshold.

    D_gated = 2 / (N (N - 1)) sum_{i<j} (1 - cos(f_i, f_j)) [q_i >= threshold] [q_j >= threshold]: a pair with a
    picture that fails counts 0, so that noise and broken pictures add nothing, and dropping them gains nothing.
    """

    quality: ClassVar[PerImageMetric]
    threshold: ClassVar[float]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"embedding": [B, D], "quality": [B]}, float32."""
        return super().measure(features, batch) | {"quality": self.quality.measure(features, batch)["score"]}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return every image's share; errors as of `PairwiseDiversity.summarise`."""
        embeddings_ND, passes_N = column(rows, "embedding"), column(rows, "quality") >= self.threshold
        shares_N = np.empty(len(prompts), np.float32)
        for members in groups(self, prompts):
            shares_N[members] = gated_distance_shares(embeddings_ND[members], passes_N[members])
        return Summary(per_image_N=shares_N)


class VendiDiversity(PairwiseDiversity):
    """Base of Vendi scores of a prompt's images: a card and the key of one image encoder."""

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return its prompt's Vendi score for every image; errors as of `PairwiseDiversity.summarise`."""
        embeddings_ND = column(rows, "embedding")
        scores_N = np.empty(len(prompts), np.float32)
        for members in groups(self, prompts):
            scores_N[members] = vendi_score(embeddings_ND[members])
        return Summary(per_image_N=scores_N)


def column(rows: Rows, name: str) -> np.ndarray:
    """Return one column of rows as an array."""
    values = rows[name]
    assert isinstance(values, Tensor)
    return values.detach().cpu().numpy()


def groups(metric: PairwiseDiversity, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the images of each prompt. Raises UserError naming a prompt that has only one."""
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(prompt.id or prompt.text, []).append(index)
    for name, images in members.items():
        if len(images) < 2:
            raise UserError(
                f"{metric.card.id}: prompt {name!r} has one image and diversity needs two; generate more seeds"
            )
    return list(members.values())
