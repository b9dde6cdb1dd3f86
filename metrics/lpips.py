"""LPIPS: how far apart two pictures look to a network, and the mean of that over the pictures of a prompt.

    d(a, b) = sum_l mean_xy sum_c w_lc (a^_lcxy - b^_lcxy)^2        a^_l = tap l, of unit length over channels

d is a squared Euclidean distance between A_l = sqrt(w_l / (H_l W_l)) a^_l, so the mean over pairs of S pictures is

    2 / (S - 1) sum_i ||A_i - mean_j A_j||^2

which takes S passes instead of S (S - 1), and memory for one mean. The sum is kept by Welford's rule in float64:
nearly equal pictures would cancel otherwise.

Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1; package lpips 0.1.4 (1e-10 beside the norm). As diversity: DMDR.
Axes: B images; a tap is [B, channels, h, w], a head [channels]; S pictures of one prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from metrics.base import Batch, Card, Features, Rows, UserError, register
from metrics.sets import WholePrompts

EPSILON = 1e-10


def unit_channels(tap: Tensor) -> Tensor:
    """Return a tap whose channels have unit length at every position; 0 where all of them are 0."""
    # vector_norm has gradient 0 at 0, where the package's square root has none.
    return tap / (torch.linalg.vector_norm(tap, dim=1, keepdim=True) + EPSILON)


def lpips_distance(taps_a: Sequence[Tensor], taps_b: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """Return d [B], differentiable in both pictures' taps."""
    layers = [
        torch.einsum("bchw,c->bhw", (unit_channels(a) - unit_channels(b)) ** 2, head).mean(dim=(1, 2))
        for a, b, head in zip(taps_a, taps_b, heads, strict=True)
    ]
    return torch.stack(layers).sum(dim=0)


def mean_pairwise_lpips(pictures: Iterable[Sequence[Tensor]], heads: Sequence[Tensor], where: str = "") -> float:
    """Return the mean of d over all pairs; `pictures` are the taps of one picture after the other, B = 1.

    Raises: UserError, opened by `where`, for fewer than two pictures or for pictures of different sizes."""
    count, scatter = 0, 0.0
    means: list[Tensor] = []
    for taps in pictures:
        count += 1
        if count == 1:
            means = [torch.zeros_like(tap, dtype=torch.float64) for tap in taps]
        if [tap.shape for tap in taps] != [mean.shape for mean in means]:
            raise UserError(f"{where}its pictures differ in size, and LPIPS compares them pixel by pixel")
        for tap, mean, head in zip(taps, means, heads, strict=True):
            unit = unit_channels(tap.double())
            delta = unit - mean
            mean += delta / count
            weighted = torch.einsum("bchw,bchw,c->", delta, unit - mean, head.double())
            scatter += weighted.item() / (unit.shape[2] * unit.shape[3])
    if count < 2:
        raise UserError(f"{where}diversity needs at least two images, found {count}; generate more seeds")
    return 2 * scatter / (count - 1)


class LpipsDiversity(WholePrompts):
    """Base of LPIPS diversities: a variant is a card and the key of one network."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": [B]}: every picture has its prompt's value, the mean over all pairs."""
        return {"score": features[self.features[0]]}


CARD = Card(
    id="lpips_diversity",
    version=1,
    title="LPIPS diversity (AlexNet)",
    unit="LPIPS",
    higher_is_better=True,
    range=(0.0, float("inf")),
    source="Zhang et al. 2018, arXiv:1801.03924, Eq. 1, mean over all pairs of a prompt's pictures; package lpips "
    "0.1.4, weights 0.1, AlexNet",
    description="How different the pictures of one prompt look: the mean LPIPS distance over all pairs. DMDR's "
    "ablation prints 0.55 (the few-step student) to 0.65 (its teacher).",
    preprocessing="none: the pictures' own size, RGB in [-1, 1], shifted and scaled as in the package",
    min_images_per_prompt=2,
    comparable="With as many pictures per prompt, of the same size: LPIPS grows with the share of fine detail. "
    "Never with lpips_diversity.vgg. DMDR states neither network nor seeds, resolution or pairs, so its column is "
    "quoted and never claimed to be reproduced.",
    fooled_by="Noise and artefacts: they differ, too. So does a shift of the same picture by a few pixels, which "
    "nobody would call diverse. Read it beside a quality metric, or take the quality-gated variant.",
    reported_scale="DMDR: as here",
    citation="Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual "
    "Metric, 2018, arXiv:1801.03924",
)


@register
class LpipsAlexDiversity(LpipsDiversity):
    card = CARD
    features = ("lpips/alex:diversity",)


@register
class LpipsVggDiversity(LpipsDiversity):
    card = replace(
        CARD,
        id="lpips_diversity.vgg",
        title="LPIPS diversity (VGG-16)",
        variant="vgg",
        source=CARD.source.replace("AlexNet", "VGG-16"),
        description="lpips_diversity through VGG-16, which looks at finer detail. Its numbers are larger.",
        comparable="With as many pictures per prompt, of the same size. Never with lpips_diversity (AlexNet).",
        reported_scale="",
    )
    features = ("lpips/vgg:diversity",)
