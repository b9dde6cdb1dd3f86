"""Rows of known scores: every figure of the table can be worked out by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.config import UserError, read_toml
from leaderboards.build import RESULTS
from leaderboards.evidence import COLUMNS
from leaderboards.store import publish, read_board
from tests.leaderboards.conftest import metric_of, result_of
from trainers.study import CONFIGS, RowConfig, StudyConfig
from trainers.study_table import study_table

STUDY = StudyConfig(
    method="rtdmd",
    base="base.toml",
    suite="tiny",
    seeds=(0, 1, 2),
    measures=("judge", "score"),
    compared=("judge",),
    against=("plain", "base"),
    rows=(RowConfig(name="base", model="ckpt"), RowConfig(name="plain"), RowConfig(name="better")),
)
HALF = [1.0, 0.0] * 4  # of 4 prompts in each of two categories


def add(board: Path, name: str, judged: list[float]) -> None:
    """Put a result on the board whose judge said `judged` of its 8 prompts; its score is the mean of that."""
    rows = [
        ("compose", metric, f"p{i}", "ab"[i // 4], "seen", 0, value if metric == "judge" else float(np.mean(judged)))
        for metric in ("judge", "score")
        for i, value in enumerate(judged)
    ]
    table = pa.table(dict(zip(COLUMNS.names, zip(*rows, strict=True), strict=True)), schema=COLUMNS)
    result = result_of(table, name, metrics={key: metric_of(table, key) for key in ("judge", "score")})
    task = result.tasks[0].model_copy(update={"n_prompts": 8, "images_per_prompt": 1})
    publish(result.model_copy(update={"tasks": [task]}), table, board)


def test_means_spread_and_differences_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    add(tmp_path, "base", HALF)  # .5
    add(tmp_path, "plain-s0", HALF)
    add(tmp_path, "better-s0", [1.0] * 8)
    add(tmp_path, "better-s1", [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0])  # .75
    add(tmp_path, "better-s7", [0.0] * 8)  # of a seed that is not the study's
    lines = study_table(STUDY, tmp_path).splitlines()
    assert "| row | seeds | The judge ↑ | The score ↑ |" in lines
    assert "| base | – | 0.500 | 0.500 |" in lines
    assert "| plain | 1 | 0.500 | 0.500 |" in lines
    assert "| better | 2 | 0.875 ± 0.177 | 0.875 ± 0.177 |" in lines  # .177 = .25 / sqrt(2)
    assert "| The judge ↑ of | minus plain | minus base |" in lines
    assert "| plain | – | +0.000 |" in lines
    (cells,) = [line for line in lines if line.startswith("| better | +")]
    # Prompts 0, 2, 4, 6 were right before; 1 and 5 now are in one training of two, 3 and 7 in both: 3 / 8.
    assert cells.count("+0.375 [") == 2
    low, high = (float(x) for x in cells.split("[")[1].split("]")[0].split(", "))
    # of each category 0, 0, .5, 1: s = .169, and q is wider than Student's 2.447 of six degrees of freedom
    assert low + high == pytest.approx(0.75, abs=0.002) and 0.169 * 2.447 < high - 0.375 < 0.169 * 3.5


def test_a_board_without_the_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result of this study yet"):
        study_table(STUDY, tmp_path)


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    """After a change of results: tox -e study-rtdmd."""
    study = read_toml(StudyConfig, CONFIGS / "study-rtdmd.toml")
    committed = RESULTS.parent / "studies" / "rtdmd.md"
    assert committed.read_text(encoding="utf-8") == study_table(study, RESULTS)
    trained = {row.name for row in study.rows if not row.model}
    names = {entry.result.model.name for entry in read_board(RESULTS).suites["micro"]}
    assert {f"{name}-s{seed}" for name in trained for seed in study.seeds} <= names
