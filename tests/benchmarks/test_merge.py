"""Parts of a run, drawn in directories of their own and joined, against the run that one process makes."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.merge import Arguments, main, merge
from benchmarks.plan import Overrides
from benchmarks.run import _shard
from benchmarks.workflow import Settings, evaluate, prepare, work
from metrics.base import UserError
from tests.benchmarks.test_workflow import blocks_drawn, frozen

Make = Callable[..., Settings]


def draw_part(model: Path, suite: Path, settings: Settings) -> None:
    assert work(prepare(model, str(suite), settings)) is None  # a part has no result


@pytest.mark.parametrize("count", [2, 3])
def test_joined_parts_are_the_run_of_one_machine(
    pristine_pipeline: Path, suite: Path, settings: Make, tmp_path: Path, count: int, capsys: pytest.CaptureFixture
) -> None:
    evaluate(pristine_pipeline, str(suite), settings("whole", batch_size=3))
    parts = [tmp_path / f"part-{k}" for k in range(count)]
    for k, part in enumerate(parts):
        draw_part(pristine_pipeline, suite, settings(part.name, batch_size=3, shard=(k, count)))
        assert blocks_drawn(part) == list(range(k, 4, count))
    assert merge(tmp_path / "joined", parts[:1]) == (len(range(0, 4, count)), 4)
    assert main(Arguments(out=tmp_path / "joined", runs=tuple(parts))) == 0
    assert "4 of 4 blocks" in capsys.readouterr().out
    shards = list((tmp_path / "joined" / "toys" / "evidence" / "toy_redness").glob("*.parquet"))
    assert len(shards) == 4  # what was measured is not measured again
    evaluate(pristine_pipeline, str(suite), settings("joined"))
    assert len(blocks_drawn(tmp_path / "joined")) == 4
    assert frozen(tmp_path / "joined") == frozen(tmp_path / "whole")


def test_three_processes_that_share_a_directory_make_the_run_of_one(
    pristine_pipeline: Path, suite: Path, settings: Make, tmp_path: Path
) -> None:
    """As a launcher starts them: equal commands, told apart by RANK alone."""
    alone, count = evaluate(pristine_pipeline, str(suite), settings("whole")), 3

    def one_of_them(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        torch.set_num_threads(1)
        assert evaluate(pristine_pipeline, str(suite), settings("shared")).tasks == alone.tasks

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_of_them, args=(rank,)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0] * count
    assert sorted(blocks_drawn(tmp_path / "shared")) == [0, 1, 2, 3]  # each once
    assert frozen(tmp_path / "shared") == frozen(tmp_path / "whole")


def test_what_is_no_part_is_refused_and_nothing_is_lost(
    pristine_pipeline: Path, suite: Path, settings: Make, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    draw_part(pristine_pipeline, suite, settings("first", shard=(0, 2)))
    guided = Overrides(guidance=3.0)
    draw_part(pristine_pipeline, suite, settings("second", shard=(1, 2), overrides=guided, name="tiny"))
    with pytest.raises(UserError, match=r"not a part of the run in .*guidance_scale = 3.0, there 1.0"):
        merge(tmp_path / "joined", [first, second])
    with pytest.raises(UserError, match="not a run directory"):
        merge(tmp_path / "joined", [first, tmp_path])
    assert not (tmp_path / "joined").exists()
    picture = next((first / "toys" / "images").rglob("*.png"))
    content = picture.read_bytes()
    picture.write_bytes(content[:-9])
    with pytest.raises(UserError, match="is not what its journal says"):
        merge(tmp_path / "joined", [first])
    picture.write_bytes(content)
    assert merge(tmp_path / "joined", [first]) == (2, 4)
    lines = [json.loads(line) for line in (first / "journal.jsonl").read_text().splitlines()]
    lines[0]["pictures"] = "0" * 64
    (first / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="has other pictures than"):
        merge(tmp_path / "joined", [first])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "half", "1", "-1/2"])
def test_bad_shards_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match="must be K/N"):
        Settings(shard=_shard(text))
    assert _shard("2/3") == (1, 3)
