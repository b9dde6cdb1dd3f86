"""The micro world's pictures: 1 to 4 coloured shapes on a light background, rendered from signed distances.

64 x 64 RGB; shapes and colours are few, everything else (place, size, angle, tint, colours that a prompt leaves
open) is drawn uniformly, so that the pictures of one prompt differ as those of a real model do.
Units: pixels, x to the right, y downwards, the picture's corner at (0, 0).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 65),
    "blue": (45, 85, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "orange": (245, 135, 25),
}
RADII = {1: (9.0, 13.5), 2: (8.0, 11.0), 3: (7.0, 9.5), 4: (6.5, 8.5)}  # by number of objects
MARGIN = 2.5  # between objects, and to the border
MAX_TILT = math.radians(15)
RELATION_TILT = math.radians(30)  # of the line between two objects, off the axis their relation names
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Thing:
    """One object: its circumscribed radius and centre in pixels, its tilt in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Scene:
    """Objects over a plain background of one RGB colour."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    """What a scene must hold: (shape, colour or "" for any) per object, and the relation of object 1 to object 0."""

    things: tuple[tuple[str, str], ...]
    relation: str = ""


def sample_scene(request: Request, rng: np.random.Generator) -> Scene:
    """Return a scene that fulfils a request, by rejection: objects keep `MARGIN` between them."""
    low, high = RADII[len(request.things)]
    while True:
        radii = rng.uniform(low, high, len(request.things))
        centres = _place(radii, request.relation, rng)
        if centres is not None:
            break
    names = list(COLOURS)
    things = tuple(
        Thing(shape, colour or names[rng.integers(len(names))], x, y, r, rng.uniform(-MAX_TILT, MAX_TILT))
        for (shape, colour), r, (x, y) in zip(request.things, radii.tolist(), centres.tolist(), strict=True)
    )
    red, green, blue = (int(level) for level in rng.integers(228, 251, 3))
    return Scene(things, (red, green, blue))


def render(scene: Scene) -> np.ndarray:
    """Return the picture, uint8 [64, 64, 3], edges smoothed over one pixel."""
    grid = np.arange(SIZE) + 0.5
    x, y = np.meshgrid(grid, grid)
    canvas = np.broadcast_to(np.array(scene.background, dtype=np.float64), (SIZE, SIZE, 3)).copy()
    for thing in scene.things:
        cos, sin = math.cos(thing.tilt), math.sin(thing.tilt)
        dx, dy = x - thing.x, y - thing.y
        distance = signed_distance(thing.shape, cos * dx + sin * dy, cos * dy - sin * dx, thing.radius)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        canvas = canvas * (1 - cover) + cover * np.array(COLOURS[thing.colour], dtype=np.float64)
    return np.round(canvas).astype(np.uint8)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Return the signed distance (negative inside) of points in the shape's own frame; r circumscribes it."""
    rho = np.hypot(x, y)
    if shape == "circle":
        return rho - 0.92 * r
    if shape == "ring":
        return np.abs(rho - 0.72 * r) - 0.26 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8 * r
    if shape == "triangle":  # equilateral, a corner upwards: three half-planes at the inradius r / 2
        return np.maximum(y - r / 2, np.abs(x) * math.sqrt(3) / 2 - y / 2 - r / 2)
    bar_x = np.maximum(np.abs(x) - r, np.abs(y) - 0.34 * r)
    bar_y = np.maximum(np.abs(y) - r, np.abs(x) - 0.34 * r)
    return np.minimum(bar_x, bar_y)  # cross


def _place(radii: np.ndarray, relation: str, rng: np.random.Generator) -> np.ndarray | None:
    """Return centres [n, 2], or None where this draw does not fit."""
    edge = radii + MARGIN
    centres = rng.uniform(edge[:, None], SIZE - edge[:, None], (len(radii), 2))
    if relation:
        away = math.atan2(*reversed(DIRECTIONS[relation])) + rng.uniform(-RELATION_TILT, RELATION_TILT)
        distance = rng.uniform(radii.sum() + MARGIN, 42)
        centres[1] = centres[0] + distance * np.array([math.cos(away), math.sin(away)])
        if (centres[1] < edge[1]).any() or (centres[1] > SIZE - edge[1]).any():
            return None
    gaps = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1)) - radii[:, None] - radii[None]
    return centres if (gaps[~np.eye(len(radii), dtype=bool)] >= MARGIN).all() else None


def mosaic(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return pictures tiled row by row, uint8 [rows * 64, columns * 64, 3]; missing places stay white."""
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * SIZE, columns * SIZE, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * SIZE, index % columns * SIZE
        sheet[top : top + SIZE, left : left + SIZE] = picture
    return sheet
