"""Protocol match: what a paper does not state, or we have not measured, is unknown and never assumed to agree."""

from collections.abc import Callable
from pathlib import Path

from leaderboards.match import NOT_MEASURED, NOT_STATED, Aspect, protocol_match
from leaderboards.papers import read_paper_tables
from leaderboards.recipe import Recipe, RecipeColumn, find_recipe
from leaderboards.store import read_board
from tests.leaderboards.conftest import evidence_table, result_of

TABLE = read_paper_tables()["rtdmd-table1"]


def measured(add: Callable[..., Path], tmp_path: Path, **protocol: object) -> dict[str, Aspect]:
    rows = evidence_table()
    task = result_of(rows).tasks[0].model_copy(update={"protocol": protocol})
    add(tasks=[task])
    recipe = Recipe(name="t", suite="tiny", columns=[RecipeColumn(title="CLIP", metric="score", scorer="same")])
    entries = read_board(tmp_path / "results").suites["tiny"]
    return {aspect.name: aspect for aspect in protocol_match(TABLE, recipe, entries)}


def test_equal_resolution_is_the_same_and_another_differs(add: Callable[..., Path], tmp_path: Path) -> None:
    assert measured(add, tmp_path, width=1024, height=1024)["resolution"].verdict == "same"
    found = measured(add, tmp_path, width=512, height=512)["resolution"]
    assert (found.paper, found.ours, found.verdict) == ("1024 × 1024", "512 × 512", "differs")


def test_what_the_paper_does_not_say_is_unknown(add: Callable[..., Path], tmp_path: Path) -> None:
    found = measured(add, tmp_path, width=1024, height=1024)["number of prompts"]
    assert (found.paper, found.verdict) == (NOT_STATED, "unknown")


def test_guidance_is_compared_where_all_rows_agree(add: Callable[..., Path], tmp_path: Path) -> None:
    found = measured(add, tmp_path, guidance_scale=1.0)["guidance"]
    assert found.ours == "unguided" and found.paper == "some rows guided" and found.verdict == "differs"


def test_free_text_never_proves_that_prompts_agree(add: Callable[..., Path], tmp_path: Path) -> None:
    assert measured(add, tmp_path, width=1024, height=1024)["prompts"].verdict == "unknown"


def test_without_a_measurement_only_scorers_are_judged() -> None:
    recipe = find_recipe("dmdr-v2-table2")
    found = protocol_match(read_paper_tables()["dmdr-v2-table2"], recipe, [])
    assert all(one.ours == NOT_MEASURED and one.verdict == "unknown" for one in found if "scorer" not in one.name)
    assert {one.name: one.verdict for one in found}["scorer: CLIP Score"] == "differs"
