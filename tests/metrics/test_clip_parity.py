"""The CLIP family against recorded official runs, stage by stage, and the mistakes that each of them shows.

Goldens: tests/golden/clip_family/<metric>, made of seeded, shrunken models by tests/parity/{clip,hpsv2}/official*.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics.aesthetic import AestheticHead
from metrics.encoders import published
from metrics.encoders.clip_tokens import END, OpenAiTokens, SplicedTokens, Tokens, TransformersTokens
from metrics.encoders.published import padded, squashed
from metrics.preprocessing import Preprocessing, Resized, SquareFirst
from tests.parity import clip_native, common
from tests.parity.clip import sizes

SIZE = (common.SIDE, common.SIDE)
OFFICIAL = ("clip_score.unirl", *clip_native.OFFICIAL)
TRANSFORMERS = ("clip_score", "clip_score.rtdmd", "clip_score.unirl", "clip_score.imagereward", "aesthetic")
CHECKED = 16  # pairs of which one must show a mistake


@dataclass(frozen=True)
class Mistake:
    """What is done otherwise than the authors do it. network: a constant of `published` and its wrong value."""

    network: tuple[str, Any] | None = None
    pictures: Preprocessing | None = None
    tokens: Tokens | None = None

    @contextmanager
    def made(self, identity: str) -> Iterator[clip_native.Parts]:
        """Yield a metric that makes the mistake."""
        with pytest.MonkeyPatch.context() as patch:
            if self.network:
                patch.setattr(published, *self.network)
            yield clip_native.Parts(identity, self.pictures, self.tokens)


class NoEnd:
    """Tokens without the end token, whose state should be the text's."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def ids(self, texts: Sequence[str]) -> Tensor:
        ids_BL = self.tokens.ids(texts)
        return ids_BL.where(ids_BL != END, 0)

    def truncates(self, text: str) -> bool:
        return False


@dataclass(frozen=True)
class MeanBorder:
    """HPS's pictures, normalised before they are padded: the border is the mean colour instead of black."""

    then: Resized

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.then.mean, self.then.std))
        plain = replace(self.then, mean=(0.0,) * 3, std=(1.0,) * 3).from_pil(images)
        return torch.where(plain == 0, torch.zeros(()), (plain - mean) / std)

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        raise NotImplementedError


def config(name: str, tower: str, **values: Any) -> Mistake:
    """Return the mistake of another setting in one tower of a transformers model."""
    right: Mapping[str, Any] = sizes.PICK if name == "PICK" else sizes.CLIP
    part = f"{tower}_config"
    return Mistake(network=(name, {**right, part: {**right[part], **values}}))


def named(wrong: Mapping[str, Any]) -> Mistake:
    """Return the mistake of another architecture of open_clip."""
    return Mistake(network=("named", lambda architecture: lambda: wrong))


def heads(tower: str, **values: int) -> Mistake:
    return named({**sizes.HPS, tower: {**sizes.HPS[tower], **values}})


