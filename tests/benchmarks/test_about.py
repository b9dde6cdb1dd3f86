"""What a run tells a board's page: texts that may be told, and the notes of every metric."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.about import about_run, may_be_told
from benchmarks.plan import Overrides
from benchmarks.workflow import Settings, evaluate, prepare
from leaderboards.about import read_about
from leaderboards.store import read_board
from metrics.loaded import Scorer

RESULTS = Path(__file__).resolve().parents[2] / "leaderboards" / "results"
MICRO = Path(__file__).resolve().parents[2] / "benchmarks" / "micro" / "pipeline"


def test_the_committed_notes_are_those_that_a_run_of_the_suite_writes() -> None:
    plan = prepare(MICRO, "micro", Settings(device="cpu")).plan
    assert read_about(RESULTS / "micro") == about_run(plan)
    (task,) = {task.spec.name for task in plan.tasks}
    evidence = {
        name
        for entry in read_board(RESULTS).suites["micro"]
        for name in entry.scores(task, "shapes_geneval").prompt_ids
    }
    assert evidence == set(read_about(RESULTS / "micro").texts(task))


def test_a_run_adds_its_texts_and_notes_to_the_board(
    pristine_pipeline: Path, suite: Path, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    board = tmp_path / "board"
    evaluate(pristine_pipeline, str(suite), settings(board=board, overrides=Overrides(limit=2)))
    assert len(read_about(board / "toys").texts("toys")) == 2
    evaluate(pristine_pipeline, str(suite), settings("whole", board=board))
    found = read_about(board / "toys")
    assert len(found.texts("toys")) == 5
    assert "a circle and a square" in {text.lower() for text in found.texts("toys").values()}
    card = Scorer(["toy_redness"]).card("toy_redness")
    assert found.metrics["toy_redness"].description == card.description


@pytest.mark.parametrize(
    ("prompt_set", "told"),
    [
        ("micro", True),
        ("geneval", True),
        ("geneval2", False),  # CC BY-NC, fetched by the user
        ("hf://someone/prompts#train", False),
        ("mine.jsonl", True),
    ],
)
def test_texts_are_told_only_where_they_may_be(prompt_set: str, told: bool) -> None:
    assert may_be_told(prompt_set) is told
