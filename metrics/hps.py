"""Human Preference Score v2.0 and v2.1: a CLIP ViT-H/14 trained on people's rankings of generated pictures.

    s(x, c) = cos(f(x), g(c))

Source: Wu et al. 2023, arXiv:2306.09341, and the package hpsv2. Departures: float32 on every device (on a GPU
the package's half precision moves values in steps of 0.00024); a picture whose longer side is exactly 224 gets its
border like any other (the package leaves it oblong and fails); alpha is dropped (the package fails on it).
The two versions are two ids, because papers print both under one name.
"""

from dataclasses import replace

from metrics.base import Card, register
from metrics.clip import NO_GAP, ClipScore

V20, V21 = "xswu/HPSv2", "xswu/HPSv2.1"
CARD = Card(
    id="hps_v2",
    version=1,
    title="HPS v2.0",
    unit="cosine",
    higher_is_better=True,
    range=(-1.0, 1.0),
    source="Wu et al. 2023, arXiv:2306.09341; package hpsv2 1.2.0, hps_version v2.0, in float32",
    description="How well people are expected to like a picture for its prompt. Values spread little: v2.0's own "
    "leaderboard runs from 0.235 to 0.285.",
    differentiable=True,
    preprocessing="float bicubic (antialiased) of the longer side to 224, black border, normalised after padding; "
    "the same as a reward",
    comparable="With hps_v2 only. The package's score() defaults to v2.0 and its evaluate() to v2.1: a column named "
    "HPSv2 with values of 0.177 or 0.32 (17.7 or 32) is v2.1. Numbers made with torchvision before 0.17 were resized "
    "without antialias.",
    fooled_by="Saturated, smooth, brightly lit pictures gain; counts and places matter little. It is a common "
    "training reward: a model trained on it wins here and loses elsewhere. A black border is part of an oblong "
    "picture.",
    long_prompts="Cut to 77 tokens, the end token kept; the cut prompts are counted.",
    tensor_gap=NO_GAP,
    reported_scale="the package's score(): as here; its evaluate() and most tables: x100",
    citation="Wu, Hao, Sun, Chen, Zhu, Zhao, Li: Human Preference Score v2: A Solid Benchmark for Evaluating Human "
    "Preferences of Text-to-Image Synthesis, 2023, arXiv:2306.09341",
)


@register
class HpsV2(ClipScore):
    card = CARD
    features = (f"{V20}:image", f"{V20}:text")


@register
class HpsV21(ClipScore):
    card = replace(
        CARD,
        id="hps_v21",
        title="HPS v2.1",
        source="package hpsv2 1.2.0, hps_version v2.1, in float32; Wu et al. 2023, arXiv:2306.09341",
        description="How well people are expected to like a picture for its prompt, by the weights of v2.1, which "
        "spread more than v2.0's: 0.14 to 0.34.",
        comparable="With hps_v21 only. DMDR's HP Score (17.7 to 33.2) is this times 100, RTDMD's HPSv2 (0.20 to "
        "0.35) is this, each on their own prompts. Numbers made with torchvision before 0.17 were resized without "
        "antialias.",
        reported_scale="DMDR: x100; RTDMD: as here",
    )
    features = (f"{V21}:image", f"{V21}:text")
