"""Early steps fix the layout: trajectories of the micro teacher that part at step k.

A trunk runs the teacher's guided ODE to step k. Branches then take step k with fresh noise (CPS with eta = 1, the
consistency re-noising that few-step samplers use) and run the ODE to the end, from there without any noise. What the
branches of a trunk have in common was decided before step k. Measured by the world's own detector:

    content   share of pairs of branches with the same objects (shape, colour)
    layout    share of pairs with the same objects in the same places of a 3 × 3 grid
    picture   mean absolute difference of pixels between branches, in [0, 1]
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.samplers import cps, euler, sigma_grid
from metrics.images import as_pils
from metrics.micro.shapes import Detection, detect
from trainers.backbones.base import Backbone
from trainers.flow import Velocity

CELLS = 3  # in each direction
CERTAIN = 0.3  # GenEval's threshold
Layout = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Agreement:
    """What branches that part at step k have in common."""

    k: int
    level: float
    content: float
    layout: float
    picture: float


def branch(velocity: Velocity, x: Tensor, levels: Sequence[float], k: int, generator: torch.Generator) -> Tensor:
    """Return the ends of trajectories from noise x [B, ...] that take step k with fresh noise; steps count from 1."""
    for place, (t, t_next) in enumerate(pairwise(levels), start=1):
        v = velocity(x, t)
        fresh = place == k and t_next > 0
        move = cps(x, v, t, t_next, 1.0) if fresh else euler(x, v, t, t_next)
        x = move.sample(torch.randn(x.shape, generator=generator)) if fresh else move.mean
    return x


@torch.no_grad()
def branches(backbone: Backbone, prompts: Sequence[str], count: int, k: int, seed: int = 0) -> list[Tensor]:
    """Return images [count, 3, H, W] for each prompt: branches of one trunk that part at step k."""
    protocol = backbone.protocol()
    levels, found = sigma_grid(protocol), []
    for place, prompt in enumerate(prompts):
        trunk = torch.Generator().manual_seed(1000 * seed + place)
        z = torch.randn(1, *backbone.latent_shape, generator=trunk).expand(count, *backbone.latent_shape)
        encoded = backbone.encode([prompt] * count)

        def velocity(x: Tensor, t: float, encoded: object = encoded) -> Tensor:
            return backbone.velocity("teacher", x, t, prompts=encoded, guidance_scale=protocol.guidance_scale)

        ends = branch(velocity, z, levels, k, torch.Generator().manual_seed(7919 * (seed + 1) + 31 * k + place))  # type: ignore[arg-type]
        found.append(backbone.decode(ends))
    return found


def agreement(images: Sequence[Tensor], k: int, level: float) -> Agreement:
    """Return what the branches [N, 3, H, W] of each trunk have in common."""
    same_content, same_layout, apart = [], [], []
    for trunk in images:
        detected = [[d for d in detect(np.asarray(picture)) if d.score >= CERTAIN] for picture in as_pils(trunk)]
        size = trunk.shape[-1]
        for i, j in combinations(range(len(trunk)), 2):
            same_content.append(content(detected[i]) == content(detected[j]))
            same_layout.append(layout(detected[i], size) == layout(detected[j], size))
            apart.append(float((trunk[i] - trunk[j]).abs().mean()))

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Agreement(k, level, mean(same_content), mean(same_layout), mean(apart))


def content(detections: Sequence[Detection]) -> Layout:
    """Return the objects of a picture."""
    return Counter((one.shape, one.colour) for one in detections)


def layout(detections: Sequence[Detection], size: int) -> Layout:
    """Return the objects of a picture with the cells of their centres."""

    def cell(low: int, high: int) -> str:
        return str(min(CELLS - 1, int(CELLS * (low + high) / 2 / size)))

    return Counter(
        (one.shape, one.colour, cell(one.box[0], one.box[2]), cell(one.box[1], one.box[3])) for one in detections
    )
