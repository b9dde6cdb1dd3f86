"""Which numbers share a column, who is ranked, and what a table says of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboards.columns import band_replicates, band_text, number, trained_on
from leaderboards.store import read_board
from leaderboards.table import SuiteTable, suite_table, to_markdown
from tests.leaderboards.conftest import evidence_table, metric_of, result_of, training

Add = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[], SuiteTable]:
    return lambda: suite_table("tiny", read_board(tmp_path / "results").suites["tiny"])


def test_rows_go_from_best_to_worst_by_the_compositional_judge(add: Add, table: Callable[[], SuiteTable]) -> None:
    for name, rate in (("weak", 0.1), ("strong", 0.95), ("middling", 0.5)):
        add(name, rate)
    found = table()
    assert [row.result.model.name for row in found.ranked] == ["strong", "middling", "weak"]
    assert found.columns[0].metric == "judge"


def test_bands_stand_beside_the_values_they_rank(add: Add, table: Callable[[], SuiteTable]) -> None:
    add("strong", 0.95)
    add("weak", 0.05)
    found = table()
    assert [row.cells[found.columns[0]].band for row in found.ranked] == [(1, 1), (2, 2)]
    assert "#1" in to_markdown(found)


def test_one_model_alone_has_no_rank(add: Add, table: Callable[[], SuiteTable]) -> None:
    add()
    (row,) = table().ranked
    assert all(cell.band is None for cell in row.cells.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "corrected"},
        {"version": 2},
        {"perceiver": "another detector"},
        {"weights_digest": "a" * 64},
        {"unit": "percent"},
        {"higher_is_better": False},
    ],
)
def test_metrics_that_differ_in_any_way_never_share_a_column(
    add: Add, table: Callable[[], SuiteTable], changes: dict[str, Any]
) -> None:
    add("one")
    other = evidence_table()
    add("two", metrics={"judge": metric_of(other, "judge", **changes), "score": metric_of(other, "score")})
    found = table()
    assert [column.metric for column in found.columns].count("judge") == 2
    assert len(set(found.headings().values())) == 3
    assert all(cell.band is None for row in found.ranked for c, cell in row.cells.items() if c.metric == "judge")


def test_other_prompts_never_share_a_column(add: Add, table: Callable[[], SuiteTable]) -> None:
    add("one")
    tasks = [result_of(evidence_table()).tasks[0].model_copy(update={"prompts_digest": "b" * 64})]
    add("two", tasks=tasks)
    assert len(table().columns) == 4


@pytest.mark.parametrize(("status", "reason"), [("synthetic", "manifest"), ("partial", "not every prompt")])
def test_synthetic_and_partial_results_stand_apart_with_their_reason(
    add: Add, table: Callable[[], SuiteTable], status: str, reason: str
) -> None:
    add("good", 0.5)
    add("other", 0.9, status=status)
    found = table()
    assert [row.result.model.name for row in found.ranked] == ["good"]
    (row,) = found.apart
    assert reason in row.reason and all(cell.band is None for cell in row.cells.values())
    assert "Not ranked" in to_markdown(found) and reason in to_markdown(found)


def test_a_reward_is_marked_and_so_are_its_variants(add: Add, table: Callable[[], SuiteTable]) -> None:
    path = add(model={"method": "rtdmd", "trained_on": ["score.rtdmd"], "training": training(rewards=[])})
    found = table()
    marked = {column.metric: cell.trained_on for column, cell in found.ranked[0].cells.items()}
    assert marked == {"judge": False, "score": True}
    assert "†" in to_markdown(found).split("## Ranked")[1]
    (entry,) = read_board(path.parents[1]).entries
    assert not trained_on(entry.result, "scoreboard")


def test_a_metric_without_a_value_shows_its_status_never_a_zero(add: Add, table: Callable[[], SuiteTable]) -> None:
    rows = evidence_table()
    absent = metric_of(
        rows, "judge", card_id="fid", status="skipped", reason="no reference", value=None, low=None, high=None
    )
    add(metrics={"judge": metric_of(rows, "judge"), "score": metric_of(rows, "score"), "fid": absent})
    assert "| skipped |" in to_markdown(table())


def test_markup_in_names_is_inert_in_markdown(add: Add, table: Callable[[], SuiteTable]) -> None:
    add("<img src=x onerror=alert(1)> | **bold** [link](x)")
    text = to_markdown(table())
    assert "<img" not in text and "**bold**" not in text and "[link](" not in text
    assert "&lt;img" in text
    lines = text.split("## Ranked")[1].strip().splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines[:3]}) == 1


def test_numbers_and_bands_read_well() -> None:
    assert [number(x) for x in (0.8124, -1.0341, 12345.0, None)] == ["0.812", "-1.034", "1.234e+04", "–"]
    assert [band_text(x) for x in ((1, 1), (2, 4), None)] == ["1", "2–4", ""]


def test_bands_of_very_many_models_take_fewer_draws_so_that_a_board_costs_no_more_a_model() -> None:
    assert [band_replicates(models) for models in (1, 21, 100, 200, 224, 1000)] == [4999, 4999, 4999, 1249, 999, 999]
