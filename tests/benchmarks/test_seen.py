import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.seen import leaves_more_than_numbers, seen, told_rows
from benchmarks.workflow import Settings, evaluate
from leaderboards.seen import MOST_BOXES
from leaderboards.store import read_entry
from metrics.base import Prompt, UserError

PROMPT = Prompt(id="p", text="a dog", metadata={"vqa_list": [["How many?", "two"]]})
SIZE = (200, 100)


def test_boxes_are_percentages_of_the_picture_and_stay_inside_it() -> None:
    objects = {"dog": [[20, 10, 120, 60, 0.9, "blue"], [-4, 50, 240, 130, 0.4]]}
    objects["dog"][1].append(None)
    first, second = seen({"detections": json.dumps(objects)}, PROMPT, SIZE).boxes
    assert (first.label, first.left, first.top, first.width, first.height) == ("blue dog 0.90", 10, 10, 50, 50)
    assert (second.label, second.left, second.top, second.width, second.height) == ("dog 0.40", 0, 50, 100, 50)


def test_the_strongest_boxes_are_told_and_the_others_counted() -> None:
    many = [[0, 0, 1, 1, score / 100, None] for score in range(MOST_BOXES + 3)]
    told = seen({"detections": json.dumps({"dog": many})}, PROMPT, SIZE)
    assert len(told.boxes) == MOST_BOXES and told.n_weaker == 3
    assert told.boxes[0].label == f"dog 0.{MOST_BOXES + 2}" and told.boxes[-1].label == "dog 0.03"


def test_answers_stand_beside_what_was_expected() -> None:
    told = seen({"answers": '["one"]', "masses": "[0.25]"}, PROMPT, SIZE)
    assert told.table == [["How many?", "expected two", "said one", "0.250"]]


def test_a_row_of_numbers_alone_shows_nothing() -> None:
    assert not seen({"score": 0.5}, PROMPT, SIZE)
    assert seen({"reason": "no dog"}, PROMPT, SIZE).reasons == ["no dog"]


def test_rows_are_those_of_the_prompts_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "judge.parquet"
    table = pa.table({"prompt_id": ["a", "a", "b"], "seed": [0, 1, 0], "reason": ["x", "y", "z"], "v": [[0.0]] * 3})
    pq.write_table(table, path)
    assert leaves_more_than_numbers(path)
    found = told_rows(path, {"a"})
    assert found == {("a", seed): {"prompt_id": "a", "seed": seed, "reason": "xy"[seed]} for seed in (0, 1)}
    pq.write_table(table.drop_columns(["reason"]), path)
    assert not leaves_more_than_numbers(path)
    path.write_bytes(b"PAR1")
    for read in (leaves_more_than_numbers, lambda where: told_rows(where, {"a"})):
        with pytest.raises(UserError, match="damaged"):
            read(path)


def test_a_published_picture_carries_what_its_metrics_saw(
    pristine_pipeline: Path, suite: Path, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    evaluate(pristine_pipeline, str(suite), settings(board=tmp_path / "board"))
    (path,) = (tmp_path / "board").glob("*/*.json")
    entry = read_entry(path)
    rows = pq.read_table(settings().out / "toys/evidence/toy_verdict.parquet").to_pylist()
    reasons = {(row["prompt_id"], row["seed"]): row["reason"] for row in rows}
    assert len(entry.samples) == 10 and any(reasons.values())
    for sample in entry.samples:
        reason = reasons[sample.prompt_id, sample.seed]
        assert {name: one.reasons for name, one in sample.seen.items()} == (
            {"toy_verdict": [reason]} if reason else {}
        )
