"""Prompt sets: read from JSON Lines or plain text, checked line by line, and identified by a digest.

    {"id": "position-017", "prompt": "a circle left of a square", "tag": "position", "split": "unseen", ...}

Only `prompt` is needed. `tag` or `category` groups prompts in results; an absent `id` is the line's number in five
digits, as GenEval numbers its folders; whatever else the line holds is kept as metadata for the metrics. In plain
text (.txt) a line is a prompt, and a line that stands again is the same prompt: lists for one image a line repeat
their prompts, which here is the task's number of images per prompt. A prompt file is untrusted: ids become names of
folders, so they are restricted to what every file system stores as it is.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metrics.base import Prompt, UserError, nearest

BUILT_IN: Mapping[str, Path] = {"micro": Path(__file__).parent / "micro" / "prompts.jsonl"}
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MAX_FILE_BYTES = 2**28
MAX_PROMPT_CHARACTERS = 10_000
_OWN_FIELDS = ("id", "split", "category")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file, with distinct ids."""

    name: str
    prompts: tuple[Prompt, ...]

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over all prompts, ids and metadata."""
        return hashlib.sha256(self.jsonl().encode()).hexdigest()

    def jsonl(self) -> str:
        """Return the canonical text, which `read_prompts` reads back to an equal set."""
        return "".join(f"{_line(prompt)}\n" for prompt in self.prompts)

    def spread(self, limit: int | None) -> "PromptSet":
        """Return `limit` prompts spread evenly over the set, so that a reduced run meets every category."""
        total = len(self.prompts)
        if limit is None or limit >= total:
            return self
        return PromptSet(self.name, tuple(self.prompts[k * total // limit] for k in range(limit)))


def read_prompts(source: str | Path) -> PromptSet:
    """Return a built-in prompt set by name, or that of a file.

    Raises UserError for an unknown name (naming the nearest one) and for a bad line (naming file and line)."""
    path = BUILT_IN.get(str(source), Path(source))
    reader = READERS.get(path.suffix.lower())
    if not path.is_file():
        if path.parent == Path() and not path.suffix:
            raise UserError(f"unknown prompt set {str(source)!r}; {nearest(str(source), BUILT_IN)}; or pass a file")
        raise UserError(f"{path}: no such prompt file")
    if reader is None:
        raise UserError(f"{path}: prompt files end in {', '.join(READERS)}, not in {path.suffix!r}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB; split the prompt set")
    name = str(source) if str(source) in BUILT_IN else path.stem
    prompts = reader(path)
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return PromptSet(name, prompts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers from 1. Raises UserError where a file is not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _read_text(path: Path) -> tuple[Prompt, ...]:
    texts = dict.fromkeys(line.strip() for _, line in _lines(path))
    records = ({"prompt": text} for text in texts)
    return tuple(as_prompt(record, str(path), f"{number:05d}") for number, record in enumerate(records))


def _read_jsonl(path: Path) -> tuple[Prompt, ...]:
    prompts: list[Prompt] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON ({error})") from error
        prompt = as_prompt(record, where, default_id=f"{len(prompts):05d}")
        # Some file systems ignore case: "A" and "a" would share a folder.
        if (earlier := line_of.setdefault(prompt.id.lower(), number)) != number:
            raise UserError(f"{where}: id {prompt.id!r} is taken by line {earlier}; give each prompt its own id")
        prompts.append(prompt)
    return tuple(prompts)


READERS: dict[str, Callable[[Path], tuple[Prompt, ...]]] = {".jsonl": _read_jsonl, ".txt": _read_text}


def as_prompt(record: Any, where: str, default_id: str) -> Prompt:
    """Return one record as a Prompt. Raises UserError, opened by `where`, for wrong fields."""
    if not isinstance(record, dict):
        raise UserError(f'{where}: expected an object such as {{"id": "a-1", "prompt": "a red circle"}}')
    for name in ("id", "prompt", "tag", "category", "split"):
        if name in record and not isinstance(record[name], str):
            raise UserError(f"{where}: {name!r} must be text, not {record[name]!r}")
    text, identity = record.get("prompt", ""), record.get("id", default_id)
    if not text.strip():
        raise UserError(f"{where}: 'prompt' is missing or empty")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"{where}: the prompt has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read"
        )
    if not SAFE_ID.fullmatch(identity) or identity.endswith("."):
        raise UserError(f"{where}: id {identity!r} cannot name a folder; use letters, digits, '_', '-' and '.'")
    metadata = {key: value for key, value in record.items() if key not in _OWN_FIELDS}
    category = record["category"] if "category" in record else record.get("tag", "")
    return Prompt(text=text, id=identity, category=category, split=record.get("split", ""), metadata=metadata)


def _line(prompt: Prompt) -> str:
    own = {"id": prompt.id, "split": prompt.split, "category": prompt.category}
    return json.dumps({**prompt.metadata, **own}, sort_keys=True, ensure_ascii=False)
