"""Diversity: how different the images of one prompt are, in the eyes of an encoder.

    D = 2 / (N (N - 1)) sum_{i<j} (1 - cos(f_i, f_j)) = mean_i d_i
    d_i = 1/(N - 1) sum_{j != i} (1 - cos(f_i, f_j)) = (N - <u_i, sum_j u_j>) / (N - 1),    u = f / ||f||

so a prompt of N images costs N D operations, not N^2 D, and every image has a share in the value. A mean over prompts
weighs each prompt the same. Range [0, N / (N - 1)].

Source: DP-DMD's "DINO" and "CLIP" diversity. Departure: unit vectors are made in float64 instead of float32, which
moves D by less than 1e-7. Axes: N images, D embedding size.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from metrics.base import Batch, Card, Features, Prompt, Rows, Summary, UserError


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


def mean_pairwise_distance(embeddings_ND: np.ndarray) -> float:
    """Return the mean over pairs of 1 - cos, in [0, N / (N - 1)]. Raises UserError below two images."""
    return float(pairwise_distance_shares(embeddings_ND).mean())


class PairwiseDiversity:
    """Base of all feature diversities: a variant is a card and the key of one image encoder.

    An image's row is its embedding: a score needs the other images of its prompt, which may lie in other batches.
    """

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"embedding": [B, D]}, float32."""
        return {"embedding": features[self.features[0]].float()}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return every image's share d_i in its prompt's diversity; their mean is the prompt's value.

        Raises: UserError naming a prompt with fewer than two images.
        """
        embeddings = rows["embedding"]
        assert isinstance(embeddings, Tensor)
        embeddings_ND = embeddings.detach().cpu().numpy()
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.id or prompt.text, []).append(index)
        shares_N = np.empty(len(prompts), np.float32)
        for name, members in groups.items():
            if len(members) < 2:
                raise UserError(
                    f"{self.card.id}: prompt {name!r} has one image and diversity needs two; generate more seeds"
                )
            shares_N[members] = pairwise_distance_shares(embeddings_ND[members])
        return Summary(per_image_N=shares_N)
