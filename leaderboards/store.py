"""A board: a folder of results that anyone may add to, so nothing in it is believed before it is checked.

    <board>/<suite>/<model>.json               the result (leaderboards.schema)
    <board>/<suite>/<model>.evidence.parquet   what its values are computed from (leaderboards.evidence)
    <board>/<suite>/<model>.gallery/           sample pictures: index.json, 000.png, 001.png, ...

A fault in one result is one line and hides that result alone.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from leaderboards import evidence
from leaderboards.schema import (
    MAX_FILE_BYTES,
    Evidence,
    Name,
    Result,
    ResultError,
    dump_result,
    first_fault,
    read_result,
)
from leaderboards.seen import Seen
from leaderboards.statistics import Scores

GALLERY_PIXELS = 256  # the longer side of a sample picture on the board
MAX_SAMPLES = 512
MAX_PICTURE_BYTES = 2**20
ABANDONED = 3600  # seconds: what is being written is renamed within a few
SAFE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,119}")


class Caption(BaseModel):
    """What stands under a sample picture, and what metrics saw in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: Name
    prompt_id: str
    prompt: str
    category: str = ""
    split: str = ""
    seed: int
    seen: dict[str, Seen] = {}  # by metric id; what is empty is left out


class Sample(Caption):
    """One picture of a gallery. `png` holds the bytes of a PNG file."""

    png: bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A checked result of a board, with the way to its evidence and pictures."""

    path: Path
    result: Result
    table: pa.Table | None = None  # evidence; None for reported rows
    samples: tuple[Sample, ...] = ()
    _cache: dict[tuple[str, str], Scores] = field(default_factory=dict, repr=False)

    def scores(self, task: str, metric: str) -> Scores:
        """Return the evidence of one metric on one task. Raises ResultError where there is none."""
        if not self._cache and self.table is not None:
            self._cache.update(evidence.split(self.table))
        if (task, metric) not in self._cache:
            raise ResultError(f"{self.result.model.name}: no evidence of {metric} on {task}")
        return self._cache[task, metric]


@dataclass(frozen=True)
class Board:
    """Every valid result below a folder, and one line for each that is not."""

    entries: tuple[Entry, ...]
    errors: tuple[str, ...]

    @cached_property
    def suites(self) -> dict[str, list[Entry]]:
        """Entries by suite, in the order of names."""
        names = sorted({entry.result.suite for entry in self.entries})
        return {name: [entry for entry in self.entries if entry.result.suite == name] for name in names}


def file_stem(name: str) -> str:
    """Return the file name (without suffix) of a model or suite: the name itself where every system can store it,
    else what is left of it and a hash."""
    if SAFE_STEM.fullmatch(name) and not name.endswith("."):
        return name
    kept = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
    return f"{kept or 'model'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def publish(result: Result, evidence_table: pa.Table, board: Path, gallery: Sequence[Sample] = ()) -> Path:
    """Check a result against its evidence, put both and the pictures on a board, and return the result's path.

    `result.evidence` and `result.gallery` are filled in here. An older result of the same model and suite is
    replaced; a reader sees the old one, the new one, or (for a moment) a digest that does not match: never a mixture.
    Raises ResultError where the values do not follow from the evidence; then nothing was written."""
    folder, stem = board / file_stem(result.suite), file_stem(result.model.name)
    content = evidence.pack(evidence_table)
    digest = hashlib.sha256(content).hexdigest()
    stated = Evidence(file=f"{stem}.evidence.parquet", digest=digest, rows=evidence_table.num_rows)
    result = result.model_copy(update={"evidence": stated, "gallery": f"{stem}.gallery" if gallery else ""})
    evidence.check(result, evidence_table)
    pictures = [_shrink(sample) for sample in gallery]
    folder.mkdir(parents=True, exist_ok=True)
    _write_gallery(pictures, folder / f"{stem}.gallery")
    write_atomically(folder / stated.file, content)
    write_atomically(folder / f"{stem}.json", dump_result(result).encode())
    return folder / f"{stem}.json"


def read_board(board: Path, *, intervals: bool = False) -> Board:
    """Read and check every result below a folder; `intervals` recomputes the bootstrap too (slow, for `validate`).

    Faults become lines of `Board.errors`. Raises ResultError where the folder itself is missing."""
    if not board.is_dir():
        raise ResultError(f"{board}: no such folder of results")
    entries, errors = [], []
    for path in sorted(board.glob("*/*.json")):
        try:
            entries.append(read_entry(path, intervals=intervals))
        except ResultError as error:
            errors.append(str(error).removeprefix(f"{board}/"))  # a page does not depend on where its board lies
    return Board(tuple(entries), tuple(errors))


def read_entry(path: Path, *, intervals: bool = True) -> Entry:
    """Read one result with evidence and pictures, and check all of it. Raises ResultError in one line."""
    result = read_result(path)
    try:
        return _checked_entry(path, result, intervals)
    except ResultError as error:
        raise ResultError(f"{path}: {error}") from error


def restate(path: Path) -> bool:
    """Write a result anew with the intervals that the present method gives its evidence; return whether any differs.

    Raises ResultError where anything else in the result is at fault."""
    entry = read_entry(path, intervals=False)
    if entry.table is None:
        return False
    text = dump_result(evidence.with_intervals(entry.result, entry.table))
    if text == dump_result(entry.result):
        return False
    write_atomically(path, text.encode())
    return True


def find_entry(name: str, board: Path) -> Entry:
    """Return the result that a path, "suite/model" or a model's name means. Raises ResultError."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return read_entry(path, intervals=False)
    if not board.is_dir():
        raise ResultError(f"{board}: no such folder of results")
    suite, slash, model = name.rpartition("/")
    # file_stem leaves neither separators nor wildcards: no name leads out of the board.
    found = sorted(board.glob(f"{file_stem(suite) if slash else '*'}/{file_stem(model)}.json"))
    if not found:
        known = sorted(f"{path.parent.name}/{path.stem}" for path in board.glob("*/*.json"))
        raise ResultError(f"{name}: no such result; known: {', '.join(known) or 'none'}")
    if len(found) > 1:
        choices = ", ".join(f"{path.parent.name}/{path.stem}" for path in found)
        raise ResultError(f"{name}: in several suites; say which: {choices}")
    return read_entry(found[0], intervals=False)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader finds the old content or the new, and a crash leaves no half.

    durable=False: what can be built again is not waited for until it is on the disk."""
    if durable:
        _sweep(path.parent, f".{glob.escape(path.name[:40])}.*.tmp")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sweep(folder: Path, pattern: str) -> None:
    """Remove temporary files and folders that no process can be at work on any more: a kill left them behind."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checked_entry(path: Path, result: Result, intervals: bool) -> Entry:
    stem = file_stem(result.model.name)
    if path.stem != stem or path.parent.name != file_stem(result.suite):
        raise ResultError(f"belongs at {file_stem(result.suite)}/{stem}.json: file and model would differ in name")
    if len({task.name for task in result.tasks}) != len(result.tasks):
        raise ResultError("two tasks have one name")
    samples = _read_gallery(path.parent, result.gallery, stem)
    if result.kind == "reported":
        if not result.source or result.evidence:
            raise ResultError("a reported result needs a source and has no evidence")
        return Entry(path=path, result=result, samples=samples)
    if result.evidence is None:
        if any(True for _ in evidence.stated_metrics(result)):
            raise ResultError("values without evidence: a measured result names its evidence file")
        return Entry(path=path, result=result, samples=samples)
    if result.evidence.file != f"{stem}.evidence.parquet":
        raise ResultError(f"evidence.file must be {stem}.evidence.parquet, not {result.evidence.file!r}")
    table = evidence.read(path.parent / result.evidence.file, result.evidence.digest, result.evidence.rows)
    evidence.check(result, table, intervals=intervals)
    return Entry(path=path, result=result, table=table, samples=samples)


