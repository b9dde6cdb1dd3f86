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
import pyarrow.parquet as pq

from leaderboards.schema import CategoryValue, MetricResult, Result, ResultError, Task
from leaderboards.statistics import Aggregate, Breakdown, Estimate, Layout, Scores, breakdown

TEXT_COLUMNS = ("task", "metric", "prompt_id", "category", "split")
COLUMNS = pa.schema([*((name, pa.string()) for name in TEXT_COLUMNS), ("seed", pa.int64()), ("value", pa.float32())])
MAX_ROWS = 10_000_000
MAX_BYTES = 2**29  # uncompressed
NO_ROWS = Scores(values_N=np.zeros(0, np.float32), prompt_ids=(), seeds=(), categories=())
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
    return split(table).get((task, metric), NO_ROWS)


def split(table: pa.Table) -> dict[tuple[str, str], Scores]:
    """Return the rows of every (task, metric), in one pass.

    Metrics of one task mostly have the same prompts and seeds: they then share these lists, which keeps a board of
    hundreds of models in memory and lets `statistics.align` see at once that nothing has to be matched."""
    if not table.num_rows:
        return {}
    columns = {name: _codes(table[name]) for name in TEXT_COLUMNS}
    values_N, seeds_N = table["value"].to_numpy(), table["seed"].to_numpy()
    (tasks, task_N), (metrics, metric_N) = columns["task"], columns["metric"]
    group_N = task_N.astype(np.int64) * len(metrics) + metric_N
    order_N = np.argsort(group_N, kind="stable")
    shared: dict[bytes, list] = {}

    def once(name: str, codes: np.ndarray, items: list | None) -> list:
        key = name.encode() + codes.tobytes()
        if key not in shared:
            shared[key] = codes.tolist() if items is None else [items[code] for code in codes.tolist()]
        return shared[key]

    found = {}
    for rows in np.split(order_N, np.flatnonzero(np.diff(group_N[order_N])) + 1):
        texts = {name: once(name, columns[name][1][rows], columns[name][0]) for name in TEXT_COLUMNS[2:]}
        found[tasks[task_N[rows[0]]], metrics[metric_N[rows[0]]]] = Scores(
            values_N=values_N[rows],
            prompt_ids=texts["prompt_id"],
            seeds=once("seed", seeds_N[rows], None),
            categories=texts["category"],
            splits=texts["split"],
        )
    return found


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts of a column and each row's place among them."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary.cast(pa.string()).to_pylist(), array.indices.to_numpy(zero_copy_only=False)


def check(result: Result, table: pa.Table, *, intervals: bool = True) -> None:
    """Recompute a result's values from its evidence. `intervals=False` spares the bootstrap (a hundredfold faster).

    Raises ResultError naming task, metric and the first number that differs."""
    stated = {(task.name, name) for task in result.tasks for name in task.metrics}
    pairs = pa.table({"task": table["task"], "metric": table["metric"]}).group_by(["task", "metric"]).aggregate([])
    for row in pairs.to_pylist():
        if (row["task"], row["metric"]) not in stated:
            raise ResultError(f"evidence has rows of {row['task']}/{row['metric']}, which the result does not state")
    rows, layouts = split(table), Layouts()
    for task, name, metric in stated_metrics(result):
        try:
            scores = rows.get((task.name, name), NO_ROWS)
            _check_metric(metric, task, scores, layouts, result.status == "ranked", intervals)
        except ResultError as error:
            raise ResultError(f"{task.name}/{name}: {error}") from error


def stated_metrics(result: Result) -> Iterator[tuple[Task, str, MetricResult]]:
    """Yield (task, metric id, metric) of every value that evidence stands behind."""
    for task in result.tasks:
        for name, metric in task.metrics.items():
            if metric.status == "ok" and metric.aggregate != "set":
                yield task, name, metric


