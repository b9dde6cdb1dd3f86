"""Prompt sets by name: shipped with the project, or declared with source, licence and digest for users to get.

`prompt_sets/sets.toml` declares them; a user's folder with the others is named by `--prompts` or the environment
variable FEWSTEP_BENCH_PROMPTS.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from benchmarks.config import UserError, build, config, nearest, parse_toml
from benchmarks.prompts import BUILT_IN, PromptSet, read_prompts

FOLDER = Path(__file__).parent / "prompt_sets"
VARIABLE = "FEWSTEP_BENCH_PROMPTS"


class MissingPrompts(UserError):
    """A declared prompt set is not on this machine; the message says where to get it."""


@config
class DeclaredSet:
    """One entry of sets.toml."""

    file: str
    source: str
    licence: str
    sha256: str = ""  # "" where no exact list has been published
    shipped: bool = False


@cache
def declared_sets() -> Mapping[str, DeclaredSet]:
    """Return the declared prompt sets by name."""
    path = FOLDER / "sets.toml"
    return {name: build(DeclaredSet, table, f"{path} [{name}]") for name, table in parse_toml(path).items()}


def is_named(source: str) -> bool:
    """Whether this is the name of a prompt set rather than a file."""
    return source in BUILT_IN or source in declared_sets()


def read_set(source: str, folder: Path | None = None) -> PromptSet:
    """Return a prompt set by name, looking for declared ones in the user's folder, or that of a file.

    Raises: MissingPrompts where a declared set is not there; UserError for an unknown name, another file than the
    declared one, and a bad line."""
    if source not in declared_sets():
        if Path(source).suffix or source in BUILT_IN or len(Path(source).parts) != 1:
            return read_prompts(source)
        raise UserError(f"unknown prompt set {source!r}; {nearest(source, [*BUILT_IN, *declared_sets()])}")
    entry = declared_sets()[source]
    path = _folder(entry, folder, source) / entry.file
    if not path.is_file():
        raise MissingPrompts(f"{path}: no such file; {_mend(entry)}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if entry.sha256 and found != entry.sha256:
        raise UserError(f"{path}: sha256 is {found}, that of prompt set {source!r} is {entry.sha256}; {_mend(entry)}")
    return PromptSet(source, read_prompts(path).prompts)


def _folder(entry: DeclaredSet, folder: Path | None, name: str) -> Path:
    if entry.shipped:
        return FOLDER
    if folder is None and VARIABLE in os.environ:
        folder = Path(os.environ[VARIABLE])
    if folder is None:
        raise MissingPrompts(
            f"prompt set {name!r} is not shipped (licence: {entry.licence}); {_mend(entry)} in a folder of yours, "
            f"and pass --prompts FOLDER or set {VARIABLE}"
        )
    return folder


def _mend(entry: DeclaredSet) -> str:
    return f"save it as {entry.file} (source: {entry.source})"
