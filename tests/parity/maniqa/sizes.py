"""Sizes, crops and names of the parity run of MANIQA, the same on both sides. Imports nothing but NumPy."""

import numpy as np

PATCH, WIDTH, HEADS, MLP = 28, 16, 2, 24
SCALES = (0.13, 0.8)
BUFFERS = (".relative_position_index", ".attn_mask")
CROPS = 4


def crops() -> np.ndarray:
    """Return float32 [4, 3, 224, 224] in [-1, 1]: blocks of colour with some noise."""
    generator = np.random.default_rng(3)
    coarse = generator.uniform(-1, 1, (CROPS, 3, 8, 8)).repeat(28, axis=2).repeat(28, axis=3)
    return np.clip(coarse + generator.normal(0, 0.2, coarse.shape), -1, 1).astype(np.float32)
