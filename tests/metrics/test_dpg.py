import gzip
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.base import Batch, Prompt, UserError
from metrics.dpg import DpgCorrected, DpgOfficial, Question, questions_of, tile_score, walk

GOLDEN = Path(__file__).parents[1] / "golden/composition/dependency_vectors_300.jsonl.gz"
FEATURE = "vqa/qwen3-vl-8b:dpg"


def graph(dependencies: dict[int, str], order: list[int] | None = None) -> list[Question]:
    record = prompt_of(dependencies, order)
    return questions_of(record)


def prompt_of(
    dependencies: dict[int, str], order: list[int] | None = None, identity: str = "p", **rows: int
) -> Prompt:
    questions = [
        {"id": q, "question": f"q{q}?", "dependency": dependencies[q], "tuple": f"entity - whole (x{q})"}
        for q in order or dependencies
    ]
    for question in questions:
        question["row"] = rows.get(f"q{question['id']}", 7)
    return Prompt(text=identity, id=identity, metadata={"questions": questions})


def score(dependencies: dict[int, str], answers: str, order: list[int] | None = None) -> float:
    questions = graph(dependencies, order)
    raw = {q: float(a == "yes") for q, a in zip(dependencies, answers.split("/"), strict=True)}
    return tile_score(questions, raw)


def test_every_recorded_graph_of_the_official_program_is_met() -> None:
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 300
    for case in cases:
        questions = [
            Question(id=q, text="", parents=tuple(p for p in case["dependency"][str(q)] if p), category="")
            for q in case["order"]
        ]
        tiles = [
            tile_score(questions, dict(zip(case["order"], [float(a == "yes") for a in answers], strict=True)))
            for answers in case["answers"]
        ]
        assert tiles == pytest.approx(case["per_image"], abs=1e-12)
        assert np.mean(tiles) == pytest.approx(case["average"], abs=1e-12)
        last = dict(zip(case["order"], case["answers"][-1], strict=True))
        raw = {str(q): float(last[q] == "yes") for q in case["order"]}
        assert raw == case["official_category_scores_last_image"]


@pytest.mark.parametrize(
    ("dependencies", "answers", "order", "expected"),
    [
        ({1: "0", 2: "1", 3: "1"}, "no/yes/yes", None, 0.0),
        ({1: "0", 2: "1", 3: "2"}, "no/yes/yes", None, 0.0),
        ({1: "0", 2: "1", 3: "2"}, "no/yes/yes", [3, 2, 1], 1 / 3),
        ({1: "0", 2: "0", 3: "1,2", 4: "0"}, "yes/no/yes/yes", None, 0.5),
        ({1: "0", 2: "1"}, "Yes/yes", None, 0.0),
        ({1: "0", 2: "1", 3: "1", 4: "2, 3"}, "yes/no/yes/yes", None, 0.5),
    ],
)
def test_worked_examples(dependencies: Any, answers: str, order: Any, expected: float) -> None:
    assert score(dependencies, answers, order) == pytest.approx(expected, abs=1e-12)


def measured(metric: Any, prompts: list[Prompt], answers: list[dict[int, str]]) -> tuple[list[float], Any]:
    rows = metric.measure({FEATURE: answers}, Batch(prompts=prompts, seeds=range(len(prompts))))
    return rows["score"].tolist(), metric.summarise(rows, prompts)


def test_four_tiles_count_four_times_in_the_corrected_categories_and_once_in_the_official_ones() -> None:
    prompts, answers = [prompt_of({1: "0"})] * 4, [{1: a} for a in ("yes", "yes", "yes", "no")]
    scores, summary = measured(DpgCorrected(), prompts, answers)
    assert scores == [1, 1, 1, 0]
    assert {name: group.value for name, group in summary.groups.items()} == {"entity": 0.75, "entity - whole": 0.75}
    _, official = measured(DpgOfficial(), prompts, answers)
    assert official.per_image_N.mean() == 0.75
    assert official.groups["entity"].value == 0


def test_official_categories_are_raw_and_corrected_ones_are_not() -> None:
    prompts, answers = [prompt_of({1: "0", 2: "1", 3: "1"})], [{1: "no", 2: "yes", 3: "yes"}]
    assert measured(DpgOfficial(), prompts, answers)[1].groups["entity"].value == pytest.approx(2 / 3)
    assert measured(DpgCorrected(), prompts, answers)[1].groups["entity"].value == 0


