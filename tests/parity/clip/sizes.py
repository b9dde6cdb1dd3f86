"""Shrunken architectures of the CLIP family: true layout, vocabulary and context; small widths, few layers."""

from tests.parity.common import SIDE

VOCABULARY, CONTEXT = 49408, 77
# Names by which models that share an architecture get seeded weights of their own.
B32, HPS_V21, G14, DFN, DFN_224 = "b32/", "hps-v2.1/", "g14/", "dfn/", "dfn-224/"

CLIP = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_act": "quick_gelu",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": SIDE,
    },
    "text_config": {
        "hidden_act": "quick_gelu",
        "eos_token_id": 49407,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
PICK = {
    "projection_dim": 40,
    "vision_config": {**CLIP["vision_config"], "hidden_act": "gelu", "hidden_size": 80, "intermediate_size": 320},
    "text_config": {**CLIP["text_config"], "hidden_act": "gelu"},
}
HPS = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 80, "head_width": 20, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2},
}
