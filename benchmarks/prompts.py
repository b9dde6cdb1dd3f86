"""Prompt sets: read from files, checked line by line, and identified by a digest.

    {"id": "position-017", "prompt": "a circle left of a square", "tag": "position", "split": "unseen", ...}

Only `prompt` is needed. `tag` or `category` groups prompts in results; an absent `id` is the line's number in five
digits, as GenEval numbers its folders; whatever else the line holds is kept as metadata for the metrics. In plain
text (.txt) a line is a prompt, and a line that stands again is the same prompt: lists for one image a line repeat
their prompts, which here is the task's number of images per prompt. A prompt file is untrusted: ids become names of
folders, so they are restricted to what every file system stores as it is.

    python -m benchmarks.prompts list | describe NAME | fetch NAME | verify [NAME]
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.prompt_files import find_source, is_hub_source, read_records
from metrics.base import Prompt, UserError, nearest

BUILT_IN: Mapping[str, Path] = {"micro": Path(__file__).parent / "micro" / "prompts.jsonl"}
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MAX_PROMPT_CHARACTERS = 10_000
_OWN_FIELDS = ("id", "split", "category")


@dataclass(frozen=True)
class Fields:
    """Which fields of a file's records hold what, where they are named otherwise; "" = as the module says."""

    id: str = ""
    category: str = ""


PLAIN = Fields()


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file, with distinct ids."""

    name: str
    prompts: tuple[Prompt, ...]
    listed: int = 0  # prompts that the file lists, repeated lines counted; 0 = not read from a file

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over all prompts, ids and metadata."""
        return hashlib.sha256(self.jsonl().encode()).hexdigest()

    @property
    def repeats(self) -> int:
        """How many of the listed prompts are a text that stands before them."""
        return max(self.listed, len(self.prompts)) - len({prompt.text for prompt in self.prompts})

    def jsonl(self) -> str:
        """Return the canonical text, which `read_prompts` reads back to an equal set."""
        return "".join(f"{_line(prompt)}\n" for prompt in self.prompts)

    def spread(self, limit: int | None) -> "PromptSet":
        """Return `limit` prompts in the balance of categories that the whole set has, spread evenly over each.

        Largest remainders decide; of equal ones, the category that comes first."""
        total = len(self.prompts)
        if limit is None or limit >= total:
            return self
        places: dict[str, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            places.setdefault(prompt.category, []).append(index)
        shares = {name: divmod(len(of) * limit, total) for name, of in places.items()}
        left = limit - sum(share for share, _ in shares.values())
        extra = set(sorted(shares, key=lambda name: -shares[name][1])[:left])
        chosen = []
        for name, of in places.items():
            number = shares[name][0] + (name in extra)
            chosen += [of[k * len(of) // number] for k in range(number)]
        return PromptSet(self.name, tuple(self.prompts[index] for index in sorted(chosen)))


def read_prompts(source: str | Path, fields: Fields = PLAIN) -> PromptSet:
    """Return a built-in prompt set by name, or that of a file (`benchmarks.prompt_files`).

    Raises UserError for an unknown name (naming the nearest one) and for a bad line (naming file and line)."""
    built_in = BUILT_IN.get(str(source))
    plain = Path(str(source).partition("#")[0])
    if (
        built_in is None
        and not is_hub_source(str(source))
        and plain.parent == Path()
        and not plain.suffix
        and not plain.is_file()
    ):
        raise UserError(f"unknown prompt set {str(source)!r}; {nearest(str(source), BUILT_IN)}; or pass a file")
    file = find_source(built_in or source)
    repeatable = file.path.suffix.lower() == ".txt"
    prompts: list[Prompt] = []
    place_of: dict[str, str] = {}
    texts: set[str] = set()
    listed = 0
    for where, record in read_records(file):
        listed += 1
        prompt = as_prompt(_renamed(record, fields), where, default_id=f"{len(prompts):05d}")
        if repeatable and prompt.text in texts:
            continue
        texts.add(prompt.text)
        # Some file systems ignore case: "A" and "a" would share a folder.
        if (earlier := place_of.setdefault(prompt.id.lower(), where)) != where:
            line = earlier.rpartition(":")[2].strip()
            raise UserError(f"{where}: id {prompt.id!r} is taken by line {line}; give each prompt its own id")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{file.path}: holds no prompt")
    return PromptSet(str(source) if built_in else file.path.stem, tuple(prompts), listed)


def _renamed(record: Any, fields: Fields) -> Any:
    if not isinstance(record, dict):
        return record
    renamed = dict(record)
    if fields.id and fields.id in record:
        renamed["id"] = str(record[fields.id])
    if fields.category and fields.category in record:
        value = record[fields.category]
        renamed["category"] = value if isinstance(value, str) else f"{fields.category} {value}"
    return renamed


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


if __name__ == "__main__":
    from benchmarks.prompts_command import cli

    cli()