def test_prompts_weigh_the_same_whatever_their_number_of_questions() -> None:
    many = dict.fromkeys(range(1, 10), "0")
    prompts = [prompt_of({1: "0"}, identity="one"), prompt_of(many, identity="nine")]
    scores, _ = measured(DpgCorrected(), prompts, [{1: "yes"}, dict.fromkeys(many, "no")])
    assert np.mean(scores) == 0.5


def test_the_official_loader_drops_the_first_row_and_with_it_the_prompt_that_needs_it() -> None:
    needing = prompt_of({1: "0", 2: "1"}, identity="a", q1=0, q2=1)
    other = prompt_of({1: "0", 2: "0"}, identity="b", q1=2, q2=3)
    scores, summary = measured(DpgOfficial(), [needing, other], [{1: "yes", 2: "yes"}, {1: "yes", 2: "no"}])
    assert scores == [1.0, 0.5]
    np.testing.assert_array_equal(summary.per_image_N, [np.nan, 0.5])  # left out and counted, never a number
    assert summary.groups["entity"].questions_N.tolist() == [0, 2]
    alone = prompt_of({1: "0", 2: "0"}, identity="a", q1=0, q2=1)
    _, summary = measured(DpgOfficial(), [alone, other], [{1: "yes", 2: "no"}, {1: "yes", 2: "no"}])
    assert summary.per_image_N.tolist() == [0.0, 0.5]
    with pytest.raises(UserError, match="drops every prompt"):
        measured(DpgOfficial(), [needing], [{1: "yes", 2: "yes"}])


@given(st.data())
def test_a_tile_never_exceeds_its_raw_mean_and_a_yes_never_costs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    dependencies = {q: data.draw(st.sampled_from(["0", *map(str, range(1, q))])) for q in range(1, count + 1)}
    order = data.draw(st.permutations(list(dependencies)))
    questions = graph(dependencies, order)
    raw = {q: float(data.draw(st.booleans())) for q in dependencies}
    found = tile_score(questions, raw)
    assert 0 <= found <= sum(raw.values()) / count
    assert tile_score(questions, raw | {data.draw(st.sampled_from(order)): 1.0}) >= found
    independent = graph(dict.fromkeys(dependencies, "0"), order)
    assert walk(independent, raw) == raw


@pytest.mark.parametrize(
    ("dependencies", "message"),
    [
        ({1: "2", 2: "1"}, "questions 1, 2 depend on each other in a circle"),
        ({1: "1"}, "in a circle"),
        ({1: "9"}, "question 1 depends on 9, which does not exist"),
        ({1: "0,x"}, "is no list of numbers"),
    ],
)
def test_questions_that_cannot_be_judged_are_refused(dependencies: dict[int, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        graph(dependencies)


def test_missing_malformed_and_repeated_questions_are_refused() -> None:
    record = {"id": 1, "question": "?", "dependency": "0", "tuple": "entity - whole (a)"}
    for questions, message in (
        (None, "no questions"),
        ([], "no questions"),
        ([record, record], "question 1 stands twice"),
        ([{**record, "id": "1"}], "a question needs id"),
        ([{"id": 1}], "a question needs id"),
    ):
        with pytest.raises(UserError, match=message):
            questions_of(Prompt(text="p", metadata={"questions": questions}))


def test_a_question_without_an_answer_is_an_error_with_counts() -> None:
    with pytest.raises(UserError, match=r"1 of 2 questions have no answer \(first: 2\)"):
        measured(DpgCorrected(), [prompt_of({1: "0", 2: "0"})], [{1: "yes"}])


def test_only_exactly_yes_scores() -> None:
    spellings = ["yes", "Yes", "yes.", " yes", "no"]
    prompts = [prompt_of({1: "0"}, identity=str(n)) for n, _ in enumerate(spellings)]
    scores, _ = measured(DpgCorrected(), prompts, [{1: text} for text in spellings])
    assert scores == [1, 0, 0, 0, 0]


def test_all_answers_to_a_small_graph_by_hand() -> None:
    # 2 needs 1, 3 needs 2: the score is the length of the leading run of "yes", over 3
    for answers in product((0.0, 1.0), repeat=3):
        run = 0
        while run < 3 and answers[run]:
            run += 1
        questions = graph({1: "0", 2: "1", 3: "2"})
        assert tile_score(questions, dict(zip((1, 2, 3), answers, strict=True))) == pytest.approx(run / 3)
