"""MANIQA: how good a picture looks, without its prompt and without a reference, rated crop by crop.

    value(x) = mean over crops c of MANIQA(c)

    maniqa           trained on PIPAL, at its training's scale; 20 crops on a fixed grid
    maniqa.koniq     trained on KonIQ-10k; the same crops
    maniqa.official  the authors' script: KonIQ-10k, 20 random crops
    maniqa.dp_dmd    DP-DMD's script: PIPAL's weights at KonIQ's scale, 10 random crops

Network and crops: metrics/encoders/maniqa.py. Source: Yang et al. 2022, arXiv:2204.08958. Axes: B images.
"""

from dataclasses import replace
from typing import ClassVar

from metrics.base import Batch, Card, Features, PerImage, Rows, register

GRID = "20 crops of 224 at native resolution, 4 rows x 5 columns from edge to edge; smaller pictures are enlarged"
CARD = Card(
    id="maniqa",
    version=1,
    title="MANIQA (PIPAL)",
    unit="quality",
    higher_is_better=True,
    range=(0.0, float("inf")),
    source="Yang et al. 2022, arXiv:2204.08958, Sec. 3; weights trained on PIPAL, whose training set the "
    "scale of the "
    "Swin layers to 0.13",
    description="How good a picture looks to people who rate distortions; the prompt is not read. About 0 to "
    "1, "
    "without a bound above.",
    variant="corrected",
    preprocessing=f"{GRID} (PIL bicubic); (x - 0.5) / 0.5",
    comparable="With maniqa on pictures of one resolution: crops are not resized, so a larger picture is judged by "
    "smaller parts of it. Never across the four variants: training set, scale and crops move the number more than "
    "models do. DP-DMD's column is maniqa.dp_dmd.",
    fooled_by="Sharpness and contrast of crops of 224 pixels: it sees neither the composition nor whether the prompt "
    "was followed. It was trained on distorted photographs, so a clean picture of nonsense scores well.",
    citation="Yang, Wu, Shi, Lao, Gong, Cao, Wang, Yang: MANIQA: Multi-dimension Attention Network for No-Reference "
    "Image Quality Assessment, 2022, arXiv:2204.08958",
)


class ManiqaMetric(PerImage):
    """Base of MANIQA's variants: a card and the key of an encoder's scores."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": [B]}, float32, not negative."""
        return {"score": features[self.features[0]]}


@register
class ManiqaPipal(ManiqaMetric):
    card = CARD
    features = ("maniqa/pipal:grid",)


@register
class ManiqaKoniq(ManiqaMetric):
    card = replace(
        CARD,
        id="maniqa.koniq",
        title="MANIQA (KonIQ-10k)",
        source="Yang et al. 2022, arXiv:2204.08958, Sec. 3; weights trained on KonIQ-10k, scale 0.8",
        description="maniqa through weights that were trained on photographs of the wild instead of synthetic "
        "distortions.",
    )
    features = ("maniqa/koniq:grid",)


@register
class ManiqaOfficial(ManiqaMetric):
    card = replace(
        CARD,
        id="maniqa.official",
        title="MANIQA (KonIQ-10k, authors' crops)",
        variant="official",
        source="the authors' predict_one_image.py: KonIQ-10k weights, scale 0.8, 20 random crops, NumPy seed 20",
        description="What the authors' script prints of each picture. Its crops never reach the last row and column.",
        preprocessing="20 crops of 224 at random places that depend on the picture's size alone; (x - 0.5) / 0.5; at "
        "least 225 pixels each way",
    )
    features = ("maniqa/koniq:official",)


@register
class ManiqaDpDmd(ManiqaMetric):
    card = replace(
        CARD,
        id="maniqa.dp_dmd",
        title="MANIQA (DP-DMD's script)",
        variant="dp_dmd",
        source="DP-DMD's evaluation script: PIPAL weights with the scale 0.8 that belongs to KonIQ-10k, 10 random "
        "crops, NumPy seed 20 for every picture",
        description="The column of DP-DMD's tables, where SD3.5-M with 60 passes has 1.02 (Pick-a-Pic) and 1.04 "
        "(COCO). Weights and scale do not belong together, which likely inflates it: for its table only.",
        preprocessing="10 crops of 224 at random places that depend on the picture's size alone; (x - 0.5) / 0.5; at "
        "least 224 pixels each way",
        reported_scale="DP-DMD: as here",
    )
    features = ("maniqa/pipal:dp_dmd",)
