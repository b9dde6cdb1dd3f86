import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gmean

from metrics.base import Batch, Prompt, UserError
from metrics.geneval2 import (
    YES,
    Asked,
    GenEval2Gm,
    GenEval2SoftAm,
    GenEval2Tifa,
    Question,
    arithmetic_mean,
    geometric_mean,
    questions_of,
)

FEATURE = "vqa/qwen3-vl-8b:geneval2"
PROMPT = Prompt(
    text="two green dogs",
    id="00000",
    metadata={
        "vqa_list": [["How many dogs?", "two"], ["Are the dogs green?", "Yes"], ["Are there dogs?", "Yes"]],
        "skills": ["count", "attribute", "object"],
    },
)


@pytest.mark.parametrize(
    ("scores", "am", "gm"),
    [((1, 1, 1), 1, 1), ((0.5, 1, 1, 0.25), 0.6875, 0.125**0.25), ((0.9, 0.8, 0), 1.7 / 3, 0)],
)
def test_worked_examples(scores: tuple[float, ...], am: float, gm: float) -> None:
    assert arithmetic_mean(scores) == pytest.approx(am, abs=1e-12)
    assert geometric_mean(scores) == pytest.approx(gm, abs=1e-12)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9), st.randoms())
def test_gm_is_scipy_s_and_never_above_am(scores: list[float], random) -> None:
    assert geometric_mean(scores) == pytest.approx(gmean(scores), rel=1e-9)
    assert geometric_mean(scores) <= arithmetic_mean(scores) + 1e-12 <= 1 + 1e-9
    shuffled = random.sample(scores, len(scores))
    assert arithmetic_mean(shuffled) == pytest.approx(arithmetic_mean(scores))


def test_spellings_of_numbers_and_of_yes() -> None:
    count = Question(text="How many?", answer="two", skill="count")
    assert count.spellings == ("two", "Two", " two", " Two", "2", " 2")
    assert Question(text="How many?", answer="dozens", skill="count").spellings[4:] == ("other", " other")
    assert Question(text="Is it?", answer="whatever", skill="verb").spellings == ("Yes", "yes", " yes", " Yes")
    assert Question(text="Are there two?", answer="two", skill="count").spellings == YES  # by the question's words
    assert Question(text="How many?", answer="Two", skill="verb").spellings == (
        "Two",
        "Two",
        " Two",
        " Two",
        "other",
        " other",
    )


def test_soft_and_hard_scores_and_skills() -> None:
    asked = [[Asked("Two", 0.5), Asked("No", 0.25), Asked("yes", 1.0)]]
    batch = Batch(prompts=[PROMPT], seeds=[0])
    for metric, expected in ((GenEval2Gm(), 0.5), (GenEval2SoftAm(), 1.75 / 3), (GenEval2Tifa(), 2 / 3)):
        rows = metric.measure({FEATURE: asked}, batch)
        assert float(rows["score"][0]) == pytest.approx(expected)
    assert rows["masses"] == ["[1.0, 0.0, 1.0]"]  # hard: the text in lower case is one of the spellings, or is not
    summary = GenEval2Gm().summarise(GenEval2Gm().measure({FEATURE: asked}, batch), [PROMPT])
    assert {name: group.value for name, group in summary.groups.items()} == {
        "attribute": 0.25,
        "count": 0.5,
        "object": 1.0,
    }


def test_a_skill_s_value_is_a_mean_over_questions_not_over_prompts() -> None:
    one = Prompt(text="a dog", id="1", metadata={"vqa_list": [["Is there a dog?", "Yes"]], "skills": ["object"]})
    three = Prompt(text="x", id="2", metadata={"vqa_list": [["Is it?", "Yes"]] * 3, "skills": ["object"] * 3})
    asked = [[Asked("Yes", 1.0)], [Asked("No", 0.0)] * 3]
    metric = GenEval2SoftAm()
    rows = metric.measure({FEATURE: asked}, Batch(prompts=[one, three], seeds=[0, 0]))
    summary = metric.summarise(rows, [one, three])
    assert summary.groups["object"].value == 0.25
    assert float(np.mean(summary.per_image_N)) == 0.5


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "'vqa_list' and 'skills' are missing"),
        ({"vqa_list": [["a?", "Yes"]], "skills": []}, "1 questions, 0 skills"),
        ({"vqa_list": [["a?"]], "skills": ["object"]}, "is no .question, answer."),
        ({"vqa_list": [["a?", ""]], "skills": ["object"]}, "is no .question, answer."),
        ({"vqa_list": [["a?", "Yes"]], "skills": ["smell"]}, "skill 'smell'"),
    ],
)
def test_malformed_records_are_refused(metadata: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        questions_of(Prompt(text="p", metadata=metadata))


def test_every_question_needs_an_answer() -> None:
    with pytest.raises(UserError, match="3 questions, 1 answers"):
        GenEval2Gm().measure({FEATURE: [[Asked("two", 1.0)]]}, Batch(prompts=[PROMPT], seeds=[0]))


def test_a_mass_of_zero_makes_gm_zero_without_a_warning() -> None:
    assert geometric_mean([0.0, 1.0]) == 0.0
    assert not math.isnan(geometric_mean([1e-300] * 9))
