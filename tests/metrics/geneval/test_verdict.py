"""The worked examples of the GenEval specification, and properties of the engine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.base import UserError
from metrics.geneval.verdict import (
    Constants,
    Detected,
    Verdict,
    judge,
    judge_flow_grpo,
    keep,
    relative_position,
)

CHAIR = (300, 200, 400, 300)
THRESHOLD = float(np.float32(0.3))


def objects(*scores: float, box=(0, 0, 10, 10), colours: str = "") -> list[Detected]:
    """Objects of one class with these scores; `colours` are their colours, separated by spaces."""
    names = colours.split() or ["red"] * len(scores)
    return [Detected(box, score, name) for score, name in zip(scores, names, strict=True)]


def need(name: str, count: int = 1, **more) -> dict:
    return {"class": name, "count": count, **more}


def verdict(detections: dict, *include: dict, tag: str = "single_object", exclude=()) -> Verdict:
    return judge(detections, {"tag": tag, "include": list(include), "exclude": list(exclude)}, lambda _, names: names)


def test_the_threshold_is_strict_in_float32() -> None:
    assert verdict({"cow": objects(THRESHOLD)}, need("cow")) == Verdict(False, "expected cow>=1, found 0", {})
    assert verdict({"cow": objects(float(np.nextafter(np.float32(0.3), np.float32(1))))}, need("cow")).correct


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_scores_are_rounded_to_float32_before_they_are_compared(threshold: float) -> None:
    single = np.float32(threshold)
    middle = (float(single) + float(np.nextafter(single, np.float32(1)))) / 2
    for score in (middle, float(np.nextafter(middle, 0)), float(np.nextafter(middle, 1)), threshold):
        kept = keep({"cow": objects(score)}, "counting" if threshold == 0.9 else "")
        assert bool(kept) == (np.float32(score) > single)


def test_a_score_half_way_to_the_next_float32_is_rounded_to_the_even_one() -> None:
    kept_at = {}
    for threshold in (0.3, 0.5, 0.9, float(np.nextafter(np.float32(0.3), np.float32(1)))):
        single = np.float32(threshold)
        middle = (float(single) + float(np.nextafter(single, np.float32(1)))) / 2
        even = int(single.view(np.int32)) % 2 == 0
        kept = keep({"cow": objects(middle)}, "", Constants(threshold=threshold))
        assert bool(kept) == (not even) == bool(np.float32(middle) > single)
        below = keep({"cow": objects(float(np.nextafter(middle, 0)))}, "", Constants(threshold=threshold))
        above = keep({"cow": objects(float(np.nextafter(middle, 1)))}, "", Constants(threshold=threshold))
        assert (bool(below), bool(above)) == (False, True)
        kept_at[even] = bool(kept)
    assert kept_at == {True: False, False: True}  # both ways were tried


def test_extra_objects_are_free_except_in_the_flow_grpo_variant() -> None:
    cows = {"cow": objects(0.31, 0.95)}
    assert verdict(cows, need("cow")).correct
    strict = judge_flow_grpo(cows, {"tag": "single_object", "include": [need("cow")]}, lambda _, names: names)
    assert (strict.strict_correct, strict.soft) == (False, 0.0)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((0.95, 0.96, 0.97, 0.89), ""),
        ((0.95, 0.96, 0.97, 0.91), "expected clock<4, found 4"),
        ((0.95, 0.96, float(np.float32(0.9))), "expected clock>=3, found 2"),
    ],
)
def test_counting_is_exact_above_its_own_threshold(scores: tuple[float, ...], reason: str) -> None:
    result = verdict({"clock": objects(*scores)}, need("clock", 3), tag="counting", exclude=[need("clock", 4)])
    assert (result.correct, result.reason) == (not reason, reason)


def test_colour_looks_at_the_most_confident_object_only() -> None:
    wrong = verdict({"bench": objects(0.8, 0.7, colours="brown green")}, need("bench", color="green"))
    assert wrong.reason == "expected green bench>=1, found 0 green; and 1 brown"
    assert verdict({"bench": objects(0.8, 0.7, colours="green brown")}, need("bench", color="green")).correct


@pytest.mark.parametrize(
    ("dog", "relations"),
    [
        ((50, 200, 150, 300), {"left of"}),
        ((260, 200, 360, 300), set()),  # dx is exactly -0.5
        ((259, 200, 359, 300), {"left of"}),
        ((200, 500, 300, 600), {"below"}),
        ((50, 0, 150, 100), {"left of", "above"}),
        (CHAIR, set()),
    ],
)
def test_relations_of_worked_boxes(dog, relations: set[str]) -> None:
    assert relative_position(dog, CHAIR) == relations
    found = {"chair": objects(0.9, box=CHAIR), "dog": objects(0.9, box=dog)}
    result = verdict(found, need("chair"), need("dog", position=["left of", 0]), tag="position")
    assert result.correct == ("left of" in relations)
    if not relations:
        assert result.reason == "expected dog left of target, found  target"


def test_later_clauses_are_judged_after_a_failure() -> None:
    result = verdict({"dog": objects(0.9)}, need("chair"), need("dog", position=["left of", 0]), tag="position")
    assert result.reason == "expected chair>=1, found 0\nno target for dog to be left of"


def test_at_most_sixteen_objects_count() -> None:
    clocks, record = {"clock": objects(*[0.9] * 20)}, {"tag": "x", "include": [need("clock")]}
    assert judge(clocks, record | {"exclude": [need("clock", 17)]}, lambda _, names: names).correct
    assert judge_flow_grpo(clocks, record, lambda _, names: names).soft == -14


def test_of_equal_scores_the_later_comes_first() -> None:
    assert [d.handle for d in keep({"a": objects(0.5, 0.5, colours="x y")}, "")["a"]] == ["y", "x"]


def test_overlapping_boxes_are_dropped_only_where_asked() -> None:
    twice = {"cow": [Detected((0, 0, 9, 9), 0.9), Detected((0, 0, 9, 10), 0.8)]}
    assert len(keep(twice, "")["cow"]) == 2
    assert len(keep(twice, "", Constants(max_overlap=0.9))["cow"]) == 1


def test_overlap_counts_pixels_inclusively_and_the_limit_itself_is_too_much() -> None:
    corner = {"cow": [Detected((0, 0, 9, 9), 0.9), Detected((5, 5, 9, 9), 0.8)]}  # 5 x 5 of 10 x 10 pixels
    assert len(keep(corner, "", Constants(max_overlap=0.25))["cow"]) == 1
    assert len(keep(corner, "", Constants(max_overlap=0.26))["cow"]) == 2


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        (need("cow", 0), "include count 0"),
        (need("cow", position=["beside", 0]), "'beside' is none of"),
        (need("cow", position=["left of", 1]), "target 1 must be an earlier clause"),
        (need("cow", position="left of"), "must be .relation, index of an earlier clause"),
        (need("cow", color="grey"), "colour 'grey' is none of red, orange"),
        ({"class": "cow"}, "include clause 1 must be an object with 'class' and 'count'"),
        ({"class": ["cow"], "count": 1}, r"include class \['cow'\] must be text"),
        (need("cow", True), "include count True"),
    ],
)
def test_malformed_records_are_refused(clause: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        verdict({}, need("cow"), clause)
    with pytest.raises(UserError, match="no include clause"):
        verdict({})
    with pytest.raises(UserError, match="exclude count 0"):
        verdict({}, need("cow"), exclude=[need("cow", 0)])
    for side in ("include", "exclude"):
        with pytest.raises(UserError, match=f"{side} must be a list of clauses, found None"):
            judge({}, {"tag": "", "include": [need("cow")], side: None}, lambda _, names: names)


def test_a_class_that_the_detector_cannot_find_is_refused() -> None:
    only_cows, record = (
        Constants(classes=frozenset({"cow"})),
        {"tag": "", "prompt": "a cat", "include": [need("cat")]},
    )
    with pytest.raises(UserError, match="prompt 'a cat': the detector knows no class 'cat'"):
        judge({}, record, lambda _, names: names, only_cows)


BOXES = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(BOXES, BOXES)
def test_relations_turn_round_with_the_pair_and_the_picture(a, b) -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    relations = relative_position(a, b)
    assert relative_position(b, a) == {opposite[relation] for relation in relations}
    mirrored = [(200 - x2, y1, 200 - x1, y2) for x1, y1, x2, y2 in (a, b)]
    horizontal = {"left of", "right of"}
    assert relative_position(*mirrored) == {opposite[r] if r in horizontal else r for r in relations}


@given(st.lists(st.floats(0, 1, width=32), unique=True, max_size=8), st.randoms())
def test_the_verdict_does_not_depend_on_the_detector_s_order(scores, random) -> None:
    record = {"tag": "counting", "include": [need("cow", 2)], "exclude": [need("cow", 3)]}
    shuffled = random.sample(scores, len(scores))
    first, second = (judge({"cow": objects(*s)}, record, lambda _, names: names) for s in (scores, shuffled))
    assert first == second
