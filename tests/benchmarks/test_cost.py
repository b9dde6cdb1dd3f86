"""Cost: the stages of a call, what counts as warm, and where both stand in a result."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.cost import SINGLE, StageWatch, measured


class Sleeper(torch.nn.Module):
    def forward(self, seconds: float) -> None:
        time.sleep(seconds)


def entry(seconds: float, **changes: Any) -> dict[str, Any]:
    stages = {"encode": seconds / 4, "denoise": seconds / 2, "decode": seconds / 4}
    return {"images": 4, "warm": True, "device": "cpu", "stages": stages, "seconds": seconds} | changes


def test_stages_are_cut_at_the_first_pass_of_denoiser_and_decoder() -> None:
    pipe = SimpleNamespace(net=Sleeper(), vae=SimpleNamespace(decoder=Sleeper()))
    with StageWatch(pipe, "net", "cpu") as watch:
        time.sleep(0.02)
        for _ in range(3):
            pipe.net(0.03)
        pipe.vae.decoder(0.05)
    assert list(watch.seconds) == ["encode", "denoise", "decode"]
    assert watch.seconds["encode"] >= 0.02 and watch.seconds["denoise"] >= 0.09 and watch.seconds["decode"] >= 0.05
    assert not pipe.net._forward_pre_hooks and not pipe.vae.decoder._forward_pre_hooks
    assert watch.peak_memory_mib is None


def test_a_pipeline_without_a_decoder_has_two_stages() -> None:
    pipe = SimpleNamespace(net=Sleeper(), vae=None)
    with StageWatch(pipe, "net", "cpu") as watch:
        pipe.net(0.001)
    assert list(watch.seconds) == ["encode", "denoise"]


def test_seconds_are_the_median_of_warm_whole_batches_per_image() -> None:
    cold, part = entry(100.0, warm=False), entry(50.0, images=2)
    cost = measured([cold, entry(4.0), entry(8.0), part, entry(40.0, peak_memory_mib=7)], batch=4)
    assert cost["seconds_per_image"] == 2.0
    assert cost["stage_seconds_per_image"] == {"encode": 0.5, "denoise": 1.0, "decode": 0.5}
    assert (cost["batch"], cost["warm_batches"], cost["peak_device_memory_mib"]) == (4, 3, 7)


def test_images_drawn_one_at_a_time_have_figures_of_their_own() -> None:
    singles = {"block": SINGLE, "singles": [entry(3.0), entry(1.0), entry(2.0, peak_memory_mib=5)]}
    cost = measured([entry(4.0), singles], batch=4)
    assert cost["seconds_per_image"] == 1.0 and cost["warm_batches"] == 1
    assert cost["single"] == {
        "images": 3,
        "seconds_per_image": 2.0,
        "stage_seconds_per_image": {"encode": 0.5, "denoise": 1.0, "decode": 0.5},
        "peak_device_memory_mib": 5,
    }


@pytest.mark.parametrize(
    "entries", [[], [entry(1.0, warm=False)], [entry(1.0, images=3)], [{"nfe": 4, "seconds": 1.0}]]
)
def test_without_a_warm_whole_batch_nothing_is_stated(entries: list[dict[str, Any]]) -> None:
    assert measured(entries, batch=4) == {}
