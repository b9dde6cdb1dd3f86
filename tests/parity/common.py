"""What the parity runs of ImageReward and HPSv3 share with their native sides: seeded weights, pairs, shrunken sizes.

Imports nothing but NumPy and Pillow, so that an environment of old packages makes the same bytes as ours.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.parity.clip_common import PAIRS, PROMPTS, SHOWN, checksum, load, pairs, save, seeded_tensor

__all__ = ["PAIRS", "PROMPTS", "SHOWN", "checksum", "load", "pairs", "save", "seeded_tensor"]

# A made-up vocabulary with the parts that decide how BERT's tokenizer works: pieces, accents, punctuation, CJK.
WORDS = (
    "a an the of on in and with red circle castle hill fox by sea cafe curly quotes it s fine salt amp pepper "
    "lt gt b photo two dogs very long prompt about winter cats 12 birds image word don t we ve ll they re sao "
    "paulo 北 京 的"
)
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”’№"]
VOCABULARY = list(
    dict.fromkeys(
        ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        + PUNCTUATION
        + PIECES
        + WORDS.split()
        + [f"##{piece}" for piece in (*PIECES, "ing", "es", "ed")]
    )
)
AWKWARD = (  # more prompts, for tokens alone
    *PROMPTS,
    "[DEC] a [ENC] b [MASK] [PAD] [CLS] [SEP] [UNK]",
    "[dec] A[ENC]b",
    "tab\tnull\x00bell\x07 zero\u200bwidth soft\u00adhyphen",
    "ÀÉÎÕÜ straße İstanbul ǅ",
    "w" * 99 + " " + "w" * 100 + " " + "w" * 101,
    " ".join(["fox"] * 33),
    " ".join(["fox"] * 34),
)

# ImageReward with two blocks a side: the text width is fixed by the head, the image width is not.
VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"num_hidden_layers": 2, "vocab_size": len(VOCABULARY) + 2}
STRIDE = 8  # of the gradient's recorded pixels

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


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a whole state dict by key: `seeded_tensor`, norms near 1, positions as large as what they mark."""
    values = {name: seeded_tensor(name.lower(), tuple(shapes[name])) for name in sorted(shapes)}
    for name in ("blip.visual_encoder.pos_embed", "blip.visual_encoder.cls_token"):
        if name in values:
            values[name] *= np.float32(0.5 / values[name].std())
    for name in [name for name in values if name.startswith("blip.")]:
        if any(part in name for part in ("patch_embed.proj", "pos_embed", "cls_token", "_embeddings.weight")):
            values[name] *= np.float32(0.05)  # so that the eps of the first norms shows
    for name in values.keys() & {f"mlp.layers.{index}.weight" for index in (0, 2, 4, 6, 7)}:
        values[name] *= np.float32(0.7)  # so that rewards are about as large as real ones
    return values


def digest(values: np.ndarray) -> str:
    """Return the sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def hps_v3_ids(index: int, image_tokens: int) -> np.ndarray:
    """Return one row of made-up token ids: text, a picture, text of some length, the reward's token, text."""
    generator = np.random.default_rng(1000 + index)
    parts = [generator.integers(0, PAD, count) for count in (5, 3 + 7 * index % 41, 4)]
    picture = np.array([START, *[IMAGE] * image_tokens, END])
    return np.concatenate([parts[0], picture, parts[1], [REWARD], parts[2]])
