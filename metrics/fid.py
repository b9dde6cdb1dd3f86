"""Distances between a set of generated pictures and a set of real ones, in Inception's eyes.

    fid                 Fréchet distance of `pool`, clean-fid's resizing, against COCO 2014 (validation)
    fid_adm, sfid       of `pool` and `spatial`, TensorFlow's resizing, against ADM's ImageNet-256 statistics
    kid                 unbiased kernel distance of `pool`, as `fid`
    precision, recall   k-NN manifolds of `pool`, k = 3, as `fid_adm`, against 10,000 pictures of ADM's batch
    inception_score     of `logits`, as `fid_adm`; no reference

Formulas: metrics/{frechet,kernels,manifolds,vendi}.py; network and resizing: metrics/encoders/inception.py.
Axes: B images of a batch, N of the whole set, D features.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metrics import manifolds
from metrics.base import Batch, Card, Features, Rows, Summary, UserError, register
from metrics.features import Encoder, register_encoders
from metrics.frechet import frechet_distance, moments_of_parts
from metrics.kernels import kid
from metrics.references import Reference, against
from metrics.sets import OfSet
from metrics.vendi import inception_score
from metrics.weights import manifest

IMAGENET = Reference(
    name="imagenet256-adm",
    title="ImageNet 256x256, ADM's reference batch",
    encoder="inception/tf1",
    encoder_weights=manifest("inception-2015-12-05"),
    how="VIRTUAL_imagenet256_labeled.npz",
)
COCO = Reference(
    name="coco2014-val-clean",
    title="COCO 2014 validation pictures",
    encoder="inception/clean",
    encoder_weights=manifest("inception-2015-12-05"),
    how="val2014/",
)


@register_encoders("reference/imagenet256-adm")
def against_imagenet(device: torch.device) -> Mapping[str, Encoder]:
    """Return Inception's features that are held against ADM's reference batch."""
    return {output: against(IMAGENET, f"inception/tf1:{output}") for output in ("pool", "spatial")}


@register_encoders("reference/coco2014-val-clean")
def against_coco(device: torch.device) -> Mapping[str, Encoder]:
    """Return Inception's features that are held against COCO's validation pictures."""
    return {"pool": against(COCO, "inception/clean:pool")}


class OfFeatures(OfSet):
    """Base of statistics of one feature: a picture's row is that feature."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"feature": [B, D]}, float32."""
        return {"feature": features[self.features[0]].float()}


class FrechetMetric(OfFeatures):
    """Base of Fréchet distances: a card, the key of a feature, a reference and D + 1 as `min_images`."""

    reference: ClassVar[Reference]
    output: ClassVar[str] = "pool"

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the distance; memory is that of one covariance. Raises UserError where N < D + 1."""
        moments = moments_of_parts(arrays(parts))
        if moments.n < self.min_images:
            raise UserError(
                f"{self.card.id}: {moments.n} images, and {self.min_images} are the fewest whose covariance in "
                f"{len(moments.mean_D)} dimensions is regular; generate more"
            )
        mean_D, covariance_DD = self.reference.moments(self.output)
        value = frechet_distance(moments.mean_D, moments.covariance_DD, mean_D, covariance_DD)
        return Summary(value=value)


class KidMetric(OfFeatures):
    """Base of kernel distances: a card, the key of a feature and a reference with features."""

    reference: ClassVar[Reference]

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the unbiased estimate over all pairs. Raises UserError below two images."""
        return Summary(value=kid(whole(parts), self.reference.features()))


class PrecisionMetric(OfFeatures):
    """Base of precisions: a card, the key of a feature and a reference with features."""

    reference: ClassVar[Reference]
    min_images: ClassVar[int] = manifolds.NEIGHBOURS + 1

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the share of the N pictures that lie in the reference's manifold. Raises UserError where N <= k."""
        return Summary(value=manifolds.precision(whole(parts), self.reference.features()))


class RecallMetric(PrecisionMetric):
    """Base of recalls."""

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the share of the reference that lies in the pictures' manifold. Raises UserError where N <= k."""
        return Summary(value=manifolds.recall(whole(parts), self.reference.features()))


def arrays(parts: Iterable[Rows]) -> Iterator[np.ndarray]:
    """Yield the features [n, D] of each part."""
    for rows in parts:
        feature = rows["feature"]
        assert isinstance(feature, Tensor)
        yield feature.detach().cpu().numpy()


def whole(parts: Iterable[Rows]) -> np.ndarray:
    """Return the features [N, D] of all parts, float32."""
    return np.concatenate(list(arrays(parts)))


BIAS = "Its expectation falls with the number of images, so only equal numbers compare; below 10,000 say FID-n."
BLIND_TO = (
    "It sees what ImageNet's classes need: textures more than shapes, and neither prompts nor a wrong count of "
    "fingers. One resampling filter moves it by more than most models differ. Copies of the reference score best."
)
HEUSEL = (
    "Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule Converge to a "
    "Local Nash Equilibrium, 2017, arXiv:1706.08500"
)
CLEAN = "every channel as floats, PIL bicubic to 299 x 299, clipped, not rounded (clean-fid)"
TF1 = "TensorFlow 1's bilinear to 299 x 299, without antialias (ADM, EDM, torch-fidelity)"

FID_CARD = Card(
    id="fid",
    version=1,
    title="FID (clean, COCO 2014)",
    unit="distance",
    higher_is_better=False,
    range=(0.0, math.inf),
    source="Heusel et al. 2017, arXiv:1706.08500, Eq. 6; Parmar et al. 2022, arXiv:2104.11222, for the resizing",
    description="How far the generated pictures as a whole are from real ones: a Gaussian fitted to each set in "
    "Inception's features. One number for fidelity and variety together; it says nothing of a single picture.",
    aggregate="set",
    preprocessing=CLEAN,
    image_free=False,
    comparable=f"With the same reference file and number of images only. {BIAS} Never with fid_adm.",
    fooled_by=BLIND_TO,
    citation=f"{HEUSEL}; Parmar, Zhang, Zhu: On Aliased Resizing and Surprising Subtleties in GAN Evaluation, 2022, "
    "arXiv:2104.11222",
)


