from pathlib import Path

import pytest
import torch

from benchmarks.rows import merge_rows, read_rows, write_rows
from benchmarks.store import Item
from metrics.base import Prompt, Rows, UserError

ITEMS = [Item(Prompt(text=name, id=name), seed) for name in ("a", "b") for seed in range(2)]
IDENTITY = {"metric": "m", "version": "1", "weights_digest": ""}


def some_rows(count: int = 4) -> Rows:
    torch.manual_seed(0)
    reasons = ["", "ünïcode", "two\nlines", "x"][:count]
    return {
        "score": torch.randn(count),
        "embedding": torch.randn(count, 3),
        "reason": reasons,
        "n": torch.arange(count),
    }


def assert_equal(found: Rows, wanted: Rows) -> None:
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        if isinstance(column, list):
            assert found[name] == column
        else:
            assert torch.equal(torch.as_tensor(found[name]), column)
            assert torch.as_tensor(found[name]).dtype == column.dtype


def test_rows_come_back_as_they_were_in_any_order(tmp_path: Path) -> None:
    write_rows(tmp_path / "m.parquet", ITEMS, some_rows(), IDENTITY)
    assert_equal(read_rows(tmp_path / "m.parquet", ITEMS, IDENTITY), some_rows())
    order = [2, 0]
    chosen = read_rows(tmp_path / "m.parquet", [ITEMS[n] for n in order], IDENTITY)
    assert torch.equal(torch.as_tensor(chosen["embedding"]), torch.as_tensor(some_rows()["embedding"])[order])


def test_merged_shards_are_the_rows_of_all(tmp_path: Path) -> None:
    rows, shards = some_rows(), []
    for start in (0, 2):
        part = {name: column[start : start + 2] for name, column in rows.items()}
        shards.append(tmp_path / f"{start}.parquet")
        write_rows(shards[-1], ITEMS[start : start + 2], part, IDENTITY)
    merge_rows(tmp_path / "merged.parquet", shards, IDENTITY)
    assert_equal(read_rows(tmp_path / "merged.parquet", ITEMS, IDENTITY), rows)
    write_rows(tmp_path / "whole.parquet", ITEMS, rows, IDENTITY)
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_rows_of_other_weights_or_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    write_rows(path, ITEMS, some_rows(), IDENTITY)
    for key in ("version", "weights_digest"):
        other = {**IDENTITY, key: "2"}
        with pytest.raises(UserError, match=f"was measured with {key}"):
            read_rows(path, ITEMS, other)
        with pytest.raises(UserError, match=f"was measured with {key}"):
            merge_rows(tmp_path / "merged.parquet", [path], other)


def test_missing_rows_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(UserError, match="missing or damaged"):
        read_rows(path, ITEMS, IDENTITY)
    write_rows(path, ITEMS[:3], some_rows(3), IDENTITY)
    with pytest.raises(UserError, match="has no row of b/1"):
        read_rows(path, ITEMS, IDENTITY)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="missing or damaged"):
        read_rows(path, ITEMS, IDENTITY)
