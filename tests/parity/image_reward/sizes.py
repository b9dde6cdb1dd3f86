"""ImageReward shrunken, with a vocabulary of its own; its seeded weights."""

from collections.abc import Mapping

import numpy as np

from tests.parity import common
from tests.parity.common import PROMPTS

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


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a whole state dict by key: `seeded_tensor`, norms near 1, positions as large as what they mark."""
    values = {name: common.seeded_tensor(name.lower(), tuple(shapes[name])) for name in sorted(shapes)}
    for name in ("blip.visual_encoder.pos_embed", "blip.visual_encoder.cls_token"):
        if name in values:
            values[name] *= np.float32(0.5 / values[name].std())
    for name in [name for name in values if name.startswith("blip.")]:
        if any(part in name for part in ("patch_embed.proj", "pos_embed", "cls_token", "_embeddings.weight")):
            values[name] *= np.float32(0.05)  # so that the eps of the first norms shows
    for name in values.keys() & {f"mlp.layers.{index}.weight" for index in (0, 2, 4, 6, 7)}:
        values[name] *= np.float32(0.7)  # so that rewards are about as large as real ones
    return values
