"""DFN-CLIP: CLIPScore by Apple's ViT-H/14 trained on filtered data, a reward of DMDR.

    s(x, c) = cos(f(x), g(c))

    dfn_clip         DFN5B-CLIP-ViT-H-14-378, the strongest published one
    dfn_clip.224     DFN5B-CLIP-ViT-H-14, the one that DMDR trains on: its paper says "DFN-CLIP", its authors' scripts
                     load this checkpoint and resize to 224 x 224

Source: Fang et al. 2023, arXiv:2309.17425. Both need quick GELU; under their plain architectures' names open_clip
runs ordinary GELU and only warns. Departure from DMDR's scripts: they load dfn_clip.224 that way, as "ViT-H-14" from
a file, and so reward by ordinary GELU, in 16 bits; here it runs as it was trained, in float32.
"""

from dataclasses import replace

from metrics.base import Card, register
from metrics.clip import BLIND, ClipScore

DFN, DFN_224 = "apple/DFN5B-CLIP-ViT-H-14-378", "apple/DFN5B-CLIP-ViT-H-14"
TENSOR_GAP = (
    "The reward resizes floats (antialiased bicubic, neither rounded nor clamped), the metric 8-bit pictures by PIL: "
    "pixels differ by {} of the [0, 1] scale on average and {} at most, not at all where nothing is resized (python "
    "-m metrics.gap; with weights, `python -m metrics.gap {}` adds the scores)."
)
CARD = Card(
    id="dfn_clip",
    version=1,
    title="DFN-CLIP (ViT-H/14, 378 px)",
    unit="cosine",
    higher_is_better=True,
    range=(-1.0, 1.0),
    source="open_clip ViT-H-14-378-quickgelu with apple/DFN5B-CLIP-ViT-H-14-378; Fang et al. 2023, arXiv:2309.17425",
    description="How well a picture agrees with its prompt: the cosine between the two in a larger and more "
    "carefully trained CLIP than clip_score's, at 378 pixels.",
    variant="corrected",
    differentiable=True,
    preprocessing="PIL bicubic to 378x378 whatever the aspect ratio; as a reward, antialiased bicubic on floats",
    comparable="With dfn_clip only. DMDR's reward is another checkpoint (dfn_clip.224), and its CLIP column (about "
    "35) names no encoder: it may or may not be either.",
    fooled_by=BLIND,
    long_prompts="Cut to 77 tokens, the end token kept; the cut prompts are counted.",
    tensor_gap=TENSOR_GAP.format("0.001", "0.16", "dfn_clip"),
    reported_scale="no table of ours prints it",
    citation="Fang, Jose, Jain, Schmidt, Toshev, Shankar: Data Filtering Networks, 2023, arXiv:2309.17425",
)


@register
class DfnClip(ClipScore):
    card = CARD
    features = (f"{DFN}:image", f"{DFN}:text")


@register
class DfnClip224(ClipScore):
    card = replace(
        CARD,
        id="dfn_clip.224",
        title="DFN-CLIP (ViT-H/14, 224 px)",
        source="open_clip ViT-H-14-quickgelu with apple/DFN5B-CLIP-ViT-H-14; Fang et al. 2023, arXiv:2309.17425",
        description="dfn_clip by the checkpoint at 224 pixels: the one that DMDR trains on.",
        preprocessing="PIL bicubic to 224x224 whatever the aspect ratio; as a reward, antialiased bicubic on floats",
        comparable="With dfn_clip.224 only. DMDR's authors load the same file under an architecture with ordinary "
        "GELU and run it in 16 bits, so that their reward's values are others; they print none. Their CLIP column "
        "(about 35) names no encoder.",
        tensor_gap=TENSOR_GAP.format("0.001", "0.15", "dfn_clip.224"),
    )
    features = (f"{DFN_224}:image", f"{DFN_224}:text")
