"""The aesthetic head: its formula, and what breaks its golden. Pictures before it: test_clip_parity."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.aesthetic import AestheticHead
from metrics.loaded import LoadedMetric
from tests.parity import clip_native, common

STAGES, _ = clip_native.golden("aesthetic")


@pytest.fixture
def head() -> AestheticHead:
    """The head with the seeded weights."""
    made = AestheticHead().eval()
    made.load_state_dict(clip_native.seeded(clip_native.layout(AestheticHead)))
    return made.requires_grad_(False)


def test_the_layout_is_that_of_the_published_file() -> None:
    layout = clip_native.layout(AestheticHead)
    widths = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    expected = {f"layers.{index}.weight": shape for index, shape in widths.items()}
    assert layout == expected | {f"layers.{index}.bias": shape[:1] for index, shape in widths.items()}


def test_the_head_is_one_affine_map_of_the_direction(head: AestheticHead) -> None:
    head.double()
    generator = torch.Generator().manual_seed(0)
    one, two = torch.nn.functional.normalize(torch.randn(2, 768, dtype=torch.float64, generator=generator))
    bias = head.layers(torch.zeros(1, 768, dtype=torch.float64))[0]
    middle = head.layers((one + two)[None])[0] - bias
    assert torch.allclose(middle, head.layers(one[None])[0] + head.layers(two[None])[0] - 2 * bias)
    for length in (7, 1 / 7):
        assert torch.allclose(head(length * one[None]), head(one[None]))
    assert torch.allclose(head(torch.zeros(1, 768, dtype=torch.float64)), bias)


@pytest.mark.parametrize("mistake", ["not normalised", "activation", "dropout on"])
def test_a_mistake_breaks_the_golden(mistake: str, head: AestheticHead, clip_family: Path) -> None:
    embedding = torch.from_numpy(STAGES["image"])
    official = STAGES["score"][: len(embedding)]
    assert np.abs(head(embedding).numpy() - official).max() <= 1e-6
    if mistake == "not normalised":
        found = head.layers(3 * embedding)[:, 0]
    elif mistake == "activation":
        found = embedding
        for layer in head.layers:
            found = (
                torch.relu(layer(found))
                if layer.__class__.__name__ == "Linear" and found.shape[1] > 16
                else layer(found)
            )
        found = found[:, 0]
    else:
        torch.manual_seed(0)
        found = head.train()(embedding)
    assert np.abs(found.numpy() - official).max() > 1e-3


def test_the_prompt_is_not_read(clip_family: Path) -> None:
    pictures = [picture for picture, _ in common.pairs(3)]
    metric = LoadedMetric("aesthetic")
    assert torch.equal(metric(pictures, ["a", "b", "c"]), metric(pictures, ["", "x" * 900, "🦊"]))
