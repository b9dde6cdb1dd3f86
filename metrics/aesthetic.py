"""LAION's aesthetic score (v2): how much people like the look of a picture, from CLIP's embedding of it alone.

    s(x) = h(f(x) / |f(x)|)        f: projected image embedding of CLIP ViT-L/14, h: five linear layers

The layers have no activation between them, so in evaluation h is one affine map.
Source: Schuhmann, improved-aesthetic-predictor, file sac+logos+ava1-l14-linearMSE.pth. Departure: float32 throughout;
the author's script runs CLIP in half precision on a GPU and normalises in half precision, which moves scores by
about 0.01.
Axes: B images, D = 768 embedding size.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cached_property

import torch
from torch import Tensor, nn

from metrics.base import Batch, Card, Features, PerImage, Rows, register
from metrics.clip import L14, PIL_GAP
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.selfcheck import Golden, near, selfcheck
from metrics.weights import Weights, manifest

FILE = "sac+logos+ava1-l14-linearMSE.pth"
NAME = "laion/aesthetic-v2"


class AestheticHead(nn.Module):
    """The published head: keys layers.{0,2,4,6,7}.{weight,bias}."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(768, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return scores [B] of projected image embeddings of any length."""
        length_B1 = embedding_BD.norm(dim=-1, keepdim=True)
        # As the author's normalised(): a zero embedding stays zero.
        return self.layers(embedding_BD / length_B1.where(length_B1 > 0, 1))[:, 0]


class LazyHead:
    """The head in float32, loaded at first use."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights, self.device = weights, device

    def score(self, embedding_BD: Tensor) -> Tensor:
        """Return scores [B]. Raises UserError where the weights are missing, damaged or not this head's."""
        return self.head(embedding_BD)

    @cached_property
    def head(self) -> AestheticHead:
        """The loaded head."""
        where = f"{self.weights.folder() / FILE}: not the weights of this head ({{}}); {self.weights.mend}"
        return load_strictly(AestheticHead, self.weights.tensors(FILE), where, self.device)


@register_encoders(NAME)
def encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"score"}: the head on CLIP's image embedding, which clip_score shares."""
    weights = manifest("laion-aesthetic-v2")
    head = LazyHead(weights, device)
    return {"score": Encoder(reads="features", forward=head.score, inputs=(f"{L14}:image",), weights=weights)}


@register
class Aesthetic(PerImage):
    card = Card(
        id="aesthetic",
        version=1,
        title="LAION aesthetic",
        unit="points",
        higher_is_better=True,
        range=(-float("inf"), float("inf")),
        source="Schuhmann, improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE, in float32",
        description="How much people are expected to like the look of a picture, nominally 1 to 10; text-to-image "
        "models lie between 5.0 and 6.2. The prompt is not read.",
        differentiable=True,
        preprocessing="PIL bicubic, shorter side to 224, centre crop; as a reward, antialiased bicubic on floats",
        comparable="With all papers that name this head, up to the resizing and half precision (about 0.01): DMDR "
        "prints 5.4 to 6.2, RTDMD 5.2 to 6.0. Not with the heads ava+logos-l14-linearMSE and -reluMSE.",
        fooled_by="Painterly styles, vignettes, portraits and saturated colours raise it whatever was asked for; an "
        "empty, pretty picture beats a correct one. It is affine in the embedding, so a generator can climb it "
        "without bound. Read it beside a score that knows the prompt.",
        tensor_gap=PIL_GAP,
        reported_scale="DMDR, RTDMD: as here",
        citation="Schuhmann: improved-aesthetic-predictor, 2022, "
        "github.com/christophschuhmann/improved-aesthetic-predictor",
    )
    features = (f"{NAME}:score",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": points_B}."""
        return {"score": features[self.features[0]]}


@selfcheck("aesthetic", "laion-aesthetic-v2")
def head_on_unit_vectors() -> Iterator[Golden]:
    """The published head alone, on vectors anybody can make; measured on the file of the author's repository."""
    head = LazyHead(manifest("laion-aesthetic-v2"), torch.device("cpu")).head
    ramp_D = torch.arange(768.0)
    for what, vector_D, expected in (
        ("first unit vector", torch.eye(768)[0], 4.54505),
        ("constant vector", torch.ones(768), 4.88328),
        ("0, 1, ... 767", ramp_D, 4.41988),
    ):
        yield near(what, head(vector_D[None]).item(), expected, tolerance=1e-5)
    # Without activations the five layers are one affine map, whose numbers are known to more digits than a score.
    layers = deepcopy(head.layers).double()
    bias = layers(torch.zeros(1, 768, dtype=torch.float64)).item()
    weight_D = layers(torch.eye(768, dtype=torch.float64))[:, 0] - bias
    yield near("bias of the affine map", bias, 5.236646, tolerance=1e-6)
    yield near("norm of its weight", weight_D.norm().item(), 17.995625, tolerance=1e-6)
    yield near("sum of its weight", weight_D.sum().item(), -9.792627, tolerance=1e-6)
    for place, expected in enumerate((-0.691593, -0.556994, -0.321169, -0.631484)):
        yield near(f"its weight at {place}", weight_D[place].item(), expected, tolerance=1e-6)
