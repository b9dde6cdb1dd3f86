"""Renders to train on: pictures of combinations that training may see, with a map of what stands where."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks.micro.training import numpy_rng
from metrics.micro.prompts import Combination, seen_combinations
from metrics.micro.world import COLOURS, SHAPES, SIZE, Scene, render, sample_scene

# Counting, pairs, positions and attributes are the hardest to draw, so they are shown most.
TAG_WEIGHTS = {
    "single_object": 0.04,
    "two_object": 0.17,
    "counting": 0.22,
    "colors": 0.08,
    "position": 0.24,
    "color_attr": 0.25,
}
CELL = 4  # pixels: one latent
KINDS = 1 + len(SHAPES) * len(COLOURS)  # 0 = background


def draw_combinations(number: int, seed: int) -> list[Combination]:
    """Return combinations that training may see, drawn by `TAG_WEIGHTS`, uniform within a category."""
    rng = numpy_rng(seed, 0)
    by_tag = {tag: [c for c in seen_combinations() if c.tag == tag] for tag in TAG_WEIGHTS}
    tags = rng.choice(list(TAG_WEIGHTS), number, p=list(TAG_WEIGHTS.values()))
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