def _write_gallery(samples: Sequence[Sample], folder: Path) -> None:
    """Write the pictures to a new folder, then swap it for the old one."""
    for pattern in (".old-*.tmp", ".new-*.tmp"):
        _sweep(folder.parent, pattern)
    if folder.is_dir():
        retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-", suffix=".tmp"))
        folder.replace(retired / "gallery")
        shutil.rmtree(retired)
    if not samples:
        return
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-", suffix=".tmp"))
    fresh.chmod(0o755)
    # In the order of 000.png, 001.png, ...; of those in which nothing was seen, as ever.
    captions = [sample.model_dump(exclude={"png"} if sample.seen else {"png", "seen"}) for sample in samples]
    text = json.dumps(captions, indent=1, sort_keys=True, ensure_ascii=False)
    (fresh / "index.json").write_text(text + "\n", encoding="utf-8")
    for number, sample in enumerate(samples):
        (fresh / f"{number:03d}.png").write_bytes(sample.png)
    fresh.replace(folder)


def _read_gallery(parent: Path, name: str, stem: str) -> tuple[Sample, ...]:
    if not name:
        return ()
    if name != f"{stem}.gallery":
        raise ResultError(f"gallery must be {stem}.gallery, not {name!r}")
    index = parent / name / "index.json"
    try:
        if index.parent.is_symlink() or index.stat().st_size > MAX_FILE_BYTES:
            raise ResultError("gallery/index.json is a link or larger than 16 MiB")
        captions = TypeAdapter(list[Caption]).validate_json(index.read_bytes())
        if len(captions) > MAX_SAMPLES:
            raise ResultError(f"gallery has more than {MAX_SAMPLES} pictures")
        pictures = [_read_picture(index.parent / f"{number:03d}.png") for number in range(len(captions))]
    except OSError as error:
        raise ResultError(f"gallery: {error.strerror or error}") from error
    except ValidationError as error:
        raise ResultError(f"gallery/index.json: {first_fault(error, 'captions')}") from error
    return tuple(Sample(**dict(caption), png=png) for caption, png in zip(captions, pictures, strict=True))


def _read_picture(path: Path) -> bytes:
    """Return the bytes of a small PNG file, after decoding it once."""
    if path.is_symlink() or path.stat().st_size > MAX_PICTURE_BYTES:
        raise ResultError(f"gallery/{path.name}: a link, or larger than {MAX_PICTURE_BYTES // 2**20} MiB")
    content = path.read_bytes()
    _decode(content, f"gallery/{path.name}", GALLERY_PIXELS)
    return content


def _shrink(sample: Sample) -> Sample:
    """Return the sample as a PNG of board size."""
    picture = _decode(sample.png, f"picture of prompt {sample.prompt_id!r}", 16_384).convert("RGB")
    picture.thumbnail((GALLERY_PIXELS, GALLERY_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return sample.model_copy(update={"png": buffer.getvalue()})


def _decode(content: bytes, where: str, limit: int) -> Image.Image:
    """Decode a PNG of at most limit × limit pixels. Raises ResultError for anything else."""
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if max(picture.size) > limit:  # before the pixels are unpacked
            raise ResultError(f"{where}: {picture.size[0]} × {picture.size[1]} pixels, at most {limit} wanted")
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(f"{where}: not a whole PNG picture ({error})") from error
    return picture
