"""Evidence on disk: the rows a metric wrote, as Parquet, with the metric's identity in the file's metadata.

Columns: prompt_id, seed, and the metric's own: numbers [N], vectors [N, D] as lists, or text. The bytes
are a function of the rows. Axes: N images, D size of a vector.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.config import UserError
from benchmarks.store import Item, write_whole

if TYPE_CHECKING:
    from metrics.base import Rows

KEYS = ("prompt_id", "seed")
PART = 4096  # rows that are read at a time for a statistic of a whole set
WHOLE_BYTES = 2**26  # of shards that are merged in memory; more than that is written shard by shard
WRITE: dict[str, Any] = {"compression": "zstd", "write_statistics": False, "store_schema": False}
Identity = dict[str, str]  # metric, version, weights_digest ("" = nothing learned): all that decides a picture's row


def write_rows(path: Path, items: Sequence[Item], rows: "Rows", identity: Identity) -> None:
    """Write one row per item, with the metric's identity."""
    columns: dict[str, Any] = {
        "prompt_id": pa.array([item.prompt.id for item in items], pa.string()),
        "seed": pa.array([item.seed for item in items], pa.int64()),
    }
    for name, column in rows.items():
        columns[name] = _as_arrow(column)
    _write(path, pa.table(columns), identity)


def read_rows(path: Path, items: Sequence[Item], identity: Identity) -> "Rows":
    """Return the rows of items, in their order.

    Raises UserError where the file is damaged, lacks an item, or was written by another version or other weights."""
    table = _read(path, identity)
    places = {key: row for row, key in enumerate(_keys(table))}
    wanted = [places.get((item.prompt.id, item.seed)) for item in items]
    if None in wanted:
        first = items[wanted.index(None)]
        raise UserError(f"{path}: has no row of {first.prompt.id}/{first.seed}; delete the file to measure again")
    return _as_rows(table.take(pa.array(wanted, pa.int64())))


def read_parts(path: Path, items: Sequence[Item], identity: Identity, part: int = PART) -> Iterator["Rows"]:
    """Yield the rows of items in parts, in the order of the file: never more than `part` rows are held.

    Raises UserError as `read_rows` does, and for an item that has two rows."""
    wanted = {(item.prompt.id, item.seed) for item in items}
    total = len(wanted)
    try:
        with pq.ParquetFile(path) as file:
            _check_identity(path, file.schema_arrow.metadata, identity)
            for batch in file.iter_batches(batch_size=part):
                table = pa.Table.from_batches([batch])
                keys = _keys(table)
                mine = [key in wanted for key in keys]
                wanted.difference_update(keys)
                if any(mine):
                    total -= sum(mine)
                    yield _as_rows(table.filter(pa.array(mine)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete it to measure again") from error
    if wanted or total:
        prompt, seed = min(wanted, default=("a row", "twice"))
        raise UserError(f"{path}: has no row of {prompt}/{seed}, or some twice; delete the file to measure again")


def merge_rows(path: Path, shards: Sequence[Path], identity: Identity) -> None:
    """Join the rows of all blocks, in the order of the blocks. Raises UserError as `read_rows` does."""
    if all(shard.is_file() for shard in shards) and sum(shard.stat().st_size for shard in shards) > WHOLE_BYTES:
        _merge_large(path, shards, identity)
        return
    tables = [_read(shard, identity) for shard in shards]
    _write(path, pa.concat_tables(tables), identity)


def _merge_large(path: Path, shards: Sequence[Path], identity: Identity) -> None:
    """Join many rows, holding no more than WHOLE_BYTES of shards; its caller holds the lock of the file."""
    partial = path.with_name(f".{path.name}.merge.tmp")
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        held: list[pa.Table] = []
        size = 0
        for index, shard in enumerate(shards):
            held.append(_read(shard, identity))
            size += shard.stat().st_size
            if size < WHOLE_BYTES and index + 1 < len(shards):
                continue
            table = _bare(pa.concat_tables(held))
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, table.schema, **WRITE))
            writer.write_table(table)
            held, size = [], 0
        assert writer is not None  # there are shards, or nothing would be larger than WHOLE_BYTES
        writer.add_key_value_metadata(identity)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(*(table[name].to_pylist() for name in KEYS), strict=True))


def _as_rows(table: pa.Table) -> "Rows":
    """Return the metric's own columns."""
    import torch

    rows: Rows = {}
    for name in table.drop_columns(list(KEYS)).column_names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type):
            rows[name] = column.to_pylist()
        elif pa.types.is_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            rows[name] = torch.from_numpy(flat.reshape(table.num_rows, -1).copy())
        else:
            rows[name] = torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    return rows


def _as_arrow(column: Any) -> pa.Array:
    if isinstance(column, list):
        return pa.array(column, pa.string())
    array = column.detach().cpu().numpy()
    if array.ndim == 1:
        return pa.array(array)
    flat = array.reshape(len(array), -1)
    offsets = pa.array(range(0, flat.size + 1, flat.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat.ravel()))


def _write(path: Path, table: pa.Table, identity: Identity) -> None:
    table = _bare(table)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, **WRITE) as file:
        file.write_table(table)
        file.add_key_value_metadata(identity)
    write_whole(path, buffer.getvalue())


def _bare(table: pa.Table) -> pa.Table:
    """Return the columns alone: a table that was read carries field numbers, which would move the bytes."""
    return pa.table({name: table[name].combine_chunks() for name in table.column_names})


def _read(path: Path, identity: Identity) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete it to measure again") from error
    _check_identity(path, table.schema.metadata, identity)
    return table


def _check_identity(path: Path, metadata: Any, identity: Identity) -> None:
    stated = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
    for key, value in identity.items():
        if stated.get(key) != value:
            raise UserError(
                f"{path}: was measured with {key} = {stated.get(key)!r}, now it is {value!r}; delete the file to "
                "measure again, or pass another --out"
            )
