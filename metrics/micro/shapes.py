"""The exact detector of the micro world: coloured shapes found by analysis through synthesis.

1. Unmix: every pixel is background + cover * (colour - background) of the palette colour that leaves the least rest.
2. Components: connected pixels of one colour, at least half covered.
3. Fit: centre from the component's centroid, radius from its area, tilt from a grid; each of the five shapes is drawn
   by the renderer's own signed distances, and the best soft IoU with the component's cover names it.
4. Score: 0 below an IoU that blobs reach, 1 above one that clear shapes reach, linear between. A malformed blob
   stays below GenEval's threshold (0.3) and is dropped; counting (0.9) asks for clean shapes.

It judges pictures of this world only. Axes: H x W pixels, K palette colours, T tilts.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from metrics.micro.world import COLOURS, SHAPES, signed_distance

PALETTE_K3 = np.array(list(COLOURS.values()), dtype=np.float64)
MIN_PIXELS = 20  # of a component; the smallest shape of the world has about 80
MIN_COVER = 0.5
IOU_RANGE = {  # scores 0 and 1: what blobs reach, and less than what the autoencoder leaves of a clean shape
    "circle": (0.82, 0.92),
    "square": (0.80, 0.90),
    "ring": (0.78, 0.88),
    "triangle": (0.77, 0.87),
    "cross": (0.74, 0.84),
}
TILTS = {  # radians; beyond the world's ±15°, so that a slightly turned shape is still itself
    "circle": np.zeros(1),
    "ring": np.zeros(1),
    "square": np.radians(np.arange(-20, 21, 4)),
    "triangle": np.radians(np.arange(-20, 21, 4)),
    "cross": np.radians(np.arange(-20, 21, 4)),
}
AREAS = {  # of radius 1, following `world.signed_distance`
    "circle": math.pi * 0.92**2,
    "ring": math.pi * (0.98**2 - 0.46**2),
    "square": 1.6**2,
    "triangle": 0.75 * math.sqrt(3),
    "cross": 4 * 2 * 0.34 - 4 * 0.34**2,
}


@dataclass(frozen=True)
class Detection:
    """One object. box: x1, y1, x2, y2 in pixels, right and bottom exclusive; score in [0, 1]; pixels: its area."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]
    score: float
    pixels: int


def detect(image_HW3: np.ndarray) -> list[Detection]:
    """Return the objects of one uint8 picture [H, W, 3], most certain first; malformed ones with a low score."""
    cover_HW, colour_HW = unmix(image_HW3)
    found = []
    for index, colour in enumerate(COLOURS):
        labels, _ = ndimage.label((colour_HW == index) & (cover_HW >= MIN_COVER))
        for label, where in enumerate(ndimage.find_objects(labels), 1):
            pixels = int((labels[where] == label).sum())
            if pixels < MIN_PIXELS:
                continue
            rows, columns = where
            shape, iou = _fit(_component_cover(labels == label, cover_HW, where))
            low, high = IOU_RANGE[shape]
            score = min(max((iou - low) / (high - low), 0.0), 1.0)
            found.append(
                Detection(shape, colour, (columns.start, rows.start, columns.stop, rows.stop), score, pixels)
            )
    return sorted(found, key=lambda detection: -detection.score)


def unmix(image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each pixel is covered (float64 [H, W] in [0, 1]) and by which palette colour (int [H, W])."""
    pixels_HW3 = image_HW3.astype(np.float64)
    frame = np.concatenate([pixels_HW3[[0, -1]].reshape(-1, 3), pixels_HW3[:, [0, -1]].reshape(-1, 3)])
    background_3 = np.median(frame, axis=0)
    rays_K3 = PALETTE_K3 - background_3
    offset_HW3 = pixels_HW3 - background_3
    cover_HWK = np.clip(offset_HW3 @ rays_K3.T / (rays_K3**2).sum(1), 0, 1)
    # |offset - cover ray|^2, without its common term |offset|^2
    rest_HWK = cover_HWK**2 * (rays_K3**2).sum(1) - 2 * cover_HWK * (offset_HW3 @ rays_K3.T)
    colour_HW = rest_HWK.argmin(axis=-1)
    return np.take_along_axis(cover_HWK, colour_HW[..., None], axis=-1)[..., 0], colour_HW


def _component_cover(member_HW: np.ndarray, cover_HW: np.ndarray, where: tuple[slice, slice]) -> np.ndarray:
    """Return the component's cover with its smooth edge, cut out with 3 pixels around."""
    rows, columns = where
    padded = np.pad(member_HW, 3)[rows.start : rows.stop + 6, columns.start : columns.stop + 6]
    cover = np.pad(cover_HW, 3)[rows.start : rows.stop + 6, columns.start : columns.stop + 6]
    return cover * ndimage.binary_dilation(padded, np.ones((3, 3), dtype=bool))


def _fit(cover_HW: np.ndarray) -> tuple[str, float]:
    """Return the shape that explains a component's cover best, and their soft IoU: sum of minima / of maxima."""
    area = cover_HW.sum()
    y, x = np.indices(cover_HW.shape, dtype=np.float64)
    dx, dy = x - (x * cover_HW).sum() / area, y - (y * cover_HW).sum() / area
    best, best_iou = SHAPES[0], -1.0
    for shape in SHAPES:
        cos_T, sin_T = np.cos(TILTS[shape])[:, None, None], np.sin(TILTS[shape])[:, None, None]
        radius = math.sqrt(area / AREAS[shape])
        distance_THW = signed_distance(shape, cos_T * dx + sin_T * dy, cos_T * dy - sin_T * dx, radius)
        ideal_THW = np.clip(0.5 - distance_THW, 0, 1)
        common_T = np.minimum(ideal_THW, cover_HW).sum(axis=(1, 2))
        iou = float((common_T / (ideal_THW.sum(axis=(1, 2)) + area - common_T)).max())
        if iou > best_iou:
            best, best_iou = shape, iou
    return best, best_iou
