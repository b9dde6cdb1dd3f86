"""The run directory: everything a result is computed from, written so that it survives a kill at any moment.

    runs/<name>/ run.json  journal.jsonl  result.json  <model>.evidence.parquet  locks/
                 <set>/prompts.jsonl  <set>/images/<prompt_id>/<seed>.png  <set>/evidence/<metric-id>.parquet

An image set is prompts × seeds under one protocol, cut into blocks of consecutive (prompt, seed). A block is drawn
whole, in one batch, by one process, or not at all: so equal block sizes give equal bytes, whatever the order, the
number of processes or the interruptions. `run.json` holds all that decides the bytes; a start that differs in any of
it is refused. Every file appears by fsync and rename; a block counts once the journal has its line.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.config import UserError, as_table
from benchmarks.prompts import PromptSet
from benchmarks.protocol import Protocol
from leaderboards.store import write_atomically
from metrics.base import Prompt

FORMAT = 1
HEADER = "run.json"
JOURNAL = "journal.jsonl"
RESULT = "result.json"
DEFAULT_BLOCK_SIZE = 16
WRITERS = 4  # threads that encode or write the pictures of one block


@dataclass(frozen=True)
class Item:
    """One picture of an image set: `seed` is the number of the image among those of its prompt, from 0."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What is drawn: `images_per_prompt` pictures of each prompt under a protocol (None: made elsewhere)."""

    name: str
    prompts: PromptSet
    images_per_prompt: int
    protocol: Protocol | None

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """All (prompt, seed), prompt by prompt."""
        seeds = range(self.images_per_prompt)
        return tuple(Item(prompt, seed) for prompt in self.prompts.prompts for seed in seeds)

    def header(self) -> dict[str, Any]:
        """Return what decides the bytes of the set besides the weights."""
        return {
            "prompt_set": self.prompts.name,
            "prompts_digest": self.prompts.digest,
            "n_prompts": len(self.prompts.prompts),
            "images_per_prompt": self.images_per_prompt,
            "protocol": as_table(self.protocol) if self.protocol else None,
        }


