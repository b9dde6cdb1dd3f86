"""Files of prompts, read record by record: JSON (Lines), plain text, CSV, Parquet, or one file of a hub data set.

    prompts.jsonl, prompts.json#caption        a record a line, or a list of records
    prompts.txt                                a prompt a line
    table.csv#caption, table.parquet#caption   a record a row; the prompt stands in the column after "#"
    hf:org/name@revision/data/part-0.parquet#caption   a file of a data set on the Hugging Face hub (and its cache)

Without "#", tables need a column "prompt". Every file is untrusted: its size is limited, and nothing of it is run.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.base import UserError

MAX_FILE_BYTES = 2**28
Record = tuple[str, Any]  # file and line, for errors; what stands there
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<path>[^#]+)")


@dataclass(frozen=True)
class Source:
    """A file of prompts, and the column of a table in which they stand ("" = "prompt")."""

    path: Path
    column: str = ""


def is_hub_source(source: str) -> bool:
    """Whether this names a file of a data set on the hub."""
    return source.startswith("hf:")


def find_source(source: str | Path) -> Source:
    """Return the file that a source names, fetched where it is the hub's.

    Raises: UserError where it does not exist, is too large or of an unknown kind, or cannot be fetched."""
    text, _, column = str(source).partition("#")
    path = _from_hub(text) if is_hub_source(text) else Path(text)
    if not path.is_file():
        raise UserError(f"{path}: no such prompt file")
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: prompt files end in {', '.join(READERS)}, not in {path.suffix!r}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB; split the prompt set")
    return Source(path, column)


def read_records(source: Source) -> Iterator[Record]:
    """Yield a file's records with their places. Raises UserError naming file and line of what cannot be read."""
    return READERS[source.path.suffix.lower()](source)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers from 1."""
    lines = _text(path).split("\n")
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _read_text(source: Source) -> Iterator[Record]:
    for number, line in _lines(source.path):
        yield f"{source.path}:{number}", {"prompt": line.strip()}


def _read_jsonl(source: Source) -> Iterator[Record]:
    for number, line in _lines(source.path):
        where = f"{source.path}:{number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON ({error})") from error
        yield where, _with_prompt(record, source.column)


def _read_json(source: Source) -> Iterator[Record]:
    try:
        records = json.loads(_text(source.path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{source.path}: not JSON ({error})") from error
    if not isinstance(records, list):
        raise UserError(f"{source.path}: expected a list of records; a file of one record a line ends in .jsonl")
    for number, record in enumerate(records):
        yield f"{source.path}: record {number}", _with_prompt(record, source.column)


def _read_csv(source: Source) -> Iterator[Record]:
    rows = csv.DictReader(_text(source.path).splitlines(keepends=True), strict=True)
    _check_columns(source, rows.fieldnames or ())
    try:
        for row in rows:
            # a row longer than the header has its rest under None, a shorter one None for values
            record = {key: value for key, value in row.items() if key is not None and value not in (None, "")}
            yield f"{source.path}:{rows.line_num}", _with_prompt(record, source.column)
    except csv.Error as error:
        raise UserError(f"{source.path}:{rows.line_num + 1}: not a line of CSV ({error})") from error


def _read_parquet(source: Source) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
        _check_columns(source, file.schema_arrow.names)
        # Pictures lie in the same files: only columns of text and numbers are read.
        plain = [field.name for field in file.schema_arrow if not _is_nested_or_binary(field.type)]
        number = 0
        for batch in file.iter_batches(columns=plain):
            for row in batch.to_pylist():
                record = {key: value for key, value in row.items() if value is not None}
                yield f"{source.path}: row {number}", _with_prompt(record, source.column)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: no readable Parquet file ({error})") from error


def _is_nested_or_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _check_columns(source: Source, columns: Any) -> None:
    wanted = source.column or "prompt"
    if wanted not in columns:
        raise UserError(
            f"{source.path}: no column {wanted!r}; name one of {', '.join(columns) or '(none)'} as "
            f"{source.path.name}#COLUMN"
        )


def _with_prompt(record: Any, column: str) -> Any:
    """Return a record with the text of its column as "prompt"; what it held under that name stays as metadata."""
    if not column or not isinstance(record, dict) or column not in record:
        return record
    rest = {key: value for key, value in record.items() if key not in (column, "prompt")}
    return {**rest, "prompt": record[column]}


READERS: dict[str, Callable[[Source], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_text,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _from_hub(source: str) -> Path:
    match = _HUB.fullmatch(source)
    if not match:
        raise UserError(f"{source}: expected hf:org/name[@revision]/path/of/file.parquet[#column]")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, revision = match["repo"], match["revision"]
    try:
        return Path(hf_hub_download(repo, match["path"], repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{source}: not in the local hub cache; where there is a network, run: hf download --repo-type dataset "
            f"{repo} {match['path']}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{source}: the hub refused it ({str(error).strip().splitlines()[0]})") from error
