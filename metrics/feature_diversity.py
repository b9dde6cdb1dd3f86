"""Diversity of a prompt's pictures through published encoders: DINO, CLIP, the Vendi score, and quality-gated forms.

    dino_diversity           DINOv3 ViT-L/16, class token (DP-DMD's "DINO")
    dino_diversity.dinov2b   DINOv2 ViT-B/14 (DP-DMD's monitor in training); .dinov2l: ViT-L/14, open to everybody
    dino_diversity.gated     pairs of which both pictures have an ImageReward of at least 0
    clip_diversity           CLIP ViT-L/14, class token before the last norm (DP-DMD's "CLIP"); .post after it, .proj
                             after the projection
    vendi                    effective number of pictures, DINOv2 ViT-L/14

Formulas: metrics/diversity.py, metrics/vendi.py.
"""

import math
from dataclasses import replace

from metrics.base import Card, register
from metrics.diversity import GatedDiversity, PairwiseDiversity, VendiDiversity
from metrics.image_reward import ImageReward

CLIP = "openai/clip-vit-large-patch14"
NOISE = (
    "Noise, artefacts and wrong pictures: all of them differ. A model that ignores its prompt is as diverse as can "
    "be. Read it beside a quality metric, or take the gated variant."
)
COMPARABLE = (
    "With as many pictures per prompt on the same prompts: DP-DMD takes 16. Differences below 0.005 need the "
    "interval. Never across encoders, nor across outputs of one."
)
DP_DMD = "DP-DMD (diversity-preserved distribution matching distillation), tables 1 to 4"

DINO_CARD = Card(
    id="dino_diversity",
    version=1,
    title="DINO diversity (DINOv3 ViT-L)",
    unit="1 - cosine",
    higher_is_better=True,
    range=(0.0, 2.0),
    source="DP-DMD's evaluation script: mean pairwise 1 - cos over a prompt's pictures, DINOv3 ViT-L/16 class token",
    description="How different the pictures of one prompt are, 0 where all are the same. SD3.5-M with 60 passes has "
    "0.24 on Pick-a-Pic prompts, its DMD student 0.14, DP-DMD's 0.18.",
    preprocessing="floats, both sides to 224 whatever the aspect ratio, bilinear with antialias, not rounded",
    min_images_per_prompt=2,
    comparable=COMPARABLE,
    fooled_by=NOISE,
    reported_scale="DP-DMD: as here (its script subtracts the mean cosine from 1: the same number)",
    citation=f"{DP_DMD}; Siméoni et al.: DINOv3, 2025, arXiv:2508.10104",
)
DINOV2_CARD = replace(
    DINO_CARD,
    id="dino_diversity.dinov2l",
    title="DINO diversity (DINOv2 ViT-L)",
    variant="dinov2l",
    source="dino_diversity's formula, DINOv2 ViT-L/14 class token",
    description="dino_diversity through weights that everybody may fetch. Never print it as a paper's DINO column.",
    preprocessing="PIL bicubic, shorter side to 256, middle square of 224",
    reported_scale="",
    citation=f"{DP_DMD}; Oquab et al.: DINOv2, 2023, arXiv:2304.07193",
)


@register
class DinoDiversity(PairwiseDiversity):
    card = DINO_CARD
    features = ("facebook/dinov3-vitl16:image",)


@register
class Dinov2LDiversity(PairwiseDiversity):
    card = DINOV2_CARD
    features = ("facebook/dinov2-large:image",)


@register
class Dinov2BDiversity(PairwiseDiversity):
    card = replace(
        DINOV2_CARD,
        id="dino_diversity.dinov2b",
        title="DINO diversity (DINOv2 ViT-B)",
        variant="dinov2b",
        source="DP-DMD's monitor in training: mean pairwise 1 - cos, DINOv2 ViT-B/14 class token",
        description="dino_diversity as DP-DMD watches it while it trains, there over 9 pictures of a prompt.",
    )
    features = ("facebook/dinov2-base:image",)


@register
class GatedDinoDiversity(GatedDiversity):
    card = replace(
        DINOV2_CARD,
        id="dino_diversity.gated",
        title="DINO diversity of good pictures (DINOv2 ViT-L)",
        variant="gated",
        source="dino_diversity.dinov2l over pairs of which both pictures have ImageReward >= 0; other pairs count 0",
        description="Diversity that noise cannot buy: a pair counts only where both pictures are at least as good as "
        "the average picture that ImageReward was normalised on. Never above dino_diversity.dinov2l.",
        fooled_by="Whatever fools ImageReward. A model trained on it gets more of its pairs through the gate.",
        long_prompts="ImageReward reads 35 tokens of a prompt; cut prompts are counted.",
        comparable=f"{COMPARABLE} Never with a diversity that is not gated, or gated elsewhere.",
    )
    quality = ImageReward()
    threshold = 0.0
    features = ("facebook/dinov2-large:image", *ImageReward.features)


CLIP_CARD = replace(
    DINO_CARD,
    id="clip_diversity",
    title="CLIP diversity (ViT-L/14, raw class token)",
    source="DP-DMD's evaluation script: mean pairwise 1 - cos over a prompt's pictures, CLIP ViT-L/14's class token "
    "before the last norm and the projection",
    description="How different the pictures of one prompt are in CLIP's eyes. SD3.5-M with 60 passes has 0.22 on "
    "Pick-a-Pic prompts, its DMD student 0.13, DP-DMD's 0.18.",
    preprocessing="PIL bicubic, shorter side to 224, centre crop",
    citation=f"{DP_DMD}; Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, "
    "2021, arXiv:2103.00020",
)


@register
class ClipDiversity(PairwiseDiversity):
    card = CLIP_CARD
    features = (f"{CLIP}:hidden",)


@register
class ClipPostDiversity(PairwiseDiversity):
    card = replace(
        CLIP_CARD,
        id="clip_diversity.post",
        title="CLIP diversity (ViT-L/14, normed class token)",
        variant="post",
        source="clip_diversity's formula on the class token after the last norm",
        description="clip_diversity one layer later, as libraries return it as the pooled output: another number.",
        reported_scale="",
    )
    features = (f"{CLIP}:post",)


@register
class ClipProjDiversity(PairwiseDiversity):
    card = replace(
        CLIP_CARD,
        id="clip_diversity.proj",
        title="CLIP diversity (ViT-L/14, embedding)",
        variant="proj",
        source="clip_diversity's formula on the projected embedding",
        description="clip_diversity in the space in which pictures and prompts are compared: another number.",
        reported_scale="",
    )
    features = (f"{CLIP}:image",)


@register
class Vendi(VendiDiversity):
    card = replace(
        DINOV2_CARD,
        id="vendi",
        title="Vendi score (DINOv2 ViT-L)",
        variant="official",
        unit="effective pictures",
        range=(1.0, math.inf),
        source="Friedman and Dieng 2023, arXiv:2210.02410, Def. 3.1 (order 1) of a prompt's pictures, DINOv2 ViT-L",
        description="How many different pictures a prompt effectively gets: 1 where all are the same, the number of "
        "seeds where all are orthogonal.",
        citation="Friedman, Dieng: The Vendi Score: A Diversity Evaluation Metric for Machine Learning, 2023, "
        "arXiv:2210.02410",
    )
    features = ("facebook/dinov2-large:image",)
