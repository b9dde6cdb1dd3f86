"""DFN-CLIP: CLIPScore by Apple's ViT-H/14 trained on filtered data, a reward of DMDR.

    s(x, c) = cos(f(x), g(c))

Source: Fang et al. 2023, arXiv:2309.17425; DMDR trains on "DFN-CLIP" and does not say which checkpoint. This is the
strongest published one, DFN5B-CLIP-ViT-H-14-378. It needs quick GELU; under its plain architecture's name open_clip
runs ordinary GELU and only warns.
"""

from metrics.base import Card, register
from metrics.clip import BLIND, ClipScore

DFN = "apple/DFN5B-CLIP-ViT-H-14-378"


@register
class DfnClip(ClipScore):
    card = Card(
        id="dfn_clip",
        version=1,
        title="DFN-CLIP (ViT-H/14, 378 px)",
        unit="cosine",
        higher_is_better=True,
        range=(-1.0, 1.0),
        source="open_clip ViT-H-14-378-quickgelu with apple/DFN5B-CLIP-ViT-H-14-378; Fang et al. 2023, "
        "arXiv:2309.17425",
        description="How well a picture agrees with its prompt: the cosine between the two in a larger and more "
        "carefully trained CLIP than clip_score's, at 378 pixels.",
        variant="corrected",
        differentiable=True,
        preprocessing="PIL bicubic to 378x378 whatever the aspect ratio; as a reward, antialiased bicubic on floats",
        comparable="With dfn_clip only. DMDR states neither checkpoint nor scale of its DFN-CLIP reward, and its "
        "CLIP column (about 35) may or may not be it.",
        fooled_by=BLIND,
        long_prompts="Cut to 77 tokens, the end token kept; the cut prompts are counted.",
        tensor_gap="The reward resizes floats (antialiased bicubic, neither rounded nor clamped), the metric 8-bit "
        "pictures by PIL: pixels differ by 0.001 of the [0, 1] scale on average and 0.16 at most, not at all where "
        "nothing is resized (python -m metrics.gap; with weights, `python -m metrics.gap dfn_clip` adds the scores).",
        reported_scale="no table of ours prints it",
        citation="Fang, Jose, Jain, Schmidt, Toshev, Shankar: Data Filtering Networks, 2023, arXiv:2309.17425",
    )
    features = (f"{DFN}:image", f"{DFN}:text")
