from pathlib import Path

import pytest
import torch

from benchmarks import rows
from benchmarks.rows import merge_rows, read_parts, read_rows, write_rows
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


def test_parts_are_the_rows_of_the_wanted_items_in_the_order_of_the_file(tmp_path: Path) -> None:
    items = [Item(Prompt(text=text, id=text), seed) for text in "abc" for seed in (0, 1)]
    values = torch.arange(12.0).reshape(6, 2)
    write_rows(tmp_path / "rows", items, {"feature": values}, {"metric": "toy"})
    wanted = [item for item in items if item.seed == 1]
    parts = list(read_parts(tmp_path / "rows", wanted[::-1], {"metric": "toy"}, part=2))
    assert [len(part["feature"]) for part in parts] == [1, 1, 1]
    assert torch.equal(torch.cat([part["feature"] for part in parts]), values[1::2])
    with pytest.raises(UserError, match="has no row of d/0"):
        list(read_parts(tmp_path / "rows", [Item(Prompt(text="d", id="d"), 0)], {"metric": "toy"}))
    with pytest.raises(UserError, match="was measured with metric = 'toy', now it is 'other'"):
        list(read_parts(tmp_path / "rows", wanted, {"metric": "other"}))
    write_rows(tmp_path / "twice", [*items, items[1]], {"feature": torch.zeros(7)}, {"metric": "toy"})
    with pytest.raises(UserError, match="some twice"):
        list(read_parts(tmp_path / "twice", wanted, {"metric": "toy"}))


def test_many_rows_are_merged_shard_by_shard_to_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(Prompt(text="a", id="a"), seed) for seed in range(6)]
    shards = []
    for start in (0, 2, 4):
        shards.append(tmp_path / f"shard{start}")
        feature = torch.arange(start, start + 2).float()[:, None].repeat(1, 3)
        write_rows(shards[-1], items[start : start + 2], {"feature": feature}, {"metric": "toy"})
    merge_rows(tmp_path / "small", shards, {"metric": "toy"})
    monkeypatch.setattr(rows, "WHOLE_BYTES", 1)
    merge_rows(tmp_path / "large", shards, {"metric": "toy"})
    merged = [read_rows(tmp_path / name, items, {"metric": "toy"})["feature"] for name in ("small", "large")]
    assert torch.equal(*merged)
    assert len(list(tmp_path.iterdir())) == 5  # nothing else is left