CROP = Resized(size=SIZE)  # OpenAI's; transformers' corner lies half a pixel elsewhere
FLOOR = replace(CROP, crop_offset="floor")
FLOATS = replace(CROP, interpolation="bilinear", official="tensor")
NO_ANTIALIAS = replace(padded(common.SIDE), antialias=False)
L14_GELU, PICK_QUICK = ({"hidden_act": name} for name in ("gelu", "quick_gelu"))
DFN_MISTAKES = {
    "GELU": named(sizes.HPS),
    "cropped": Mistake(pictures=CROP),
    "padded": Mistake(pictures=padded(common.SIDE)),
    "bilinear": Mistake(pictures=replace(squashed(common.SIDE), interpolation="bilinear")),
    "a prefix": Mistake(tokens=OpenAiTokens("a ")),
    "no end": Mistake(tokens=NoEnd(OpenAiTokens())),
}
MISTAKES: Mapping[str, Mapping[str, Mistake]] = {
    "clip_score": {
        "GELU, image": config("CLIP_L14", "vision", **L14_GELU),
        "GELU, text": config("CLIP_L14", "text", **L14_GELU),
        "heads, image": config("CLIP_L14", "vision", num_attention_heads=4),
        "heads, text": config("CLIP_L14", "text", num_attention_heads=2),
        "norms' eps": config("CLIP_L14", "vision", layer_norm_eps=1e-2),
        "OpenAI's crop": Mistake(pictures=CROP),
        "bilinear": Mistake(pictures=replace(FLOOR, interpolation="bilinear")),
        "squashed": Mistake(pictures=replace(FLOOR, resize="squash")),
        "floats": Mistake(pictures=replace(FLOOR, official="tensor")),
        "OpenAI's tokens": Mistake(tokens=OpenAiTokens()),
        "a prefix": Mistake(tokens=OpenAiTokens("A photo depicts ")),
        "no end": Mistake(tokens=NoEnd(TransformersTokens())),
    },
    "clip_score.rtdmd": {
        "GELU": config("CLIP_L14", "vision", **L14_GELU),
        "bicubic": Mistake(pictures=replace(FLOATS, interpolation="bicubic")),
        "no antialias": Mistake(pictures=replace(FLOATS, antialias=False)),
        "PIL": Mistake(pictures=replace(CROP, interpolation="bilinear")),
        "no end": Mistake(tokens=NoEnd(TransformersTokens())),
    },
    "clip_score.unirl": {"bicubic": Mistake(pictures=replace(FLOATS, interpolation="bicubic"))},
    "clip_score.imagereward": {
        "GELU": config("CLIP_L14", "vision", **L14_GELU),
        "transformers' crop": Mistake(pictures=FLOOR),
        "transformers' tokens": Mistake(tokens=TransformersTokens()),
        "no end": Mistake(tokens=NoEnd(OpenAiTokens())),
    },
    "clip_score.hessel": {
        "GELU": config("CLIP_B32", "vision", **L14_GELU),
        "no prefix": Mistake(tokens=OpenAiTokens()),
        "prefix spliced in": Mistake(tokens=SplicedTokens("a photo of")),
        "transformers' crop": Mistake(pictures=FLOOR),
    },
    "clip_score.dmd2": {
        "quick GELU": named(clip_native.QUICK_HPS),
        "no words": Mistake(tokens=OpenAiTokens()),
        "no square": Mistake(pictures=CROP),
        "another side": Mistake(pictures=SquareFirst(side=128, then=CROP)),
        "no end": Mistake(tokens=NoEnd(SplicedTokens())),
    },
    "dfn_clip": DFN_MISTAKES,
    "dfn_clip.224": DFN_MISTAKES,
    "aesthetic": {
        "GELU": config("CLIP_L14", "vision", **L14_GELU),
        "OpenAI's crop": Mistake(pictures=CROP),
        "bilinear": Mistake(pictures=replace(FLOOR, interpolation="bilinear")),
    },
    "pick_score": {
        "quick GELU, image": config("PICK", "vision", **PICK_QUICK),
        "quick GELU, text": config("PICK", "text", **PICK_QUICK),
        "OpenAI's crop": Mistake(pictures=CROP),
        "bilinear": Mistake(pictures=replace(FLOOR, interpolation="bilinear")),
        "OpenAI's tokens": Mistake(tokens=OpenAiTokens()),
        "no end": Mistake(tokens=NoEnd(TransformersTokens())),
    },
    "pick_score.rtdmd": {
        "quick GELU": config("PICK", "vision", **PICK_QUICK),
        "bicubic": Mistake(pictures=replace(FLOATS, interpolation="bicubic")),
    },
    "hps_v2": {
        "quick GELU": named(clip_native.QUICK_HPS),
        "heads, image": heads("vision_cfg", head_width=40),
        "heads, text": heads("text_cfg", heads=2),
        "cropped": Mistake(pictures=CROP),
        "no antialias": Mistake(pictures=NO_ANTIALIAS),
        "bilinear": Mistake(pictures=replace(padded(common.SIDE), interpolation="bilinear")),
        "normalised before padding": Mistake(pictures=MeanBorder(padded(common.SIDE))),
        "no end": Mistake(tokens=NoEnd(OpenAiTokens())),
    },
    "hps_v21": {
        "quick GELU": named(clip_native.QUICK_HPS),
        "cropped": Mistake(pictures=CROP),
        "normalised before padding": Mistake(pictures=MeanBorder(padded(common.SIDE))),
        "no end": Mistake(tokens=NoEnd(OpenAiTokens())),
    },
}
ACTIVATION = {
    identity: next(iter(mistakes)) for identity, mistakes in MISTAKES.items() if "GELU" in "".join(mistakes)
}


