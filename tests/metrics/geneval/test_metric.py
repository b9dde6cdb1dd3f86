import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics.base import Batch, Prompt, UserError
from metrics.geneval.metric import SHAPES, detect_shapes, named_colours
from metrics.geneval.verdict import Detected, judge
from metrics.loaded import Scorer
from metrics.micro.world import Request, render, sample_scene

Draw = Callable[..., Image.Image]


@pytest.fixture
def draw() -> Draw:
    """Return a function (objects as (shape, colour), relation, seed) -> a rendered picture."""

    def make(*things: tuple[str, str], relation: str = "", seed: int = 0) -> Image.Image:
        request = Request(things=things, relation=relation)
        return Image.fromarray(render(sample_scene(request, np.random.default_rng(seed))))

    return make


def prompt(text: str, tag: str, *include: dict[str, object], **extra: object) -> Prompt:
    return Prompt(text=text, id=text, category=tag, metadata={"include": list(include), **extra})


TWO_CIRCLES = prompt(
    "two circles", "counting", {"class": "circle", "count": 2}, exclude=[{"class": "circle", "count": 3}]
)
RED_SQUARE = prompt("a red square", "colors", {"class": "square", "count": 1, "color": "red"})
RING_LEFT_OF_CROSS = prompt(
    "a ring left of a cross",
    "position",
    {"class": "cross", "count": 1},
    {"class": "ring", "count": 1, "position": ["left of", 0]},
)


def test_right_pictures_are_right_and_wrong_ones_say_why(draw: Draw) -> None:
    red, blue = ("square", "red"), ("square", "blue")
    circle, cross, ring = ("circle", "green"), ("cross", "blue"), ("ring", "red")
    cases = [
        (TWO_CIRCLES, draw(circle, circle), ""),
        (TWO_CIRCLES, draw(circle), "expected circle>=2, found 1"),
        (TWO_CIRCLES, draw(circle, circle, circle), "expected circle<3, found 3"),
        (RED_SQUARE, draw(red), ""),
        (RED_SQUARE, draw(blue), "expected red square>=1, found 0 red; and 1 blue"),
        (RING_LEFT_OF_CROSS, draw(cross, ring, relation="left of"), ""),
        (RING_LEFT_OF_CROSS, draw(cross, ring, relation="above"), "expected ring left of target, found above target"),
    ]
    batch = Batch(prompts=[case[0] for case in cases], seeds=range(len(cases)))
    rows = Scorer(["shapes_geneval"]).score([case[1] for case in cases], batch)["shapes_geneval"]
    assert rows["reason"] == [case[2] for case in cases]
    score = rows["score"]
    assert isinstance(score, torch.Tensor)
    assert score.dtype == torch.float32
    assert score.tolist() == [float(not case[2]) for case in cases]


def test_the_stored_detections_are_enough_to_judge_again(draw: Draw) -> None:
    pictures = [draw(("square", colour), seed=seed) for seed, colour in enumerate(("red", "blue", "green"))]
    batch = Batch(prompts=[RED_SQUARE] * 3, seeds=range(3))
    rows = Scorer(["shapes_geneval"]).score(pictures, batch)["shapes_geneval"]
    for stored, reason in zip(rows["detections"], rows["reason"], strict=True):
        assert isinstance(stored, str)
        detections = {
            name: [
                Detected(box=(x1, y1, x2, y2), score=score, handle=colour) for x1, y1, x2, y2, score, colour in found
            ]
            for name, found in json.loads(stored).items()
        }
        record = {"tag": "colors", "prompt": RED_SQUARE.text, **RED_SQUARE.metadata}
        assert judge(detections, record, named_colours, SHAPES).reason == reason


def test_as_a_reward_it_takes_arrays_and_tensors(draw: Draw) -> None:
    pictures = [draw(("square", colour)) for colour in ("red", "blue")]
    arrays = [np.asarray(picture) for picture in pictures]
    metric = metrics.load("shapes_geneval")
    expected = [1.0, 0.0]
    assert metric(arrays, [RED_SQUARE] * 2).tolist() == expected
    tensor = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255
    assert metric(tensor, [RED_SQUARE] * 2).tolist() == expected
    with pytest.raises(UserError, match="shapes_geneval is not differentiable"):
        metric.reward(tensor, [RED_SQUARE] * 2)


def test_the_soft_variant_gives_partial_credit(draw: Draw) -> None:
    circle = ("circle", "green")
    pictures = [draw(*[circle] * number) for number in (1, 2, 3)]
    soft = metrics.load("shapes_geneval_soft")(pictures, [TWO_CIRCLES] * 3)
    assert soft.tolist() == [0.5, 1.0, 0.5]


def test_a_prompt_without_a_record_is_an_error_that_names_it(draw: Draw) -> None:
    with pytest.raises(UserError, match=r"a red square.*no include clause"):
        metrics.load("shapes_geneval")([draw(("square", "red"))], ["a red square"])


def test_a_picture_without_shapes_has_no_detections() -> None:
    assert detect_shapes([np.full((64, 64, 3), 230, np.uint8)]) == [{}]
