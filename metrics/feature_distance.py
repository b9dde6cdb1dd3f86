"""Distances between sets through newer encoders than Inception, against COCO 2014's validation pictures.

    fd_dinov2   Fréchet distance of DINOv2 ViT-L/14's class token, not normalised (Stein et al. 2023)
    cmmd        Gaussian kernel distance of CLIP ViT-L/14-336's embeddings of unit length (Jayasumana et al. 2024)

Formulas: metrics/frechet.py, metrics/kernels.py. Axes: N images, D features.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from PIL import Image
from torch import Tensor

from metrics.base import Rows, Summary, UserError, register
from metrics.encoders.published import CLIP_L14, clip_config, image_encoder, tower
from metrics.encoders.transformers_clip import ClipFile
from metrics.features import Encoder, register_encoders
from metrics.fid import BIAS, FID_CARD, FrechetMetric, OfFeatures, whole
from metrics.kernels import cmmd
from metrics.preprocessing import Resized
from metrics.references import Reference, against
from metrics.vendi import unit_rows
from metrics.weights import manifest

CLIP_L14_336 = clip_config(
    {**tower(1024, 24, 16), "patch_size": 14, "image_size": 336}, dict(CLIP_L14["text_config"]), 768, "quick_gelu"
)
COCO_DINOV2 = Reference(
    name="coco2014-val-dinov2",
    title="COCO 2014 validation pictures (DINOv2)",
    encoder="dinov2l/squash",
    encoder_weights=manifest("dinov2-large"),
    how="val2014/",
)
COCO_CLIP = Reference(
    name="coco2014-val-clip336",
    title="COCO 2014 validation pictures (CLIP, 336 px)",
    encoder="clip-l-14-336/square",
    encoder_weights=manifest("clip-vit-large-patch14-336"),
    how="val2014/",
)


@dataclass(frozen=True, kw_only=True)
class MiddleSquare:
    """The middle square of a picture, then another preprocessing."""

    then: Resized

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return float32 [B, 3, H, W], normalised."""
        squares = []
        for image in images:
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            squares.append(image.crop((left, top, left + edge, top + edge)))
        return self.then.from_pil(squares)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Raises UserError: a distance between sets is no reward."""
        raise UserError("a distance between sets has no gradient here; call the metric on pictures")


@register_encoders("clip-l-14-336/square")
def clip_l14_336(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image"} of OpenAI's CLIP ViT-L/14 at 336 pixels with CMMD's pictures."""
    weights = manifest("clip-vit-large-patch14-336")
    clip = ClipFile(weights, "pytorch_model.bin", device, CLIP_L14_336)
    pictures = MiddleSquare(then=Resized(size=(336, 336)))
    return {"image": image_encoder(clip.image, pictures, weights, itemgetter("embedding"))}


@register_encoders("reference/coco2014-val-dinov2")
def against_coco_dinov2(device: torch.device) -> Mapping[str, Encoder]:
    """Return DINOv2's feature that is held against COCO's pictures."""
    return {"image": against(COCO_DINOV2, "dinov2l/squash:image")}


@register_encoders("reference/coco2014-val-clip336")
def against_coco_clip(device: torch.device) -> Mapping[str, Encoder]:
    """Return CLIP's feature that is held against COCO's pictures."""
    return {"image": against(COCO_CLIP, "clip-l-14-336/square:image")}


@register
class FdDinov2(FrechetMetric):
    card = replace(
        FID_CARD,
        id="fd_dinov2",
        title="FD-DINOv2 (COCO 2014)",
        source="Stein et al. 2023, arXiv:2306.04675, Sec. 2: Fréchet distance of DINOv2 ViT-L/14's class token",
        description="FID's formula in the features of a network that was trained without labels, which people's "
        "judgement follows more closely.",
        preprocessing="PIL bicubic, both sides to 224 whatever the aspect ratio (dgm-eval)",
        comparable=f"With the same reference file and number of images only. {BIAS} Never with FID.",
        fooled_by="Copies of the reference score best. It sees the set, not the prompts.",
        citation="Stein et al.: Exposing Flaws of Generative Model Evaluation Metrics and Their Unfair Treatment of "
        "Diffusion Models, 2023, arXiv:2306.04675",
    )
    features = ("reference/coco2014-val-dinov2:image",)
    reference = COCO_DINOV2
    output = "image"
    min_images = 1025


@register
class Cmmd(OfFeatures):
    card = replace(
        FID_CARD,
        id="cmmd",
        title="CMMD (COCO 2014)",
        unit="squared distance x 1000",
        range=(0.0, math.inf),
        source="Jayasumana et al. 2024, arXiv:2401.09603, Eq. 3, kernel width 10, biased estimate, x 1000",
        description="How far CLIP's embeddings of generated pictures are from those of real ones, with no Gaussian "
        "assumed. SD 1.5 has 0.58, SDXL 0.70 on COCO-30k.",
        variant="corrected",
        preprocessing="middle square, PIL bicubic to 336",
        comparable="With the same reference file. The estimate is biased for small sets. Computed in float64: the "
        "published float32 code carries noise of 2e-4.",
        fooled_by="What CLIP does not see: fine texture, small faults. Copies of the reference score best.",
        reported_scale="as here",
        citation="Jayasumana et al.: Rethinking FID: Towards a Better Evaluation Metric for Image Generation, 2024, "
        "arXiv:2401.09603",
    )
    features = ("reference/coco2014-val-clip336:image",)

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return CMMD against the reference's features. Raises UserError where there is none."""
        return Summary(value=cmmd(unit_rows(whole(parts)), unit_rows(COCO_CLIP.features())))
