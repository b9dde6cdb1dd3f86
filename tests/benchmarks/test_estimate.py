"""The plan of a run against the run: operations counted without weights, and those of the pipeline itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.config import UserError
from benchmarks.estimate import DEVICES, EFFICIENCY, Device, Estimate, count_operations, estimate, find_device
from benchmarks.models import Pipeline, noise_generator, open_model
from tests.shrunken.families import make


@pytest.mark.parametrize("family", ["sd3-t5", "sdxl", "flux2", "sit"])
def test_operations_are_those_of_a_pass_of_the_pipeline(family: str, tmp_path: Path) -> None:
    model = open_model(make(family, tmp_path / family))
    assert isinstance(model, Pipeline)
    protocol = replace(model.protocol, num_inference_steps=1, guidance_scale=1.0)
    pipe, seen = model.loaded(protocol), []
    network = getattr(pipe, model.files.denoiser.name)
    with FlopCounterMode(network, display=False) as counter:
        drawn = model.generate(["207"], [noise_generator(0, "a", 0)], protocol)
        seen.append(counter.get_flop_counts())
    measured = sum(seen[0][type(network).__name__].values())
    assert drawn.nfe == 1
    assert count_operations(model, protocol) == pytest.approx(measured, rel=0.02)
    assert not torch.cuda.is_initialized()


def test_memory_and_hours_follow_from_size_and_device(pristine_pipeline: Path) -> None:
    model = open_model(pristine_pipeline)
    assert isinstance(model, Pipeline)
    wide = estimate(model, replace(model.protocol, dtype="float32"), 4)
    narrow = estimate(model, replace(model.protocol, dtype="bfloat16"), 4)
    assert wide.weights_bytes == 4 * sum(model.components.values()) and wide.bytes == 2 * narrow.bytes
    assert wide.decoding_bytes == 4 * 16 * 16 * 2048 and wide.counted
    one = Estimate(operations_per_pass=10**12, counted=True, weights_bytes=1, decoding_bytes=1)
    assert one.seconds(3000, Device(1e15, 80)) == pytest.approx(3 / EFFICIENCY)


def test_a_denoiser_of_unknown_inputs_is_put_at_two_operations_a_weight_and_token(tmp_path: Path) -> None:
    model = open_model(make("z_image", tmp_path / "z"))
    assert isinstance(model, Pipeline)
    rough = estimate(model, model.protocol, 1)
    tokens = (32 // model.pixels_per_token) ** 2
    assert not rough.counted and rough.operations_per_pass == 2 * model.parameters * tokens


def test_unknown_devices_are_named_with_the_nearest(tmp_path: Path) -> None:
    assert find_device("h100") == DEVICES["h100"]
    with pytest.raises(UserError, match="did you mean 'a100'"):
        find_device("a1000")
