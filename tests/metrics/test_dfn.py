"""DFN-CLIP against open_clip itself, its official home, on a shrunken model with seeded weights."""

from pathlib import Path

import pytest
import torch

from metrics.loaded import LoadedMetric
from tests.parity import clip_native, common
from tests.parity.clip import sizes


@pytest.mark.parametrize(("quick", "equal"), [(True, True), (False, False)], ids=["quick-gelu", "gelu"])
@torch.no_grad()
def test_scores_equal_open_clips_with_quick_gelu_only(quick: bool, equal: bool, clip_family: Path) -> None:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import image_transform

    model = CLIP(**sizes.HPS, quick_gelu=quick).eval()
    model.load_state_dict(clip_native.seeded(clip_native.open_clip_layout(sizes.HPS)))
    transform = image_transform(common.SIDE, is_train=False, resize_mode="squash")
    official = [
        torch.cosine_similarity(
            model.encode_image(transform(picture)[None]), model.encode_text(SimpleTokenizer()(text))
        )
        for picture, text in common.pairs(16)
    ]
    found = LoadedMetric("dfn_clip")(*map(list, zip(*common.pairs(16), strict=True)))
    difference = (found - torch.cat(official)).abs().max()
    assert difference <= 1e-6 if equal else difference > 1e-3
