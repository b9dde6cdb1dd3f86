"""CLIPScore: its formula, and its variants against recorded runs of transformers 4.57 and OpenAI's own package
(shrunken ViT-L/14, seeded weights: tests/parity/clip/official.py)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.clip import clip_score
from metrics.encoders.clip_tokens import END, OpenAiTokens, SplicedTokens, Tokens, TransformersTokens
from metrics.encoders.transformers_clip import ClipFile
from metrics.features import FeatureRunner
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Resized, SquareFirst
from metrics.weights import manifest
from tests.parity import clip_native, common
from tests.parity.clip import sizes

STAGES, ABOUT = common.load(clip_native.GOLDEN / "clip.npz")
PIL = Resized(size=(24, 24), crop_offset="floor")
BILINEAR = Resized(size=(24, 24), interpolation="bilinear", official="tensor")
CPU = torch.device("cpu")


def rows(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    return image.to(dtype), text.to(dtype)


def test_equal_embeddings_score_one_opposite_ones_minus_one() -> None:
    image, _ = rows(0)
    assert torch.allclose(clip_score(image, image), torch.ones(5))
    assert torch.allclose(clip_score(image, -3 * image), -torch.ones(5))


def test_orthogonal_embeddings_score_zero() -> None:
    assert clip_score(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item() == 0


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_score_ignores_lengths_and_lies_in_its_range(seed: int, scale: float) -> None:
    image, text = rows(seed)
    score = clip_score(image, text)
    assert torch.allclose(clip_score(scale * image, text), score, atol=1e-6)
    assert score.abs().max() <= 1 + 1e-6


def test_known_value() -> None:
    assert clip_score(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])).item() == pytest.approx(24 / 25)


def test_half_precision_embeddings_are_scored_in_float32() -> None:
    image, text = rows(3, torch.bfloat16)
    score = clip_score(image, text)
    assert score.dtype == torch.float32
    assert torch.equal(score, clip_score(image.float(), text.float()))


def test_gradient_matches_finite_differences_in_float64() -> None:
    image, text = (tensor.requires_grad_() for tensor in rows(1, torch.float64))
    assert torch.autograd.gradcheck(clip_score, (image, text))


def native(config: dict[str, Any] = sizes.CLIP) -> ClipFile:
    return ClipFile(manifest("clip-vit-large-patch14"), "model.safetensors", CPU, config)


def levels(preprocessing: Resized | SquareFirst, count: int) -> np.ndarray:
    """Return the 8-bit pixels behind the normalised ones of the first pictures."""
    pixels = torch.cat([preprocessing.from_pil([picture]) for picture, _ in common.pairs(count)]).double()
    std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN))
    return ((pixels * std + mean) * 255).round().numpy().astype(np.uint8)


def changed(tower: str, **values: object) -> dict[str, Any]:
    return {**sizes.CLIP, f"{tower}_config": {**sizes.CLIP[f"{tower}_config"], **values}}


def test_the_seeded_weights_are_those_of_the_official_run() -> None:
    layout = clip_native.transformers_layout(sizes.CLIP)
    assert common.checksum(common.seeded_weights(layout)) == ABOUT["weights"]


@pytest.mark.parametrize(
    ("tokens", "stage"),
    [(TransformersTokens(), "ids"), (OpenAiTokens(), "openai_ids"), (SplicedTokens(), "dmd2_ids")],
    ids=["transformers", "openai", "dmd2"],
)
def test_tokens_equal_the_official_ones(tokens: Tokens, stage: str) -> None:
    official = STAGES[stage].astype(int)
    for index, (_, prompt) in enumerate(common.pairs()):
        ids = tokens.ids([prompt])[0].numpy()
        assert np.array_equal(ids, official[index][: len(ids)]), prompt
        assert len(set(official[index][len(ids) :]) - {END}) == 0  # the rest is padding


def test_the_two_kinds_of_tokens_differ_where_they_should() -> None:
    different = (STAGES["ids"] != np.where(STAGES["openai_ids"] == 0, END, STAGES["openai_ids"])).any(axis=1)
    prompts = [prompt for _, prompt in common.pairs()]
    assert {prompts[index] for index in np.flatnonzero(different)} >= {common.PROMPTS[2], common.PROMPTS[3]}
    assert not different[prompts.index("a red circle")]


@pytest.mark.parametrize(
    ("preprocessing", "stage"),
    [
        (PIL, "levels"),
        (Resized(size=(24, 24)), "openai_levels"),
        (SquareFirst(side=256, then=Resized(size=(24, 24))), "dmd2_levels"),
    ],
    ids=["transformers", "openai", "dmd2"],
)
def test_pixels_equal_the_official_ones(preprocessing: Resized | SquareFirst, stage: str) -> None:
    assert np.array_equal(levels(preprocessing, len(STAGES[stage])), STAGES[stage])


def test_bilinear_pixels_equal_torchvisions() -> None:
    count = len(STAGES["bilinear"])
    pixels = torch.cat([BILINEAR.from_pil([picture]) for picture, _ in common.pairs(count)])
    assert np.abs(pixels.numpy() - STAGES["bilinear"]).max() <= 1e-6


@torch.no_grad()
def test_features_equal_the_official_ones(clip_family: Path) -> None:
    clip, pairs = native(), list(common.pairs(common.SHOWN))
    seen = clip.image(torch.cat([PIL.from_pil([picture]) for picture, _ in pairs]))
    text = torch.cat([clip.text(TransformersTokens().ids([prompt])) for _, prompt in pairs])
    normalise = torch.nn.functional.normalize
    assert np.abs(normalise(seen["embedding"]).numpy() - STAGES["image"]).max() <= 1e-6
    assert np.abs(normalise(text).numpy() - STAGES["text"]).max() <= 1e-6
    scale = np.abs(STAGES["hidden"]).max()
    assert np.abs(seen["hidden"].numpy() - STAGES["hidden"]).max() <= 1e-6 * scale


@pytest.mark.parametrize(
    ("identity", "golden", "stage", "scale"),
    [
        ("clip_score", "clip", "cosine", 1.0),
        ("clip_score.rtdmd", "clip", "logit_bilinear", 1 / 100),
        ("clip_score.unirl", "clip", "logit_bilinear", 1 / 30),
        ("clip_score.imagereward", "clip", "openai_cosine", 1.0),
        ("clip_score.hessel", "clip", "hessel", 1.0),
        ("clip_score.dmd2", "open_clip", "dmd2", 1.0),
    ],
)
def test_scores_equal_the_official_ones_end_to_end(
    identity: str, golden: str, stage: str, scale: float, clip_family: Path
) -> None:
    official = common.load(clip_native.GOLDEN / f"{golden}.npz")[0][stage]
    assert len(official) >= 64
    unit = {"clip_score.unirl": 100 / 30, "clip_score.hessel": 2.5}.get(identity, 1.0)  # of a cosine on that scale
    assert np.abs(clip_native.scores(identity) - scale * official).max() <= 1e-6 * unit


@pytest.mark.parametrize(
    ("preprocessing", "tokens"),
    [
        (SquareFirst(side=256, then=Resized(size=(24, 24))), OpenAiTokens()),
        (Resized(size=(24, 24)), SplicedTokens()),
        (SquareFirst(side=128, then=Resized(size=(24, 24))), SplicedTokens()),
    ],
    ids=["no-words", "no-square", "side"],
)
@torch.no_grad()
def test_a_mistake_breaks_dmd2s_golden(
    preprocessing: Resized | SquareFirst, tokens: Tokens, clip_family: Path
) -> None:
    official = common.load(clip_native.GOLDEN / "open_clip.npz")[0]["dmd2"][:16]
    runner = FeatureRunner(["laion/CLIP-ViT-g-14-laion2B:image"])
    clip = runner._encoders["laion/CLIP-ViT-g-14-laion2B:image"].forward.__self__
    pictures, prompts = zip(*common.pairs(16), strict=True)
    image = clip.image(torch.cat([preprocessing.from_pil([picture]) for picture in pictures]))
    found = torch.cosine_similarity(image, clip.text(tokens.ids(prompts))).numpy()
    assert np.abs(found - official).max() > 1e-4


def test_gradients_equal_the_official_ones(clip_family: Path) -> None:
    clip = native()
    for index, (picture, prompt) in enumerate(common.pairs(common.SHOWN)):
        pixels = PIL.from_pil([picture]).requires_grad_()
        text = clip.text(TransformersTokens().ids([prompt]))
        (found,) = torch.autograd.grad(clip.logits(clip.image(pixels)["embedding"], text).sum(), pixels)
        official = STAGES["gradient"][index]
        assert np.abs(found[0].numpy() - official).max() <= 1e-5 * np.abs(official).max()


@pytest.mark.parametrize(
    ("config", "preprocessing", "tokens", "end"),
    [
        (changed("vision", hidden_act="gelu"), PIL, TransformersTokens(), END),
        (changed("text", hidden_act="gelu"), PIL, TransformersTokens(), END),
        (changed("vision", num_attention_heads=4), PIL, TransformersTokens(), END),
        (changed("text", num_attention_heads=2), PIL, TransformersTokens(), END),
        (sizes.CLIP, Resized(size=(24, 24)), TransformersTokens(), END),
        (
            sizes.CLIP,
            Resized(size=(24, 24), crop_offset="floor", interpolation="bilinear"),
            TransformersTokens(),
            END,
        ),
        (sizes.CLIP, Resized(size=(24, 24), resize="squash"), TransformersTokens(), END),
        (sizes.CLIP, PIL, OpenAiTokens(), END),
        (sizes.CLIP, PIL, OpenAiTokens("A photo depicts "), END),
        (sizes.CLIP, PIL, TransformersTokens(), 0),
    ],
    ids=[
        "image-gelu",
        "text-gelu",
        "image-heads",
        "text-heads",
        "crop",
        "bilinear",
        "squash",
        "tokens",
        "prefix",
        "end",
    ],
)
@torch.no_grad()
def test_a_mistake_breaks_the_golden(
    config: dict[str, Any], preprocessing: Resized, tokens: Tokens, end: int, clip_family: Path
) -> None:
    assert wrong(sizes.CLIP, PIL, TransformersTokens(), END) <= 1e-6
    assert wrong(config, preprocessing, tokens, end) > 1e-4


def wrong(config: dict[str, Any], preprocessing: Resized, tokens: Tokens, end: int) -> float:
    """Return the largest difference of the first cosines from the official ones."""
    clip, found = native(config), []
    for picture, prompt in common.pairs(16):
        ids = tokens.ids([prompt])
        ids[ids == END] = end
        image = clip.image(preprocessing.from_pil([picture]))["embedding"]
        found.append(torch.cosine_similarity(image, clip.text(ids)))
    return float(np.abs(torch.cat(found).numpy() - STAGES["cosine"][:16]).max())
