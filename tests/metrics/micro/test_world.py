import numpy as np
import pytest

from metrics.micro.prompts import combinations
from metrics.micro.world import COLOURS, MARGIN, SIZE, Request, mosaic, render, sample_scene


@pytest.mark.parametrize("combination", list(combinations())[::37], ids=str)
def test_scenes_fulfil_their_request_and_keep_their_distance(combination) -> None:
    scene = sample_scene(combination.request, np.random.default_rng(1))
    for thing, (shape, colour) in zip(scene.things, combination.things, strict=True):
        assert thing.shape == shape
        assert thing.colour == colour or (not colour and thing.colour in COLOURS)
        assert thing.radius + MARGIN <= min(thing.x, thing.y, SIZE - thing.x, SIZE - thing.y)
    for a in scene.things:
        for b in scene.things:
            assert a is b or np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + MARGIN - 1e-9


def test_a_scene_depends_on_its_generator_only() -> None:
    request = Request((("circle", ""), ("ring", "red")))
    first, second = (render(sample_scene(request, np.random.default_rng(5))) for _ in range(2))
    assert (first == second).all()
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8


def test_mosaic_fills_missing_places_with_white() -> None:
    sheet = mosaic([np.zeros((SIZE, SIZE, 3), np.uint8)] * 3, columns=2)
    assert sheet.shape == (2 * SIZE, 2 * SIZE, 3)
    assert (sheet[SIZE:, SIZE:] == 255).all()
    assert (sheet[:SIZE] == 0).all()
