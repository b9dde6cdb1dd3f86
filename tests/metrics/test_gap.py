import numpy as np
import pytest
import torch

from metrics import gap
from metrics.base import make
from metrics.gap import PROFILES, pixel_gap, seeded_pictures
from metrics.preprocessing import Resized

CARDS = {
    "shorter side to 224, crop": ("clip_score", "aesthetic", "pick_score", "image_reward"),
    "both sides to 224": ("dfn_clip.224",),
    "both sides to 378": ("dfn_clip",),
    "multiples of 28, about 200,704 pixels": ("hps_v3",),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_cards_state_what_is_measured(profile: str) -> None:
    mean, worst = pixel_gap(PROFILES[profile], seeded_pictures())
    for identity in CARDS[profile]:
        assert f"{mean:.3f} of the [0, 1] scale on average and {worst:.2f} at most" in make(identity).card.tensor_gap


def test_nothing_differs_where_nothing_is_resized_or_floats_are_what_the_authors_resize() -> None:
    same = [(224, 224)]
    assert pixel_gap(Resized(size=(224, 224)), seeded_pictures(same)) == pytest.approx((0, 0), abs=1e-6)
    floats = Resized(size=(224, 224), resize="longest", official="tensor")
    assert pixel_gap(floats, seeded_pictures([(100, 60)])) == (0, 0)


def test_the_gap_is_that_of_unnormalised_pixels() -> None:
    plain = Resized(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    pictures = list(seeded_pictures([(100, 100)]))
    tensors = [torch.from_numpy(np.array(one)).permute(2, 0, 1)[None] / 255 for one in pictures]
    gaps = [
        (plain.from_tensor(tensor) - plain.from_pil([picture])).abs()
        for tensor, picture in zip(tensors, pictures, strict=True)
    ]
    mean, worst = pixel_gap(Resized(size=(32, 32)), iter(pictures))
    assert mean == pytest.approx(torch.cat(gaps).mean().item(), rel=1e-4)
    assert worst == pytest.approx(torch.cat(gaps).max().item(), rel=1e-4)


def test_the_command_prints_scores_of_metrics_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gap, "seeded_pictures", lambda: seeded_pictures([(64, 64)]))
    monkeypatch.setattr(gap, "PROFILES", {"small": Resized(size=(32, 32))})
    assert gap.main(["micro_aesthetic"]) == 0
    assert "small: pixels differ by 0.0" in (shown := capsys.readouterr().out)
    assert "micro_aesthetic: scores differ by" in shown
    for metric, reason in (("micro_aesthetc", "did you mean 'micro_aesthetic'"), ("shapes_geneval", "not differen")):
        assert gap.main([metric]) == 2
        assert reason in (error := capsys.readouterr().err)
        assert error.startswith("error: ")
