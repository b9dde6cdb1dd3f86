"""The weights of `micro_aesthetic`: a logistic regression of clean against degraded renders.

Four statistics of a picture (metrics/micro/aesthetic.py), standardised over both classes; degraded pictures are
blurred, faded towards their mean, or noisy, each by a random amount.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from benchmarks.micro.renders import draw_combinations, render_all
from benchmarks.micro.training import numpy_rng
from metrics.micro.aesthetic import FILE, aesthetic_score, log_statistics

SEED = 31
RENDERS = 4000
RIDGE = 1e-2  # keeps the weights finite where the classes can be separated


def fit_aesthetic() -> dict[str, Tensor]:
    """Return "weight", "mean", "std" [4] and "bias" [], fitted on `RENDERS` pairs of clean and degraded pictures."""
    clean, _ = render_all(draw_combinations(RENDERS, SEED), SEED)
    degraded = np.stack([degrade(picture, numpy_rng(SEED, index)) for index, picture in enumerate(clean)])
    pixels = torch.from_numpy(np.concatenate([clean, degraded])).permute(0, 3, 1, 2).float().div(255)
    statistics_NK = log_statistics(pixels)
    labels_N = torch.arange(2 * RENDERS).lt(RENDERS).float()
    fitted = {"mean": statistics_NK.mean(0), "std": statistics_NK.std(0)}
    weight, bias = torch.zeros(4, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_N = aesthetic_score(statistics_NK, {**fitted, "weight": weight, "bias": bias})
        value = F.binary_cross_entropy_with_logits(logits_N, labels_N) + RIDGE * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return {**fitted, "weight": weight.detach(), "bias": bias.detach()}


def degrade(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a picture blurred, faded or with noise, uint8 [64, 64, 3]."""
    x = picture.astype(np.float64)
    kind = rng.integers(3)
    if kind == 0:
        x = ndimage.gaussian_filter(x, (*(rng.uniform(0.6, 2.5),) * 2, 0))
    elif kind == 1:
        x = x.mean() + rng.uniform(0.3, 0.85) * (x - x.mean())
    else:
        x = ndimage.gaussian_filter(x, (0.7, 0.7, 0)) + rng.normal(0, rng.uniform(3, 12), x.shape)
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def save_aesthetic(folder: Path) -> None:
    """Fit and write the weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(fit_aesthetic(), folder / FILE)
