"""The prompt sets: python -m benchmarks.prompts list

    list               every set: prompts, split, licence, whether it is here
    describe NAME      its source, digest, licence, citation, repeats and categories; NAME may be a file of yours
    fetch NAME ...     download what is not shipped, held to its digest
    verify [NAME ...]  read every set that is here: digest, count, every line
    sample NAME -o FILE  take some prompts of a large set, the same ones everywhere (benchmarks/prompt_sample.py)

Exit codes: 0 done, 1 our mistake, 2 something for you to mend (one line).
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.dpg_questions import git_blob_id
from benchmarks.prompt_files import MAX_FILE_BYTES
from benchmarks.prompt_sample import sample
from benchmarks.prompts import BUILT_IN
from benchmarks.sets import (
    DeclaredSet,
    MissingPrompts,
    declared_sets,
    find_declared,
    find_file,
    find_questions,
    is_named,
    mend,
    other_digest,
    read_set,
    sets_folder,
)
from leaderboards.store import write_atomically

TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List, describe, fetch, verify and sample prompt sets."""

    action: Annotated[Literal["list", "describe", "fetch", "verify", "sample"], tyro.conf.Positional] = "list"
    """What to do"""
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompt sets by name; for describe and verify, files of yours too"""
    prompts: Path | None = None
    """Folder of sets that are not shipped; default: FEWSTEP_BENCH_PROMPTS, then the user's cache"""
    take: int = 1000
    """Of sample: how many prompts"""
    seed: int = 0
    """Of sample: of NumPy's default generator"""
    without: tuple[str, ...] = ()
    """Of sample: sets and files whose prompts are left out first, such as the list of a training"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Of sample: the text file to write"""


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    if arguments.action == "sample":
        print(_sample(arguments))
        return 0
    actions = {"list": list_sets, "describe": describe, "fetch": fetch, "verify": verify}
    if arguments.action in ("describe", "fetch") and not arguments.names:
        raise UserError(f"{arguments.action}: name a prompt set; python -m benchmarks.prompts list shows them")
    for line in actions[arguments.action](arguments.names, arguments.prompts):
        print(line)
    return 0


def _sample(arguments: Arguments) -> str:
    """Write a sample of one set; return a line about it. Raises UserError where it cannot be taken."""
    if len(arguments.names) != 1 or not arguments.out or arguments.out.suffix != ".txt":
        raise UserError("sample: name one prompt set, and a text file to write: sample NAME -o FILE.txt")
    left_out = [prompt for name in arguments.without for prompt in read_set(name, arguments.prompts).prompts]
    of = read_set(arguments.names[0], arguments.prompts).prompts
    content = "".join(f"{text}\n" for text in sample(of, left_out, arguments.take, arguments.seed)).encode()
    write_atomically(arguments.out, content)
    return f"{arguments.out}: {arguments.take:,} of {len(of):,} prompts, sha256 {hashlib.sha256(content).hexdigest()}"


def list_sets(names: Iterable[str], folder: Path | None) -> Iterator[str]:
    """Yield a line per set."""
    yield f"{'set':<26} {'prompts':>8}  {'split':<10}  {'here':<14}  licence"
    for name in BUILT_IN:
        yield f"{name:<26} {len(read_set(name).prompts):>8,}  {'evaluation':<10}  {'shipped':<14}  Apache-2.0"
    for name, entry in declared_sets().items():
        count = f"{entry.prompts:,}" if entry.prompts else "?"
        yield f"{name:<26} {count:>8}  {entry.split:<10}  {_place(name, entry, folder):<14}  {entry.licence}"


def _place(name: str, entry: DeclaredSet, folder: Path | None) -> str:
    absent = "no"
    try:
        find_file(name, entry, folder)
        if entry.questions:
            absent = "questions: no"
            find_questions(name, entry.questions, folder)
    except MissingPrompts:
        return absent
    except UserError:
        return "damaged"
    return "shipped" if entry.shipped and not entry.questions else "yes"


