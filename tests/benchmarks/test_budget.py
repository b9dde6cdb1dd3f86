from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import budget
from benchmarks.budget import fitting_block_size
from benchmarks.models import Pipeline
from benchmarks.prompts import PromptSet
from benchmarks.store import ImageSet
from tests.benchmarks.conftest import tiny_protocol

GIB = 2**30


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch):
    """Return a function (side, memory, parameters) -> block size of a pipeline on a CPU."""

    def choose(side: int, memory: int, parameters: int = 0) -> int:
        monkeypatch.setattr(budget, "total_memory", lambda device: memory)
        monkeypatch.setattr(Pipeline, "parameters", property(lambda self: parameters))
        protocol = replace(tiny_protocol(), height=side, width=side)
        image_set = ImageSet(name="s", prompts=PromptSet("s", ()), images_per_prompt=1, protocol=protocol)
        return fitting_block_size([image_set], object.__new__(Pipeline), "cpu")

    return choose


def test_small_pictures_come_in_blocks_of_16(size) -> None:
    assert size(64, 8 * GIB) == 16


def test_large_pictures_and_small_memory_make_smaller_blocks(size) -> None:
    assert size(1024, 24 * GIB) == 6  # half of the memory over 2 GiB for each
    assert size(1024, 24 * GIB, parameters=2 * GIB) == 4  # 8 GiB of weights


def test_a_block_holds_at_least_one_picture(size) -> None:
    assert size(4096, 4 * GIB) == 1
    assert size(512, 4 * GIB, parameters=2 * GIB) == 1


def test_pictures_made_elsewhere_need_memory_for_reading_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "total_memory", lambda device: 4 * GIB)
    pictures: Any = SimpleNamespace(picture_size=(1024, 1024))
    assert fitting_block_size([], pictures, "cpu") == 16
    assert fitting_block_size([], SimpleNamespace(picture_size=(8192, 8192)), "cpu") == 1  # type: ignore[arg-type]
