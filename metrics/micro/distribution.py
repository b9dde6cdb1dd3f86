"""The micro world's distances between sets, effective number of pictures, and perceptual diversity.

The formulas are those of the real metrics; the features are the held-out micro image tower's, and the reference is
two fresh renders of every test prompt, made and encoded again for each version of the tower (some seconds, then
kept in the user's cache). `micro_perceptual_diversity` is LPIPS' formula on the tower's five maps, with weight 1: it
is not LPIPS.
Axes: B images, N of the whole set, D = 160 features.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.base import Batch, Card, Features, Prompt, Rows, Summary, register
from metrics.diversity import VendiDiversity
from metrics.encoders.open_clip import CONFIG, FILES, OpenClipFile, read_open_clip_config
from metrics.features import Encoder, FeatureRunner, register_encoders
from metrics.fid import OfFeatures, arrays, whole
from metrics.frechet import Moments, frechet_distance, moments_of_parts
from metrics.kernels import kid
from metrics.lpips import LpipsDiversity, mean_pairwise_lpips
from metrics.manifolds import NEIGHBOURS, precision, recall
from metrics.micro.prompts import prompt_sets
from metrics.micro.scores import HERE, MEND, SAME_WORLD
from metrics.micro.world import Request, render, sample_scene
from metrics.references import open_arrays, write_reference
from metrics.vendi import unit_rows
from metrics.weights import WeightFolder
from metrics.weights.files import user_cache

TOWER = WeightFolder(path=HERE / "clip_heldout", mend=f"{MEND} encoders", needs=FILES)
RENDERS, SEED, SIZE = 2, 2026, 160  # per test prompt; of the renders; of the tower's embedding
VERSION = 1  # of the renders: part of the cached file's name


def reference_pictures() -> Iterator[Image.Image]:
    """Yield RENDERS pictures of every prompt of the test suite, always the same ones."""
    rng = np.random.default_rng(SEED)
    for record in prompt_sets()["test"]:
        request = as_request(record)
        for _ in range(RENDERS):
            yield Image.fromarray(render(sample_scene(request, rng)))


def as_request(record: Mapping[str, Any]) -> Request:
    """Return what a record of the test suite asks for."""
    things: list[tuple[str, str]] = []
    relation = ""
    for clause in record["include"]:
        things += [(clause["class"], clause.get("color", ""))] * clause["count"]
        relation = clause["position"][0] if "position" in clause else relation
    return Request(tuple(things), relation)


def reference_features() -> np.ndarray:
    """Return the renders' features [M, D], as `scaled` makes them. Raises UserError where weights cannot be used."""
    path = user_cache("references") / f"micro-{VERSION}-{TOWER.digest()[:16]}.npz"
    if path.is_file():
        with open_arrays(path, "delete it") as kept:
            return scaled(kept["features"])
    pictures, runner = list(reference_pictures()), FeatureRunner(["micro/clip_heldout:image"])
    parts = []
    for start in range(0, len(pictures), 64):
        batch = pictures[start : start + 64]
        parts.append(runner.run(batch, [Prompt(text="")] * len(batch))["micro/clip_heldout:image"].numpy())
    features_MD = np.concatenate(parts)
    write_reference(path, {"features": features_MD}, {"encoder": "micro/clip_heldout", "n": len(features_MD)})
    return scaled(features_MD)


def scaled(embeddings_ND: np.ndarray) -> np.ndarray:
    """Return embeddings of length sqrt(D), float32: the tower was trained on their directions, which their lengths
    would drown, and KID's kernel expects numbers near 1."""
    return (unit_rows(embeddings_ND) * np.sqrt(embeddings_ND.shape[1])).astype(np.float32)


class MicroSet(OfFeatures):
    """Base of the micro world's statistics of a set."""

    card: ClassVar[Card]
    features = ("micro/clip_heldout:image",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"feature": [B, D]}, float32, as `scaled` makes it."""
        return {"feature": torch.from_numpy(scaled(features[self.features[0]].cpu().numpy()))}


FID_CARD = Card(
    id="micro_fid",
    version=1,
    title="micro FID",
    unit="distance",
    higher_is_better=False,
    range=(0.0, math.inf),
    source="FID's formula (Heusel et al. 2017, arXiv:1706.08500, Eq. 6) on the held-out micro image tower",
    description="How far the pictures of shapes as a whole are from two renders of every test prompt. It is FID's "
    "formula in another network's features: never compare it with a FID.",
    aggregate="set",
    micro=True,
    preprocessing="PIL bicubic; none at 64x64. The tower's embeddings are scaled to length sqrt(160).",
    comparable=SAME_WORLD + " And with as many images only: its expectation falls with their number.",
    fooled_by="It sees the set, not the prompts: right pictures under wrong prompts cost nothing.",
    citation="Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule "
    "Converge to a Local Nash Equilibrium, 2017, arXiv:1706.08500",
)


@register
class MicroFid(MicroSet):
    card = FID_CARD
    min_images = SIZE + 1

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the distance to the renders. Raises UserError where weights cannot be used."""
        ours, theirs = moments_of_parts(arrays(parts)), Moments.of(reference_features())
        return Summary(value=frechet_distance(ours.mean_D, ours.covariance_DD, theirs.mean_D, theirs.covariance_DD))


