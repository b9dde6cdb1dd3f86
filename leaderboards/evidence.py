"""The evidence table: one value per (task, metric, prompt, seed), and the proof that a result follows from it.

Bytes are a function of the rows: rows are sorted, writer options fixed. `check` recomputes what a result states; the
values must agree to the last bit, since both come from `leaderboards.statistics`.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from leaderboards.schema import CategoryValue, MetricResult, Result, ResultError, Task
from leaderboards.statistics import Breakdown, Estimate, Scores, breakdown

TEXT_COLUMNS = ("task", "metric", "prompt_id", "category", "split")
COLUMNS = pa.schema([*((name, pa.string()) for name in TEXT_COLUMNS), ("seed", pa.int64()), ("value", pa.float32())])
MAX_ROWS = 10_000_000
MAX_BYTES = 2**29  # uncompressed
ORDER = ("task", "metric", "prompt_id", "seed")


def pack(table: pa.Table) -> bytes:
    """Return the Parquet bytes of an evidence table, the same for the same rows in any order.

    Raises ResultError for wrong columns, a value that is not finite, a (task, metric, prompt, seed) given twice."""
    if set(table.column_names) != set(COLUMNS.names):
        raise ResultError(f"evidence has columns {table.column_names}; expected {COLUMNS.names}")
    try:
        table = table.select(COLUMNS.names).cast(COLUMNS)
    except pa.ArrowInvalid as error:
        raise ResultError(f"evidence has a column of a wrong type: {error}") from error
    table = table.sort_by([(name, "ascending") for name in ORDER]).combine_chunks()
    _check_rows(table)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=9,
        write_statistics=False,
        store_schema=False,
        row_group_size=MAX_ROWS,
    )
    return buffer.getvalue()


def read(path: Path, digest: str, rows: int) -> pa.Table:
    """Read an evidence file a result names by digest and number of rows; text columns stay dictionaries.

    Raises ResultError for a file that is missing, changed, malformed, or would unpack to an absurd size."""
    if path.is_symlink() or not path.is_file():
        raise ResultError("evidence file is missing: copy it beside the result")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ResultError(f"evidence file has digest {found[:12]}…, the result names {digest[:12]}…: it was changed")
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if not file.schema_arrow.equals(COLUMNS):
            raise ResultError(f"evidence has columns {file.schema_arrow.names} or types other than {COLUMNS.names}")
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        if file.metadata.num_rows > MAX_ROWS or sum(group.total_byte_size for group in groups) > MAX_BYTES:
            raise ResultError(f"evidence is larger than {MAX_ROWS:,} rows or {MAX_BYTES // 2**20} MiB")
        # As dictionaries, a text repeated ten million times takes its bytes once.
        table = pq.ParquetFile(io.BytesIO(content), read_dictionary=list(TEXT_COLUMNS)).read()
        table.validate(full=True)  # indices within their dictionary, texts in UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ResultError(f"evidence file is not valid Parquet: {error}") from error
    if table.num_rows != rows:
        raise ResultError(f"evidence has {table.num_rows} rows, the result states {rows}")
    _check_rows(table)
    return table


def scores(table: pa.Table, task: str, metric: str) -> Scores:
    """Return the rows of one metric on one task; none where it left no evidence."""
    chosen = table.filter((ds.field("task") == task) & (ds.field("metric") == metric))
    column = {name: chosen[name].cast(pa.string()).to_pylist() for name in ("prompt_id", "category", "split")}
    return Scores(
        values_N=chosen["value"].to_numpy(),
        prompt_ids=column["prompt_id"],
        seeds=chosen["seed"].to_pylist(),
        categories=column["category"],
        splits=column["split"],
    )


def check(result: Result, table: pa.Table, *, intervals: bool = True) -> None:
    """Recompute a result's values from its evidence. `intervals=False` spares the bootstrap (a hundredfold faster).

    Raises ResultError naming task, metric and the first number that differs."""
    stated = {(task.name, name) for task in result.tasks for name in task.metrics}
    pairs = pa.table({"task": table["task"], "metric": table["metric"]}).group_by(["task", "metric"]).aggregate([])
    for row in pairs.to_pylist():
        if (row["task"], row["metric"]) not in stated:
            raise ResultError(f"evidence has rows of {row['task']}/{row['metric']}, which the result does not state")
    for task, name, metric in stated_metrics(result):
        try:
            _check_metric(metric, task, scores(table, task.name, name), result.status == "ranked", intervals)
        except ResultError as error:
            raise ResultError(f"{task.name}/{name}: {error}") from error


def stated_metrics(result: Result) -> Iterator[tuple[Task, str, MetricResult]]:
    """Yield (task, metric id, metric) of every value that evidence stands behind."""
    for task in result.tasks:
        for name, metric in task.metrics.items():
            if metric.status == "ok" and metric.aggregate != "set":
                yield task, name, metric


def as_category_value(estimate: Estimate) -> CategoryValue:
    """Return an estimate in the shape that a result file holds."""
    return CategoryValue(**vars(estimate))


def _check_metric(metric: MetricResult, task: Task, rows: Scores, ranked: bool, intervals: bool) -> None:
    if metric.aggregate == "set":
        return
    found = breakdown(rows, metric.aggregate, replicates=9_999 if intervals else 0)
    for where, told, computed in _numbers(metric, found, intervals):
        if told != computed:
            raise ResultError(f"{where} is stated as {told} but the evidence gives {computed}")
    if ranked and metric.n_images != task.n_prompts * task.images_per_prompt:
        raise ResultError(
            f"{metric.n_images} images of {task.n_prompts} × {task.images_per_prompt}: incomplete, "
            'so its status must be "partial"'
        )


def _numbers(
    metric: MetricResult, found: Breakdown, intervals: bool
) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield (where, stated, recomputed) of every number of a metric."""
    fields = ("value", "n_prompts", "n_images", *(("low", "high") if intervals else ()))
    parts: list[tuple[str, MetricResult | CategoryValue, Estimate]] = [("", metric, found.total)]
    for kind in ("categories", "splits"):
        stated, computed = getattr(metric, kind), getattr(found, kind)
        if stated.keys() != computed.keys():
            raise ResultError(f"{kind} are stated as {sorted(stated)} but the evidence has {sorted(computed)}")
        parts += [(f"{kind}.{name}.", stated[name], computed[name]) for name in stated]
    for where, told, computed in parts:
        for name in fields:
            yield where + name, getattr(told, name), getattr(computed, name)


def _check_rows(table: pa.Table) -> None:
    if any(table[name].null_count for name in table.column_names):
        raise ResultError("evidence has empty cells")
    values_N = table["value"].to_numpy()
    if not np.isfinite(values_N).all():
        row = table.slice(int(np.flatnonzero(~np.isfinite(values_N))[0]), 1).to_pylist()[0]
        raise ResultError(f"evidence has a value that is not finite: {row['metric']} of prompt {row['prompt_id']!r}")
    keys = pa.table({name: table[name].cast(COLUMNS.field(name).type) for name in ORDER})
    if keys.group_by(list(ORDER)).aggregate([]).num_rows != table.num_rows:
        raise ResultError("evidence gives a value twice for one (task, metric, prompt, seed)")
