"""HPSv3 shrunken, its made-up token ids, and sizes on which the resizing of both sides is compared."""

from typing import Any

import numpy as np

# height, width
SIZES = [(height, width) for height in (8, 100, 256, 448, 700, 1024, 2000) for width in (30, 336, 512, 777, 1344)]

# HPSv3 with two blocks a side; ids of its special tokens, and of the tokens between them.
REWARD, IMAGE, END, START, PAD = 299, 295, 294, 293, 292
HPS_V3: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
HPS_V3_VISION: dict[str, Any] = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 4}
MROPE = [2, 3, 3]


def hps_v3_ids(index: int, image_tokens: int) -> np.ndarray:
    """Return one row of made-up token ids: text, a picture, text of some length, the reward's token, text."""
    generator = np.random.default_rng(1000 + index)
    parts = [generator.integers(0, PAD, count) for count in (5, 3 + 7 * index % 41, 4)]
    picture = np.array([START, *[IMAGE] * image_tokens, END])
    return np.concatenate([parts[0], picture, parts[1], [REWARD], parts[2]])


def by_channel(patches: np.ndarray) -> np.ndarray:
    """Return patches [n, 3 * 2 * 14 * 14] as [n, 3, values of a channel]."""
    return patches.reshape(len(patches), 3, -1)