def describe(names: Iterable[str], folder: Path | None) -> Iterator[str]:
    """Yield what is known of sets. Raises UserError where one is unknown or damaged; not where it is absent."""
    for name in names:
        entry = declared_sets().get(name)
        yield name
        if entry:
            told = {"source": entry.source, "licence": entry.licence, "citation": entry.citation, "note": entry.note}
            digest = entry.sha256 or (f"not known, but its id in git: {entry.git_blob}" if entry.git_blob else "")
            told |= {"split": entry.split, "file": entry.file, "sha256 of the file": digest or "none published"}
            yield from (f"  {key}: {value}" for key, value in told.items() if value)
        try:
            found = read_set(name, folder)
        except MissingPrompts as error:
            yield f"  not here: {error}"
            continue
        yield f"  prompts: {len(found.prompts):,}; listed: {found.listed:,}, of which repeated: {found.repeats:,}"
        yield f"  digest (prompts, ids and metadata): {found.digest}"
        categories = Counter(prompt.category for prompt in found.prompts if prompt.category)
        if categories:
            yield "  categories: " + ", ".join(f"{key} {value}" for key, value in categories.items())


def fetch(names: Iterable[str], folder: Path | None) -> Iterator[str]:
    """Download sets, each file held to its digest; yield where they are.

    Raises: UserError where one cannot be had; those that came are kept."""
    target = sets_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        entry = find_declared(name)
        if not entry.shipped:
            yield _fetch_file(name, entry, target)
        if entry.questions:
            path = target / entry.questions.file
            if not (path.is_file() and git_blob_id(path.read_bytes()) == entry.questions.git_blob):
                content = download(entry.questions.url)
                if (found := git_blob_id(content)) != entry.questions.git_blob:
                    raise UserError(
                        f"{entry.questions.url}: served another file (git's id {found}, should be "
                        f"{entry.questions.git_blob}); nothing was written"
                    )
                write_atomically(path, content)
            yield f"{name}: {path}"
        elif entry.shipped:
            yield f"{name}: shipped, nothing to fetch"


def _fetch_file(name: str, entry: DeclaredSet, target: Path) -> str:
    path = target / entry.file
    if path.is_file() and not other_digest(entry, path.read_bytes()):
        return f"{name}: {path} (was here)"
    if not entry.url:
        raise UserError(
            f"prompt set {name!r} (licence: {entry.licence}) has no address to fetch from; {mend(name, entry)}"
        )
    content = download(entry.url)
    if other := other_digest(entry, content):
        kind, found, should = other
        raise UserError(f"{entry.url}: served another file ({kind} {found}, should be {should}); nothing was written")
    write_atomically(path, content)
    return f"{name}: {path} (licence: {entry.licence})"


def download(url: str) -> bytes:
    """Return what an address serves. Raises UserError where it cannot be reached or is too large."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UserError(f"{url}: not fetched, HF_HUB_OFFLINE is set; unset it, or save the file by hand")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            content = reply.read(MAX_FILE_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:  # HTTPError and URLError are OSErrors
        raise UserError(f"{url}: cannot be fetched ({error}); save the file by hand, or try again") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{url}: more than {MAX_FILE_BYTES // 2**20} MiB; nothing was written")
    return content


def verify(names: Iterable[str], folder: Path | None) -> Iterator[str]:
    """Read sets (default: all that are here) line by line; yield what was found.

    Raises: UserError at the end, with counts, where one is not what it should be."""
    wrong = []
    asked = tuple(names)
    for name in asked or (*BUILT_IN, *declared_sets()):
        if not is_named(name) and not Path(name.partition("#")[0]).is_file():
            find_declared(name)
        try:
            problem = _problem(name, folder)
        except MissingPrompts as error:
            if not asked:
                entry = declared_sets().get(name)
                yield f"{name}: {'questions not here' if entry and entry.shipped else 'not here'}"
                continue
            problem = str(error)
        except UserError as error:
            problem = str(error)
        wrong += [problem] if problem else []
        yield f"{name}: {problem or 'as declared'}"
    if wrong:
        raise UserError(f"{len(wrong)} prompt sets are not what they should be (first: {wrong[0]})")


def _problem(name: str, folder: Path | None) -> str:
    found, entry = read_set(name, folder), declared_sets().get(name)
    distinct = len({prompt.text for prompt in found.prompts})
    if entry and entry.prompts and distinct != entry.prompts:
        return f"{distinct} distinct prompts, should be {entry.prompts}"
    if entry and entry.listed and found.listed != entry.listed:
        return f"{found.listed} prompts listed, should be {entry.listed}"
    return ""


def cli() -> None:
    """Parse the command line, run, and exit."""
    from benchmarks.screen import guarded

    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.prompts", description=__doc__))))