def with_intervals(result: Result, table: pa.Table) -> Result:
    """Return the result with the intervals that the present method gives its evidence.

    Raises ResultError where a value does not follow from the evidence: that is no matter of method."""
    check(result, table, intervals=False)
    rows, layouts = split(table), Layouts()
    tasks = []
    for task in result.tasks:
        found = {
            name: _with_intervals(metric, rows[task.name, name], layouts) if (task.name, name) in rows else metric
            for name, metric in task.metrics.items()
        }
        tasks.append(task.model_copy(update={"metrics": found}))
    return result.model_copy(update={"tasks": tasks})


def _with_intervals(metric: MetricResult, rows: Scores, layouts: "Layouts") -> MetricResult:
    if metric.aggregate == "set":
        return metric
    found = breakdown(rows, metric.aggregate, layout=layouts.of(rows, metric.aggregate))
    categories = {name: as_category_value(part) for name, part in found.categories.items()}
    splits = {name: as_category_value(part) for name, part in found.splits.items()}
    update = {**vars(found.total), "categories": metric.categories | categories, "splits": splits}
    return metric.model_copy(update=update)


def as_category_value(estimate: Estimate) -> CategoryValue:
    """Return an estimate in the shape that a result file holds."""
    return CategoryValue(**vars(estimate))


class Layouts:
    """The layouts of one evidence table: metrics of the same images share one."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int, str], Layout] = {}

    def of(self, rows: Scores, aggregate: Aggregate) -> Layout:
        """Return the layout of rows that `split` made: it gives equal lists as the same list."""
        key = (id(rows.prompt_ids), id(rows.categories), id(rows.splits), aggregate)
        if key not in self._found:
            self._found[key] = Layout.of(rows, aggregate)
        return self._found[key]


def _check_metric(
    metric: MetricResult, task: Task, rows: Scores, layouts: Layouts, ranked: bool, intervals: bool
) -> None:
    if metric.aggregate == "set":
        return
    replicates = 9_999 if intervals else 0
    found = breakdown(rows, metric.aggregate, replicates=replicates, layout=layouts.of(rows, metric.aggregate))
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
        if kind == "categories":
            stated = {name: value for name, value in stated.items() if name in computed or not _of_questions(value)}
        if stated.keys() != computed.keys():
            raise ResultError(f"{kind} are stated as {sorted(stated)} but the evidence has {sorted(computed)}")
        parts += [(f"{kind}.{name}.", stated[name], computed[name]) for name in stated]
    for where, told, computed in parts:
        for name in fields:
            yield where + name, getattr(told, name), getattr(computed, name)


def _of_questions(value: CategoryValue) -> bool:
    """Tell whether a value can be of questions: evidence has rows of images, so that it has no interval."""
    return value.low is None and value.high is None


def _check_rows(table: pa.Table) -> None:
    if any(table[name].null_count for name in table.column_names):
        raise ResultError("evidence has empty cells")
    values_N = table["value"].to_numpy()
    if not np.isfinite(values_N).all():
        row = table.slice(int(np.flatnonzero(~np.isfinite(values_N))[0]), 1).to_pylist()[0]
        raise ResultError(f"evidence has a value that is not finite: {row['metric']} of prompt {row['prompt_id']!r}")
    if _has_twins(table):
        raise ResultError("evidence gives a value twice for one (task, metric, prompt, seed)")


def _has_twins(table: pa.Table) -> bool:
    """Whether a (task, metric, prompt, seed) stands twice."""
    key_N, span = np.zeros(table.num_rows, np.int64), 1
    for name in ORDER:
        if name == "seed":
            items, code_N = np.unique(table[name].to_numpy(), return_inverse=True)
        else:
            texts, code_N = _codes(table[name])
            items, place_N = np.unique(np.asarray(texts, str), return_inverse=True)  # a file's dictionary may repeat
            code_N = place_N[code_N]
        if span * len(items) >= 2**62:  # numbered anew, so that keys stay whole numbers of 64 bits
            distinct, key_N = np.unique(key_N, return_inverse=True)
            span = len(distinct)
        key_N, span = key_N * len(items) + code_N, span * len(items)
    return len(np.unique(key_N)) < table.num_rows
