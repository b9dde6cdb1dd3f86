"""Renders to train on: pictures of combinations that training may see, with a map of what stands where."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import MappingProxyType

import numpy as np

from benchmarks.micro.training import numpy_rng
from metrics.micro.prompts import Combination, seen_combinations
from metrics.micro.world import COLOURS, SHAPES, SIZE, Scene, render, sample_scene

# Counting, pairs, positions and attributes are the hardest to draw, so they are shown most…
TAG_WEIGHTS = {
    "single_object": 0.04,
    "two_object": 0.17,
    "counting": 0.22,
    "colors": 0.08,
    "position": 0.24,
    "color_attr": 0.25,
}
# … and once positions and attributes are learnt, what is still weak: nothing but the shapes themselves tells the two
# objects of a pair apart, and a teacher that knows them one by one still draws the same shape twice.
WEAK_WEIGHTS = {
    "single_object": 0.03,
    "two_object": 0.37,
    "counting": 0.32,
    "colors": 0.06,
    "position": 0.09,
    "color_attr": 0.13,
}
EVEN_WEIGHTS = dict.fromkeys(TAG_WEIGHTS, 1 / len(TAG_WEIGHTS))  # where every category counts alike
# A picture's own prompt is hardest to judge where the count is asked for, since only clean shapes count.
FINE_WEIGHTS = {
    "single_object": 0.05,
    "two_object": 0.2,
    "counting": 0.35,
    "colors": 0.12,
    "position": 0.13,
    "color_attr": 0.15,
}
CELL = 4  # pixels: one latent
KINDS = 1 + len(SHAPES) * len(COLOURS)  # 0 = background


def draw_combinations(
    number: int, seed: int, weights: Mapping[str, float] = MappingProxyType(TAG_WEIGHTS)
) -> list[Combination]:
    """Return combinations that training may see: categories drawn by their weights, uniform within a category."""
    rng = numpy_rng(seed, 0)
    by_tag = {tag: [c for c in seen_combinations() if c.tag == tag] for tag in weights}
    tags = rng.choice(list(weights), number, p=list(weights.values()))
    return [by_tag[tag][rng.integers(len(by_tag[tag]))] for tag in tags]


def render_all(combinations: Sequence[Combination], seed: int, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return one picture per combination, uint8 [N, 64, 64, 3], and its map of kinds, uint8 [N, 16, 16].

    Picture i depends on (seed, i) only."""
    jobs = [(combination, seed, index) for index, combination in enumerate(combinations)]
    with ProcessPoolExecutor(workers) as pool:
        pairs = list(pool.map(_render_one, jobs, chunksize=512))
    return np.stack([picture for picture, _ in pairs]), np.stack([kinds for _, kinds in pairs])


def kind_map(scene: Scene) -> np.ndarray:
    """Return, for the middle of every latent cell, 1 + 6 shape + colour of the object whose disc holds it, or 0."""
    grid = np.arange(CELL / 2, SIZE, CELL)
    x, y = np.meshgrid(grid, grid)
    kinds = np.zeros(x.shape, np.uint8)
    for thing in scene.things:
        inside = np.hypot(x - thing.x, y - thing.y) < thing.radius
        kinds[inside] = 1 + SHAPES.index(thing.shape) * len(COLOURS) + list(COLOURS).index(thing.colour)
    return kinds


def _render_one(job: tuple[Combination, int, int]) -> tuple[np.ndarray, np.ndarray]:
    combination, seed, index = job
    scene = sample_scene(combination.request, numpy_rng(seed, index + 1))
    return render(scene), kind_map(scene)