@register
class Fid(FrechetMetric):
    card = FID_CARD
    features = ("reference/coco2014-val-clean:pool",)
    reference = COCO
    min_images = 2049


@register
class FidAdm(FrechetMetric):
    card = replace(
        FID_CARD,
        id="fid_adm",
        title="FID (ADM, ImageNet 256)",
        variant="adm",
        source="Heusel et al. 2017, arXiv:1706.08500, Eq. 6, as in ADM's evaluator (Dhariwal and Nichol 2021)",
        description="FID as class-conditional ImageNet models are compared: 50,000 samples of 256 x 256 pixels "
        "against the statistics of the training set.",
        preprocessing=TF1,
        comparable=f"With numbers of ADM's evaluator for 50,000 samples, labels balanced or drawn alike. {BIAS} EDM "
        "prints the least of three runs. Never with fid.",
        reported_scale="DMDR: 2.13 (one step, no guidance); evaluator not named",
        citation=f"{HEUSEL}; Dhariwal, Nichol: Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233",
    )
    features = ("reference/imagenet256-adm:pool",)
    reference = IMAGENET
    min_images = 2049


@register
class Sfid(FrechetMetric):
    card = replace(
        FidAdm.card,
        id="sfid",
        title="sFID (ADM, ImageNet 256)",
        variant="official",
        source="Nash et al. 2021, arXiv:2103.03841, Sec. 4, as in ADM's evaluator",
        description="FID of features that still know where things are: the first 7 channels of a middle layer.",
        comparable=f"With sFID of ADM's evaluator for 50,000 samples. {BIAS}",
        reported_scale="",
        citation="Nash, Menick, Dieleman, Battaglia: Generating Images with Sparse Representations, 2021, "
        "arXiv:2103.03841",
    )
    features = ("reference/imagenet256-adm:spatial",)
    reference = IMAGENET
    output = "spatial"
    min_images = 2024


@register
class Kid(KidMetric):
    card = replace(
        FID_CARD,
        id="kid",
        title="KID (clean, COCO 2014)",
        unit="squared distance",
        range=(-math.inf, math.inf),
        variant="corrected",
        source="Bińkowski et al. 2018, arXiv:1801.01401, Sec. 4, over all pairs instead of random subsets",
        description="How far the generated pictures are from real ones, without FID's bias: its expectation does "
        "not depend on the number of images, so small sets can be used. Values below 0 are valid: no difference.",
        comparable="With the same reference file; the number of images may differ. Papers print it x1000, mostly "
        "over 100 subsets of 1,000 with the same expectation.",
        reported_scale="papers: x1000",
        citation="Bińkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018, arXiv:1801.01401",
    )
    features = ("reference/coco2014-val-clean:pool",)
    reference = COCO


KYNKAANNIEMI = (
    "Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for Assessing Generative "
    "Models, 2019, arXiv:1904.06991"
)


@register
class Precision(PrecisionMetric):
    card = replace(
        FID_CARD,
        id="precision",
        title="precision (ADM, ImageNet 256)",
        unit="share",
        higher_is_better=True,
        range=(0.0, 1.0),
        variant="corrected",
        source="Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1, k = 3; ADM's reference pictures",
        description="The share of generated pictures that lie where real ones do: fidelity without variety.",
        preprocessing=TF1,
        comparable="With as many generated and reference pictures: unequal numbers bias the pair. ADM's evaluator "
        "rounds distances to float16 and may differ in the third decimal.",
        fooled_by="Outliers of the reference, whose balls are large; and a model that draws one good picture.",
        reported_scale="DMDR: as here",
        citation=KYNKAANNIEMI,
    )
    features = ("reference/imagenet256-adm:pool",)
    reference = IMAGENET


@register
class Recall(RecallMetric):
    card = replace(
        Precision.card,
        id="recall",
        title="recall (ADM, ImageNet 256)",
        source="Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 2, k = 3; ADM's reference pictures",
        description="The share of real pictures that lie where generated ones do: variety without fidelity.",
        fooled_by="Generated outliers and noise, whose balls are large and cover the reference.",
    )
    features = ("reference/imagenet256-adm:pool",)
    reference = IMAGENET


@register
class InceptionScore(OfFeatures):
    card = replace(
        FID_CARD,
        id="inception_score",
        title="Inception Score",
        unit="effective classes",
        higher_is_better=True,
        range=(1.0, 1008.0),
        variant="corrected",
        source="Salimans et al. 2016, arXiv:1606.03498, Sec. 4; logits without bias; 10 shuffled splits",
        description="Whether every picture shows one of ImageNet's classes with certainty, and all classes occur. It "
        "knows no reference.",
        preprocessing=TF1,
        image_free=True,
        comparable="With 50,000 samples of an ImageNet model. ADM's evaluator takes consecutive chunks of 5,000, "
        "which gives less where samples are sorted by class.",
        fooled_by="One sharp picture per class, repeated. It means nothing for prompts outside ImageNet.",
        reported_scale="DMDR: as here",
        citation="Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen: Improved Techniques for Training GANs, 2016, "
        "arXiv:1606.03498",
    )
    features = ("inception/tf1:logits",)
    min_images = 1000

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the mean over splits. Raises UserError below ten images."""
        return Summary(value=inception_score(whole(parts))[0])