@pytest.mark.parametrize("identity", OFFICIAL)
def test_every_stage_equals_the_official_one(identity: str, clip_family: Path) -> None:
    stages, about = clip_native.golden(identity)
    assert len(stages["score"]) >= 64
    assert len(set(stages["score"].tolist())) > 20  # of the scores that are clamped, too
    for stage in clip_native.compare(identity, stages, about):
        assert stage.within, stage


@pytest.mark.parametrize(
    ("identity", "layout", "model"),
    [
        *((identity, lambda: clip_native.transformers_layout(sizes.CLIP), "") for identity in TRANSFORMERS),
        ("clip_score.hessel", lambda: clip_native.transformers_layout(sizes.CLIP), sizes.B32),
        ("pick_score", lambda: clip_native.transformers_layout(sizes.PICK), ""),
        ("pick_score.rtdmd", lambda: clip_native.transformers_layout(sizes.PICK), ""),
        ("clip_score.dmd2", lambda: clip_native.open_clip_layout(sizes.HPS), sizes.G14),
        ("dfn_clip", lambda: clip_native.open_clip_layout(sizes.HPS), sizes.DFN),
        ("dfn_clip.224", lambda: clip_native.open_clip_layout(sizes.HPS), sizes.DFN_224),
        ("hps_v2", lambda: clip_native.open_clip_layout(sizes.HPS), ""),
        ("hps_v21", lambda: clip_native.open_clip_layout(sizes.HPS), sizes.HPS_V21),
    ],
)
def test_the_seeded_weights_are_those_of_the_official_run(
    identity: str, layout: Callable[[], dict[str, tuple[int, ...]]], model: str
) -> None:
    _, about = clip_native.golden(identity)
    weights = common.seeded_weights(layout(), model)
    published = common.halved(weights) if identity.startswith("hps") else weights
    assert common.checksum(published) == about["weights"]
    if identity == "aesthetic":
        assert common.checksum(common.seeded_weights(clip_native.layout(AestheticHead))) == about["head"]


@pytest.mark.parametrize("identity", OFFICIAL)
def test_without_a_mistake_the_same_measure_passes(identity: str, clip_family: Path) -> None:
    with Mistake().made(identity) as parts:
        assert wrong(parts, identity) <= clip_native.tolerance(identity)


@pytest.mark.parametrize(("identity", "mistake"), [(i, m) for i in MISTAKES for m in MISTAKES[i]])
def test_a_mistake_breaks_the_golden(identity: str, mistake: str, clip_family: Path) -> None:
    with MISTAKES[identity][mistake].made(identity) as parts:
        assert wrong(parts, identity) > 100 * clip_native.tolerance(identity)


@pytest.mark.parametrize("identity", ACTIVATION)
def test_another_activation_breaks_embeddings_and_gradients(identity: str, clip_family: Path) -> None:
    stages, about = clip_native.golden(identity)
    with MISTAKES[identity][ACTIVATION[identity]].made(identity):
        found = {stage.name: stage for stage in clip_native.compare(identity, stages, about)}
    for name in ("image embedding", "gradient (relative)"):
        assert found[name].difference > 100 * found[name].tolerance, name
    assert all(stage.within for name, stage in found.items() if name.startswith(("token", "pi")))


@pytest.mark.parametrize("identity", OFFICIAL)
def test_the_golden_records_on_which_kinds_of_pictures_the_authors_fail(identity: str) -> None:
    _, about = clip_native.golden(identity)
    of_hps = {"RGBA", "oblong, longer side fits"}
    assert set(about["raised"]) == (of_hps if identity.startswith("hps") else set())


def test_every_golden_has_a_mistake_that_breaks_it() -> None:
    assert set(MISTAKES) == set(OFFICIAL)
    stored = {path.stem for path in clip_native.GOLDEN.glob("*.npz")}
    assert stored == set(clip_native.OFFICIAL)


def wrong(parts: clip_native.Parts, identity: str) -> float:
    """Return the largest difference of the first scores from the official ones."""
    official = clip_native.golden(identity)[0]["score"][:CHECKED]
    return float(np.abs(parts.scores(CHECKED) - official).max())
