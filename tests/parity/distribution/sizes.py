"""Pictures and seeded weights of the parity runs of Inception, LPIPS and the distances between sets.

Imports nothing but NumPy and Pillow, so that both sides make the same bytes. Convolutions are He-normal and norms
neutral: with a library's own initialisation all pictures have nearly one feature, and every test is empty.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

SIZES = ((64, 64), (299, 299), (96, 48), (33, 257), (256, 256), (400, 300))  # H, W
SHOWN = 8  # pictures whose whole features are recorded
SEEDS = 6  # pictures of the LPIPS run, of one size
FEATURES = ("pool", "logits", "spatial")
EVERY = 64  # of the numbers of a feature, how many there are for each that the whole run records


def picture(index: int) -> Image.Image:
    """Return one smooth picture with some noise."""
    height, width = SIZES[index % len(SIZES)]
    generator = np.random.default_rng(index)
    coarse = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    blocks = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    noise = generator.integers(0, 1 + 40 * (index % 5), (height, width, 3))
    return Image.fromarray((blocks * 0.8 + noise).clip(0, 255).astype(np.uint8))


def seeded_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 values of one weight, which depend on its name and shape alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith(("running_var", "bn.weight")):
        return 1 + np.float32(0.1) * np.abs(values)
    if len(shape) < 2:
        return np.float32(0.1) * values
    if name == "fc.weight":
        return np.float32(0.02) * values  # large enough that the Inception Score exceeds 1.5
    return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a whole state dict by key; counters of training are left out."""
    kept = (name for name in sorted(shapes) if not name.endswith("num_batches_tracked"))
    return {name: seeded_tensor(name, tuple(shapes[name])) for name in kept}


def feature_sets() -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features, [200, 32] and [220, 32], float32: small, skewed, of unlike covariances."""
    generator = np.random.default_rng(7)
    mix = generator.standard_normal((2, 32, 32)) / 6
    first, second = generator.standard_normal((200, 32)), generator.standard_normal((220, 32))
    return (np.abs(first @ mix[0]).astype(np.float32), np.abs(second @ mix[1] + 0.1).astype(np.float32))


def large_sets() -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features, [4096, 2048], float32: of the size of a real one, their spectra wide."""
    generator = np.random.default_rng(11)
    scales = np.logspace(0, -2, 2048, dtype=np.float32)
    first, second = (generator.standard_normal((4096, 2048), dtype=np.float32) * scales for _ in range(2))
    return first, np.roll(second, 3, axis=1) + np.float32(0.01)
