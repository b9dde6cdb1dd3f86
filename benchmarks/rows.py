"""Evidence on disk: the rows a metric wrote, as Parquet, with the metric's identity in the file's metadata.

Columns: prompt_id, seed, and the metric's own: numbers [N], vectors [N, D] as lists, or text. The bytes
are a function of the rows. Axes: N images, D size of a vector.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.config import UserError
from benchmarks.store import Item, write_whole

if TYPE_CHECKING:
    from metrics.base import Rows

KEYS = ("prompt_id", "seed")
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
    import torch

    table = _read(path, identity)
    places = {key: row for row, key in enumerate(zip(*(table[name].to_pylist() for name in KEYS), strict=True))}
    wanted = [places.get((item.prompt.id, item.seed)) for item in items]
    if None in wanted:
        first = items[wanted.index(None)]
        raise UserError(f"{path}: has no row of {first.prompt.id}/{first.seed}; delete the file to measure again")
    chosen = table.drop_columns(list(KEYS)).take(pa.array(wanted, pa.int64()))
    rows: Rows = {}
    for name in chosen.column_names:
        column = chosen[name].combine_chunks()
        if pa.types.is_string(column.type):
            rows[name] = column.to_pylist()
        elif pa.types.is_list(column.type):
            rows[name] = torch.from_numpy(
                column.flatten().to_numpy(zero_copy_only=False).reshape(len(items), -1).copy()
            )
        else:
            rows[name] = torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    return rows


def merge_rows(path: Path, shards: Sequence[Path], identity: Identity) -> None:
    """Join the rows of all blocks, in the order of the blocks. Raises UserError as `read_rows` does."""
    tables = [_read(shard, identity) for shard in shards]
    _write(path, pa.concat_tables(tables), identity)


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
    # Columns alone: a table that was read carries field numbers, which would move the bytes.
    table = pa.table({name: table[name].combine_chunks() for name in table.column_names})
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_statistics=False, store_schema=False
    ) as file:
        file.write_table(table)
        file.add_key_value_metadata(identity)
    write_whole(path, buffer.getvalue())


def _read(path: Path, identity: Identity) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete it to measure again") from error
    stated = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for key, value in identity.items():
        if stated.get(key) != value:
            raise UserError(
                f"{path}: was measured with {key} = {stated.get(key)!r}, now it is {value!r}; delete the file to "
                "measure again, or pass another --out"
            )
    return table
