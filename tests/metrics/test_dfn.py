"""DFN-CLIP against a recorded run of open_clip, its official home, on a shrunken model with seeded weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.encoders import published
from metrics.encoders.clip_tokens import OpenAiTokens, Tokens, TransformersTokens
from metrics.encoders.open_clip import OpenClipFile
from metrics.preprocessing import Preprocessing, Resized
from metrics.weights import manifest
from tests.parity import clip_native, common
from tests.parity.clip import sizes

STAGES, ABOUT = common.load(clip_native.GOLDEN / "open_clip.npz")
QUICK = clip_native.QUICK_HPS


def test_the_seeded_weights_are_those_of_the_official_run() -> None:
    layout = clip_native.open_clip_layout(sizes.HPS)
    for score, model in (("dfn", sizes.DFN), ("dmd2", sizes.G14)):
        assert common.checksum(common.seeded_weights(layout, model)) == ABOUT["weights"][score]


def test_scores_equal_the_official_ones_end_to_end(clip_family: Path) -> None:
    assert len(STAGES["dfn"]) >= 64
    assert np.abs(clip_native.scores("dfn_clip") - STAGES["dfn"]).max() <= 1e-6


@pytest.mark.parametrize(
    ("config", "pictures", "tokens", "breaks"),
    [
        (QUICK, published.squashed(24), OpenAiTokens(), False),
        (sizes.HPS, published.squashed(24), OpenAiTokens(), True),
        (QUICK, Resized(size=(24, 24)), OpenAiTokens(), True),
        (QUICK, published.padded(24), OpenAiTokens(), True),
        (QUICK, Resized(size=(24, 24), resize="squash", interpolation="bilinear"), OpenAiTokens(), True),
        (QUICK, published.squashed(24), TransformersTokens(), True),
    ],
    ids=["as it is", "gelu", "crop", "pad", "bilinear", "tokens"],
)
@torch.no_grad()
def test_a_mistake_breaks_the_golden(
    config: dict[str, object], pictures: Preprocessing, tokens: Tokens, breaks: bool, clip_family: Path
) -> None:
    weights = manifest("dfn5b-clip-vit-h-14-378")
    clip = OpenClipFile(weights, "open_clip_pytorch_model.bin", torch.device("cpu"), lambda: config)
    images, prompts = zip(*common.pairs(16), strict=True)
    image = clip.image(torch.cat([pictures.from_pil([picture]) for picture in images]))
    ids = tokens.ids(prompts)
    text = clip.text(torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=49407))
    difference = np.abs(torch.cosine_similarity(image, text).numpy() - STAGES["dfn"][:16]).max()
    assert difference > 1e-4 if breaks else difference <= 1e-6
