import math

import numpy as np
import pytest

from metrics.geneval.metric import SHAPES as CONSTANTS
from metrics.geneval.metric import detect_shapes, named_colours
from metrics.geneval.verdict import judge
from metrics.micro.prompts import combinations
from metrics.micro.shapes import detect
from metrics.micro.world import COLOURS, SHAPES, Scene, Thing, render, sample_scene

WHITE = (240, 240, 240)


def scene_of(*things: Thing) -> np.ndarray:
    return render(Scene(things, WHITE))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_clean_shape_is_named_with_certainty(shape: str, colour: str) -> None:
    rng = np.random.default_rng(7)
    for radius in (6.5, 9.0, 13.5):
        x, y = rng.uniform(16, 48, 2)
        tilt = rng.uniform(-1, 1) * math.radians(15)
        (found,) = detect(scene_of(Thing(shape, colour, x, y, radius, tilt)))
        assert (found.shape, found.colour) == (shape, colour)
        assert found.score >= 0.95
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(x, abs=1.5)


def test_verdicts_on_renders_are_right_for_their_prompt_and_a_wrong_one() -> None:
    rng, everything = np.random.default_rng(3), list(combinations())
    for index in rng.integers(len(everything), size=150):
        drawn = everything[index]
        found = detect_shapes([render(sample_scene(drawn.request, rng))])[0]
        other = next(c for c in everything[index + 1 :] + everything if c.tag == drawn.tag and misses(c, drawn))
        assert judge(found, drawn.record("{}"), named_colours, CONSTANTS).correct
        assert not judge(found, other.record("{}"), named_colours, CONSTANTS).correct


def misses(asked, drawn) -> bool:
    """Whether a picture of `drawn` cannot show what is asked."""
    if asked.tag == "position":
        return asked.meaning != drawn.meaning
    return len(asked.things) != len(drawn.things) or not set(asked.things) <= set(drawn.things)


def test_box_edges_are_exclusive() -> None:
    picture = np.full((64, 64, 3), 240, np.uint8)
    picture[20:36, 10:26] = COLOURS["blue"]
    (found,) = detect(picture)
    assert found.box == (10, 20, 26, 36)
    assert (found.shape, found.pixels) == ("square", 256)


def malformed() -> dict[str, np.ndarray]:
    rows, columns = np.indices((64, 64))
    down, right = rows - 32, columns - 32
    return {
        "long bar": (abs(down) < 4) & (abs(right) < 16),
        "half disc": (np.hypot(down, right) < 12) & (rows < 32),
        "letter L": ((abs(rows - 40) < 3) & (abs(right) < 12)) | ((abs(columns - 22) < 3) & (abs(down) < 11)),
        "two discs grown together": (np.hypot(down, columns - 24) < 8) | (np.hypot(down, columns - 38) < 8),
        "open ring": (abs(np.hypot(down, right) - 9) < 3) & ~((abs(down) < 6) & (columns > 32)),
    }


@pytest.mark.parametrize("name", malformed())
def test_malformed_blobs_stay_below_the_threshold(name: str) -> None:
    picture = np.where(malformed()[name][..., None], COLOURS["green"], WHITE).astype(np.uint8)
    assert all(found.score < 0.3 for found in detect(picture))


def test_an_empty_and_a_noisy_picture_show_nothing() -> None:
    assert detect(np.full((64, 64, 3), 235, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert all(found.score < 0.3 for found in detect(noise))
