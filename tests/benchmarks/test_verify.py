import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert "toys: toy_redness scored again, equal to the last bit" in lines
    assert "result: 3 metrics computed again from their rows, byte for byte" in lines
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


def test_a_row_that_lost_its_value_is_found(run: Path) -> None:
    path = run / "toys" / "evidence" / "toy_redness.parquet"
    table = pq.read_table(path)
    lost = pa.array([math.nan, *table["score"].to_pylist()[1:]], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("score"), "score", lost), path)
    with pytest.raises(UserError, match=r"toy_redness\.parquet: scored again, a row differs by inf"):
        verify(run, recompute=True)


def test_rows_forged_below_the_tolerance_are_found_in_the_result(run: Path) -> None:
    path = run / "toys" / "evidence" / "toy_redness.parquet"
    table = pq.read_table(path)
    raised = pa.array([value + 5e-7 for value in table["score"].to_pylist()], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("score"), "score", raised), path)
    with pytest.raises(UserError, match=r"toy_redness\.value is stated as .*, the run gives"):
        verify(run, recompute=True)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "last bit of an interval": (
        lambda t: _nudge(_metric(t, "toy_redness"), "high"),
        "toy_redness: high is stated as",
    ),
    "a truncated prompt hidden": (
        lambda t: _metric(t).update(n_truncated=5),
        r"n_truncated is stated as 5, .* gives 0",
    ),
    "another title": (lambda t: _metric(t).update(title="Better"), "title is stated as 'Better'"),
    "another direction": (lambda t: _metric(t).update(higher_is_better=False), "higher_is_better is stated as False"),
    "fewer passes": (lambda t: t["tasks"][0].update(nfe=0), "nfe is stated as 0"),
    "more steps": (lambda t: _protocol(t).update(num_inference_steps=99), "num_inference_steps is stated as 99"),
    "another model": (lambda t: t["model"].update(name="someone"), "name is stated as 'someone'"),
    "other prompts": (lambda t: t["tasks"][0].update(prompt_set="hard"), "prompt_set is stated as 'hard'"),
}


def _metric(result: dict[str, Any], name: str = "toy_verdict") -> dict[str, Any]:
    return result["tasks"][0]["metrics"][name]


def _protocol(result: dict[str, Any]) -> dict[str, Any]:
    return result["tasks"][0]["protocol"]


def _nudge(metric: dict[str, Any], key: str) -> None:
    metric[key] = math.nextafter(metric[key], 2.0)


@pytest.mark.parametrize("kind", FORGED)
def test_every_forgery_is_named_with_what_the_run_gives(run: Path, kind: str) -> None:
    forge, message = FORGED[kind]
    path = run / "result.json"
    result = json.loads(path.read_text())
    forge(result)
    path.write_text(json.dumps(result))
    with pytest.raises((UserError, ResultError), match=message):
        verify(run, recompute=True)


def test_what_is_volatile_may_differ_and_the_form_of_the_file_may_not(run: Path) -> None:
    path = run / "result.json"
    result = json.loads(path.read_text())
    result["volatile"]["host"] = "elsewhere"
    path.write_text(json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    verify(run, recompute=True)
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="says the same in other bytes"):
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
