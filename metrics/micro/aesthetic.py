"""A small aesthetic score that likes strong, crisp, colourful pictures, and can be hacked.

    s(x) = b + sum_k w_k (log f_k(x) - m_k) / d_k

over four statistics f of a picture. The weights tell clean renders from blurred, faded and noisy ones (logistic
regression), so s rises with quality near real pictures, and goes on rising where contrast and edges are exaggerated
and nothing is drawn right: a reward to watch hacking with.

Weights: `aesthetic/model.safetensors` with float tensors "weight", "mean", "std" [K] and "bias" [].
Axes: B images, C = 3 channels, H x W pixels, K = 4 statistics.
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from metrics.base import UserError
from metrics.features import Encoder
from metrics.preprocessing import Resized
from metrics.weights import WeightFolder

FILE = "model.safetensors"
STATISTICS = ("contrast", "saturation", "edges", "sharpness")
PIXELS = Resized(size=(64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
LUMA = (0.299, 0.587, 0.114)  # BT.601
EPSILON = 1e-6  # of squared [0, 1] units: keeps log and root differentiable on a blank picture


def log_statistics(pixels_BCHW: Tensor) -> Tensor:
    """Return the logarithms [B, K] of a picture's statistics, differentiably; pixels lie in [0, 1].

    contrast     standard deviation of the luma
    saturation   root mean square distance of the channels from the luma
    edges        root mean square gradient of the luma
    sharpness    root mean square gradient, weighted by its own square: how steep the edges are, not how many
    """
    luma_BHW = torch.einsum("bchw,c->bhw", pixels_BCHW, pixels_BCHW.new_tensor(LUMA))
    dx_BHW = luma_BHW[:, :-1, 1:] - luma_BHW[:, :-1, :-1]
    dy_BHW = luma_BHW[:, 1:, :-1] - luma_BHW[:, :-1, :-1]
    gradient2_BHW = dx_BHW**2 + dy_BHW**2
    edges2_B = gradient2_BHW.mean(dim=(1, 2))
    squares_BK = torch.stack(
        [
            luma_BHW.var(dim=(1, 2), correction=0),
            ((pixels_BCHW - luma_BHW[:, None]) ** 2).mean(dim=(1, 2, 3)),
            edges2_B,
            (gradient2_BHW**2).mean(dim=(1, 2)) / (edges2_B + EPSILON),
        ],
        dim=1,
    )
    return 0.5 * (squares_BK + EPSILON).log()


def aesthetic_score(statistics_BK: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return logits [B]: above 0 where a picture looks rather like a clean render than like a degraded one."""
    return ((statistics_BK - weights["mean"]) / weights["std"]) @ weights["weight"] + weights["bias"]


def encoders(weights: WeightFolder, device: torch.device) -> Mapping[str, Encoder]:
    """Return {"score"}: the score of 64x64 pictures, [B]."""
    head = Aesthetic(weights, device)
    return {"score": Encoder(reads="image", forward=head.score, preprocessing=lambda: PIXELS, weights=weights)}


class Aesthetic:
    """The fitted head, read at first use."""

    def __init__(self, weights: WeightFolder, device: torch.device) -> None:
        self.weights = weights
        self.device = device

    def score(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits [B]. Raises UserError where the weights are missing, damaged or not this head's."""
        return aesthetic_score(log_statistics(pixels_BCHW), self._head)

    @cached_property
    def _head(self) -> dict[str, Tensor]:
        head = {name: tensor.float().to(self.device) for name, tensor in self.weights.tensors(FILE).items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
        expected = {"weight": (4,), "mean": (4,), "std": (4,), "bias": ()}
        if shapes != expected:
            raise UserError(f"{self.weights.path / FILE}: tensors {shapes}, expected {expected}; {self.weights.mend}")
        return head
