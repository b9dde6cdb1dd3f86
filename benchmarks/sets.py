"""Prompt sets by name: shipped with the project, or declared with source, licence and digest for users to get.

`prompt_sets/sets.toml` declares them. Those that are not shipped are looked for in the folder that `--prompts` or the
environment variable FEWSTEP_BENCH_PROMPTS names, else in the user's cache, where `python -m benchmarks.prompts fetch`
puts them.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

from benchmarks.config import UserError, build, config, nearest, parse_toml
from benchmarks.prompt_files import is_hub_source
from benchmarks.prompts import BUILT_IN, Fields, PromptSet, read_prompts
from metrics.base import NotHere

FOLDER = Path(__file__).parent / "prompt_sets"
VARIABLE = "FEWSTEP_BENCH_PROMPTS"


class MissingPrompts(NotHere):
    """A declared prompt set is not on this machine; the message says where to get it."""


@config
class Companion:
    """A second file that a set's prompts are joined with: DPG-Bench's questions."""

    file: str
    url: str
    git_blob: str  # the id by which git names the content


@config
class DeclaredSet:
    """One entry of sets.toml."""

    file: str
    source: str
    licence: str
    sha256: str = ""  # "" where no exact list has been published, or only its id in git is known
    git_blob: str = ""  # that id
    shipped: bool = False
    split: Literal["evaluation", "training"] = "evaluation"
    prompts: int = 0  # distinct ones; 0 = not known
    listed: int = 0  # lines of the file; 0 = as many as prompts
    citation: str = ""
    note: str = ""
    url: str = ""  # from which `fetch` brings the file; "" = for people to get
    id_field: str = ""  # fields of its records, where they are named otherwise
    category_field: str = ""
    questions: Companion | None = None


@cache
def declared_sets() -> Mapping[str, DeclaredSet]:
    """Return the declared prompt sets by name."""
    path = FOLDER / "sets.toml"
    return {name: build(DeclaredSet, table, f"{path} [{name}]") for name, table in parse_toml(path).items()}


def find_declared(name: str) -> DeclaredSet:
    """Return a declared set. Raises UserError naming the nearest one where it is unknown."""
    if name not in declared_sets():
        raise UserError(f"unknown prompt set {name!r}; {nearest(name, [*BUILT_IN, *declared_sets()])}")
    return declared_sets()[name]


def is_named(source: str) -> bool:
    """Whether this is the name of a prompt set, or a file on the hub, rather than a file here."""
    return source in BUILT_IN or source in declared_sets() or is_hub_source(source)


def read_set(source: str, folder: Path | None = None) -> PromptSet:
    """Return a prompt set by name, looking for declared ones in the user's folder, or that of a file.

    Raises: MissingPrompts where a declared set is not there; UserError for an unknown name, another file than the
    declared one, and a bad line."""
    if source not in declared_sets():
        path = Path(source.partition("#")[0])
        if is_hub_source(source) or path.suffix or source in BUILT_IN or len(path.parts) != 1:
            return read_prompts(source)
        raise UserError(f"unknown prompt set {source!r}; {nearest(source, [*BUILT_IN, *declared_sets()])}")
    entry = declared_sets()[source]
    path = find_file(source, entry, folder)
    found = read_prompts(path, Fields(id=entry.id_field, category=entry.category_field))
    if entry.questions:
        found = _with_questions(source, found, entry.questions, folder)
    return replace(found, name=source)


def find_file(name: str, entry: DeclaredSet, folder: Path | None = None) -> Path:
    """Return the file of a declared set. Raises MissingPrompts where it is absent, UserError where it is another."""
    path = (FOLDER if entry.shipped else sets_folder(folder)) / entry.file
    if not path.is_file():
        raise MissingPrompts(
            f"{path}: no such file; prompt set {name!r} is not shipped (licence: {entry.licence}); "
            f"{mend(name, entry)}"
        )
    if other := other_digest(entry, path.read_bytes()):
        kind, found, should = other
        raise UserError(f"{path}: {kind} is {found}, that of prompt set {name!r} is {should}; {mend(name, entry)}")
    return path


def other_digest(entry: DeclaredSet, content: bytes) -> tuple[str, str, str] | None:
    """Return which digest of a file differs from the declared one: its kind, the one found, the one declared."""
    from benchmarks.dpg_questions import git_blob_id

    if entry.sha256 and (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
        return "sha256", found, entry.sha256
    if entry.git_blob and (found := git_blob_id(content)) != entry.git_blob:
        return "git's id", found, entry.git_blob
    return None


def find_questions(name: str, companion: Companion, folder: Path | None = None) -> Path:
    """Return a set's second file. Raises MissingPrompts where it is not there, UserError where it is another one."""
    from benchmarks.dpg_questions import git_blob_id

    path = sets_folder(folder) / companion.file
    command = f"run: python -m benchmarks.prompts fetch {name}, or save {companion.url} there"
    if not path.is_file():
        raise MissingPrompts(f"{path}: no such file; the questions of prompt set {name!r} are not shipped; {command}")
    if (found := git_blob_id(path.read_bytes())) != companion.git_blob:
        raise UserError(f"{path}: git's id of it is {found}, should be {companion.git_blob}; {command}")
    return path


def sets_folder(folder: Path | None = None) -> Path:
    """Return the folder of sets that are not shipped: the one given, the variable's, or the user's cache."""
    from metrics.weights.files import user_cache

    named = os.environ.get(VARIABLE, "")
    return folder or (Path(named) if named else user_cache("prompts"))


def mend(name: str, entry: DeclaredSet) -> str:
    """Return how to get a set's file, as the end of an error message."""
    by_hand = f"save it as {entry.file} (source: {entry.source}) in a folder of yours and pass --prompts FOLDER"
    return f"run: python -m benchmarks.prompts fetch {name}, or {by_hand}" if entry.url else by_hand


def _with_questions(name: str, prompts: PromptSet, companion: Companion, folder: Path | None) -> PromptSet:
    from benchmarks.dpg_questions import join_questions, read_questions

    return join_questions(prompts, read_questions(find_questions(name, companion, folder)))