@register
class MicroKid(MicroSet):
    card = replace(
        FID_CARD,
        id="micro_kid",
        title="micro KID",
        unit="squared distance",
        range=(-math.inf, math.inf),
        source="KID's formula (Bińkowski et al. 2018, arXiv:1801.01401, Sec. 4) on the held-out micro image tower",
        description="As micro_fid, without its bias: the number of images may differ. Values below 0 mean no "
        "difference.",
        comparable=SAME_WORLD,
        citation="Bińkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018, arXiv:1801.01401",
    )

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the unbiased estimate. Raises UserError where weights cannot be used."""
        return Summary(value=kid(whole(parts), reference_features()))


@register
class MicroPrecision(MicroSet):
    card = replace(
        FID_CARD,
        id="micro_precision",
        title="micro precision",
        unit="share",
        higher_is_better=True,
        range=(0.0, 1.0),
        source="precision (Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1, k = 3) on the held-out micro tower",
        description="The share of pictures that lie where renders do: fidelity without variety.",
        comparable=SAME_WORLD + " And with as many images only.",
        fooled_by="One good picture, repeated.",
        citation="Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for Assessing "
        "Generative Models, 2019, arXiv:1904.06991",
    )
    min_images = NEIGHBOURS + 1

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the share. Raises UserError where weights cannot be used."""
        return Summary(value=precision(whole(parts), reference_features()))


@register
class MicroRecall(MicroSet):
    card = replace(
        MicroPrecision.card,
        id="micro_recall",
        title="micro recall",
        source="recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 2, k = 3) on the held-out micro image tower",
        description="The share of renders that lie where the pictures do: variety without fidelity.",
        fooled_by="Outliers and noise, whose balls are large and cover the renders.",
    )
    min_images = NEIGHBOURS + 1

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the share. Raises UserError where weights cannot be used."""
        return Summary(value=recall(whole(parts), reference_features()))


@register
class MicroVendi(VendiDiversity):
    card = Card(
        id="micro_vendi",
        version=1,
        title="micro Vendi score",
        unit="effective pictures",
        higher_is_better=True,
        range=(1.0, math.inf),
        source="the Vendi score (Friedman and Dieng 2023, arXiv:2210.02410) of a prompt's pictures, held-out tower",
        description="How many different pictures a prompt effectively gets, 1 to the number of its seeds.",
        micro=True,
        preprocessing="PIL bicubic; none at 64x64",
        min_images_per_prompt=2,
        comparable=SAME_WORLD + " And only with as many images per prompt.",
        fooled_by="Noise, artefacts and wrong pictures: all of them are different.",
        citation="Friedman, Dieng: The Vendi Score: A Diversity Evaluation Metric for Machine Learning, 2023, "
        "arXiv:2210.02410",
    )
    features = ("micro/clip_heldout:image",)


class PerceptualTower(OpenClipFile):
    """The held-out image tower, seen through its maps."""

    def diversity(self, pixels_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return [B]: for every picture the mean distance over all pairs of its prompt's pictures in this batch."""
        maps = self.maps(pixels_BCHW)
        heads = [layer.new_ones(layer.shape[1]) for layer in maps]
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.id or prompt.text, []).append(index)
        values_B = torch.empty(len(prompts), dtype=torch.float64)
        for name, members in groups.items():
            pictures = ([layer[index : index + 1] for layer in maps] for index in members)
            values_B[members] = mean_pairwise_lpips(pictures, heads, f"prompt {name!r}: ")
        return values_B.float()

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Return the maps behind the stem and the four stages of the ResNet."""
        visual = self._model.visual
        maps = [visual.stem(pixels_BCHW)]
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps.append(stage(maps[-1]))
        return maps


@register_encoders("micro/perceptual")
def micro_perceptual(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"diversity"} of the held-out tower's maps."""
    tower = PerceptualTower(TOWER, FILES[1], device, lambda: TOWER.json(CONFIG)["model_cfg"])
    return {
        "diversity": Encoder(
            reads="pair",
            forward=tower.diversity,
            preprocessing=lambda: read_open_clip_config(TOWER),
            weights=TOWER,
        )
    }


@register
class MicroPerceptualDiversity(LpipsDiversity):
    card = Card(
        id="micro_perceptual_diversity",
        version=1,
        title="micro perceptual diversity",
        unit="distance",
        higher_is_better=True,
        range=(0.0, math.inf),
        source="LPIPS' formula (Zhang et al. 2018, arXiv:1801.03924, Eq. 1) with weights 1 on the held-out micro "
        "image tower's maps, mean over all pairs of a prompt's pictures",
        description="How different the pictures of one prompt look, place by place. It is not LPIPS: neither the "
        "network nor the weights are.",
        micro=True,
        preprocessing="PIL bicubic; none at 64x64",
        min_images_per_prompt=2,
        comparable=SAME_WORLD + " And only with as many images per prompt. Never with lpips_diversity.",
        fooled_by="Noise, artefacts and wrong pictures; and the same picture, shifted.",
        citation="Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a "
        "Perceptual Metric, 2018, arXiv:1801.03924",
    )
    features = ("micro/perceptual:diversity",)
