import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.verify import verify
from benchmarks.workflow import Settings, evaluate
from leaderboards.schema import ResultError
from metrics.base import UserError

Make = Callable[..., Settings]


@pytest.fixture
def run(pristine_pipeline: Path, suite: Path, settings: Make) -> Path:
    evaluate(pristine_pipeline, str(suite), settings())
    return settings().out


def test_a_sound_run_is_recomputed_to_the_same_rows(run: Path) -> None:
    lines = verify(run, recompute=True)
    assert "toys: 10 pictures are those drawn" in lines
    assert "toys: toy_redness scored again, largest difference 0" in lines
    assert lines[-1] == "result: its values follow from 30 rows of evidence"


def test_a_changed_picture_is_found(run: Path) -> None:
    images = run / "toys" / "images"
    (images / "two-0" / "0.png").write_bytes((images / "two-0" / "1.png").read_bytes())
    with pytest.raises(UserError, match="is not the one drawn"):
        verify(run)


def test_changed_rows_are_found_by_scoring_again(run: Path) -> None:
    path = run / "toys" / "evidence" / "toy_redness.parquet"
    table = pq.read_table(path)
    raised = pa.array([value + 1e-4 for value in table["score"].to_pylist()], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("score"), "score", raised), path)
    verify(run)
    with pytest.raises(UserError, match=r"toy_redness\.parquet: scored again, a row differs by"):
        verify(run, recompute=True)


def test_a_changed_value_is_found(run: Path) -> None:
    path = run / "result.json"
    result = json.loads(path.read_text())
    result["tasks"][0]["metrics"]["toy_redness"]["value"] += 1e-3
    path.write_text(json.dumps(result))
    with pytest.raises(ResultError, match="toy_redness: value is stated as"):
        verify(run)


def test_changed_prompts_are_found(run: Path) -> None:
    path = run / "toys" / "prompts.jsonl"
    path.write_text(path.read_text().replace("a red circle", "a red square"))
    with pytest.raises(UserError, match="is not the prompt set that the run was made with"):
        verify(run)


def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        verify(tmp_path)