@dataclass(frozen=True)
class Run:
    """An open run directory."""

    path: Path
    block_size: int
    journal: "Journal"
    shard_of: tuple[int, int] = (0, 1)  # (k, n): only every n-th block from the k-th on is this directory's to do

    @property
    def sharded(self) -> bool:
        """Whether other directories hold blocks of the same run; `python -m benchmarks.merge` joins them."""
        return self.shard_of[1] > 1

    def own_blocks(self, image_set: ImageSet) -> range:
        """Return the numbers of the blocks that are this directory's to do."""
        first, step = self.shard_of
        return range(first, self.count_blocks(image_set), step)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        model: Mapping[str, str],
        suite: str,
        sets: Sequence[ImageSet],
        block_size: int | None,
        default_block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> "Run":
        """Create a run directory, or enter one that was made with the same settings; new image sets are added.

        block_size None: that of the run, or `default_block_size` for a new one.

        Raises UserError naming the first setting that differs, and what it was."""
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, not a run directory; pass another --out")
        if path.is_dir() and not (path / HEADER).exists() and set(_visible(path)) - {"locks"}:
            raise UserError(f"{path}: holds other things than a run; pass another --out")
        (path / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(path / "locks" / "run.lock"):
            earlier = read_header(path) if (path / HEADER).exists() else None
            header: dict[str, Any] = {
                "format": FORMAT,
                "model": dict(model),
                "suite": suite,
                "block_size": block_size or (earlier or {}).get("block_size", default_block_size),
                "sets": {**(earlier or {}).get("sets", {}), **{s.name: s.header() for s in sets}},
            }
            if earlier is not None:
                _refuse_changes(path, earlier, header)
            if header != earlier:
                text = json.dumps(header, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                write_whole(path / HEADER, text.encode())
            for image_set in sets:
                write_whole(path / image_set.name / "prompts.jsonl", image_set.prompts.jsonl().encode())
        return cls(path, header["block_size"], Journal(path / JOURNAL))

    def count_blocks(self, image_set: ImageSet) -> int:
        """Return the number of an image set's blocks; the last one may be shorter than the others."""
        return -(-len(image_set.items) // self.block_size)

    def block(self, image_set: ImageSet, number: int) -> tuple[Item, ...]:
        """Return the items of one block."""
        return image_set.items[number * self.block_size : (number + 1) * self.block_size]

    def image(self, image_set: str, item: Item) -> Path:
        """Return the path of a picture."""
        return self.path / image_set / "images" / item.prompt.id / f"{item.seed}.png"

    def evidence(self, image_set: str, metric: str) -> Path:
        """Return the path of a metric's rows on an image set."""
        return self.path / image_set / "evidence" / f"{metric}.parquet"

    def shard(self, image_set: str, metric: str, block: int) -> Path:
        """Return the path of a metric's rows on one block, until all blocks are merged."""
        return self.path / image_set / "evidence" / metric / f"{block:06d}.parquet"

    def lock(self, name: str) -> FileLock:
        """Return a lock between processes; the system frees it when its holder dies, however it dies."""
        return FileLock(self.path / "locks" / f"{name}.lock", thread_local=False)

    def claim(self, stage: str, blocks: Sequence[int], done: Callable[[int], bool]) -> Iterator[tuple[int, FileLock]]:
        """Yield (block, lock) for every one of `blocks` that is not done; the caller releases the lock.

        Blocks that another process holds come last: by then they are done, or their holder died."""
        pending = [block for block in blocks if not done(block)]
        for timeout in (0, -1):
            held_by_others = []
            for block in pending:
                lock = self.lock(f"{stage}-{block:06d}")
                try:
                    lock.acquire(timeout=timeout)
                except Timeout:
                    held_by_others.append(block)
                    continue
                if done(block):
                    lock.release()
                else:
                    yield block, lock
            pending = held_by_others

    def drawn(self, image_set: ImageSet, block: int) -> dict[str, Any] | None:
        """Return the journal's entry of a block, None where the block (or a picture of it) is missing."""
        entry = self.journal.drawn().get((image_set.name, block))
        if entry and all(self.image(image_set.name, item).is_file() for item in self.block(image_set, block)):
            return entry
        return None

    def keep_pictures(self, image_set: ImageSet, block: int, contents: list[bytes], **facts: Any) -> None:
        """Write one block's pictures (bytes of PNG files), then its line in the journal."""
        paths = [self.image(image_set.name, item) for item in self.block(image_set, block)]
        with ThreadPoolExecutor(WRITERS) as writers:  # the file system joins the fsyncs of several threads
            list(writers.map(write_whole, paths, contents))
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
        self.journal.append(set=image_set.name, block=block, pictures=digest, **facts)


@dataclass
class Journal:
    """An append-only log of the blocks drawn, one JSON object a line. A line that a kill cut short never happened."""

    path: Path
    _drawn: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _offset: int = 0

    def append(self, **event: Any) -> None:
        """Add a line, safely among several processes."""
        line = json.dumps({**event, "time": round(time.time(), 3)}, sort_keys=True) + "\n"
        with FileLock(self.path.parent / "locks" / "journal.lock"), self.path.open("a+b") as file:
            if file.tell() and not self._ends_a_line():
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def drawn(self) -> Mapping[tuple[str, int], dict[str, Any]]:
        """Return the latest entry of every (image set, block), reading only the lines that are new."""
        if self.path.exists() and self.path.stat().st_size > self._offset:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if entry := _parsed(line):
                        self._drawn[entry["set"], entry["block"]] = entry
        return self._drawn

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that a reader finds whole or not at all; its writer holds the lock of whatever it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for litter in path.parent.glob(f".{path.name[:40]}.*.tmp"):  # of a former holder of that lock, who was killed
        litter.unlink()
    write_atomically(path, content)


def read_header(path: Path) -> dict[str, Any]:
    """Return the contents of `run.json`. Raises UserError where it is none of ours."""
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
        if header["format"] != FORMAT or not isinstance(header["sets"], dict):
            raise KeyError("format")
        if not (isinstance(header["block_size"], int) and header["block_size"] > 0):
            raise KeyError("block_size")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not a run directory (no {HEADER})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / HEADER}: not a run of this version; pass another --out") from error
    return header


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first dotted key in which two headers differ, with both values; None where they are equal."""
    before, after = _flat(one), _flat(other)
    differing = (key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key))
    return next(((key, before.get(key), after.get(key)) for key in differing), None)


def _visible(path: Path) -> list[str]:
    """Return the names in a folder, without the temporary files that a kill may have left."""
    return [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # cut short by a kill
    known = isinstance(entry, dict) and isinstance(entry.get("set"), str) and isinstance(entry.get("block"), int)
    return entry if known else None


def _refuse_changes(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    added = now["sets"].keys() - earlier["sets"].keys()
    if found := difference(earlier, {**now, "sets": {k: v for k, v in now["sets"].items() if k not in added}}):
        key, was, given = found
        raise UserError(
            f"{path}: was made with {key} = {was!r}, now it is {given!r}; nothing was changed: pass "
            "another --out, or the former settings to continue"
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
