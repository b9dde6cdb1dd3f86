"""Would the tests notice a wrong equation? Every mutation of trainers.toml is tried on a copy of the sources.

    python -m tests.mutation.trainers [--only PATTERN]

A mutation changes one place: a sign, a factor, a stop-gradient, a normaliser, a schedule. It is killed where one of
the test files that it names fails, and that same test passes without it; otherwise it has survived. Prints a Markdown
table; exit code 1 where one survives, 2 where the table fits the sources no longer. What is known is kept in
build/mutation/trainers.json, under a digest of mutation, source and tests: started again, only the rest is run.

Each run is a fork of one process that has imported all that the mutated package does not reach, so it costs little
more than the tests that it takes to fail.
"""

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks.cli import parse
from benchmarks.config import UserError, build, config, parse_toml
from benchmarks.screen import guarded

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("trainers.toml")
KNOWN = ROOT / "build" / "mutation" / "trainers.json"
LAYERS = ("metrics", "leaderboards", "benchmarks", "trainers", "tests")  # none imports one to its right
SHARED = (
    "tests/trainers/calls.py",
    "tests/trainers/closed_form.py",
    "tests/trainers/conftest.py",
    "tests/trainers/forked.py",
    "tests/trainers/tiny_run.py",
)  # what most test files stand on
LIMIT = 900.0  # seconds of a run; a mutation that makes the tests hang is noticed
SURVIVED = "SURVIVED"


@config
class Mutation:
    """One change of the sources."""

    name: str
    file: str  # from the repository's root
    old: str  # occurs exactly once in the file
    new: str
    breaks: str  # the equation or claim
    tests: tuple[str, ...]  # files that must notice, below tests/

    def apply(self, text: str) -> str:
        """Return the file's text with the change. Raises UserError where it has no place, or more than one."""
        count = text.count(self.old)
        if count != 1:
            raise UserError(f"{TABLE.name}: {self.name}: {self.old!r} is {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)


@config
class Table:
    """The file."""

    mutations: tuple[Mutation, ...]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m tests.mutation.trainers`."""

    only: str = "*"  # names to try, with * and ?


def read_table(path: Path = TABLE) -> tuple[Mutation, ...]:
    """Return the mutations. Raises UserError where the file makes no sense or names one twice."""
    mutations = build(Table, parse_toml(path), str(path)).mutations
    names = [mutation.name for mutation in mutations]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: more than one mutation is named {sorted(twice)[0]!r}")
    return mutations


class Copy:
    """A copy of the sources in which mutations are tried."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder = folder
        for part in [*LAYERS, "pyproject.toml"]:
            if (root / part).is_dir():
                shutil.copytree(root / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / part).exists():
                shutil.copy(root / part, folder / part)

    def verdict(self, mutation: Mutation) -> str:
        """Return the test that notices the mutation, or SURVIVED.

        Raises UserError where the mutated sources cannot be imported."""
        path = self.folder / mutation.file
        text = path.read_text(encoding="utf-8")
        layer = LAYERS.index(Path(mutation.file).parts[0])
        try:
            _write(path, mutation.apply(text))
            code, failed = self._run([f"tests/{file}" for file in mutation.tests], layer, "-x")
        finally:
            _write(path, text)
        if code == 0:
            return SURVIVED
        if code is not None and not failed:
            raise UserError(f"{mutation.name}: pytest ended with exit code {code} before any test")
        return failed[0] if failed else f"no end within {LIMIT:.0f} s"

    def failing(self, tests: Sequence[str]) -> list[str]:
        """Return those of these tests that fail without any mutation. Raises UserError where they cannot be run."""
        if not tests:
            return []
        code, failed = self._run(sorted(set(tests)), LAYERS.index("tests"))
        if code not in (0, 1):
            raise UserError(f"without any mutation pytest ended with exit code {code}")
        return failed

    def _run(self, selection: list[str], layer: int, *options: str) -> tuple[int | None, list[str]]:
        """Return pytest's exit code (None: no end) and the tests that failed; `layer` and above are imported anew."""
        log = self.folder / "pytest.log"
        arguments = (self.folder, LAYERS[layer:], [*selection, *options], log)
        process = multiprocessing.get_context("fork").Process(target=_test, args=arguments)
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None, []
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line.split(" ", 1)[1].split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return process.exitcode, [test for test in failed if "::" in test]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    # Bytecode is told by time in seconds and size: a new sign within the same second would go unseen.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _test(folder: Path, anew: Sequence[str], arguments: list[str], log: Path) -> NoReturn:
    """Run tests of the copy in this process, which is a fork, and end it with pytest's exit code."""
    sys.stdout = sys.stderr = file = log.open("w", encoding="utf-8")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in anew]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(place for place in sys.path if place not in ("", str(ROOT)))]
    os.chdir(folder)
    code = pytest.main([*arguments, "-rfE", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"])
    sys.stdout.flush()
    os._exit(code)


def digest(mutation: Mutation, root: Path = ROOT) -> str:
    """Return the digest of all that a verdict is known by."""
    found = hashlib.sha256(repr(mutation).encode())
    for name in (mutation.file, *(f"tests/{file}" for file in mutation.tests), *SHARED):
        found.update(b"\x00" + (root / name).read_bytes())
    return found.hexdigest()[:16]


def preload() -> None:
    """Import what the tests import; forks drop what a mutation reaches and keep the rest."""
    for module in ("trainers.base", "trainers.backbones.base"):
        importlib.import_module(module).available()
    for module in ("trainers.loop", "hypothesis"):  # pytest's plugin would import the latter at the end of each run
        importlib.import_module(module)
    gc.freeze()  # pytest collects garbage at its end: over the heap of torch that takes longer than most tests


@dataclass
class Known:
    """What earlier runs found, by the mutations' digests."""

    verdicts: dict[str, str] = field(default_factory=dict)
    proven: list[str] = field(default_factory=list)  # whose killing test was seen to pass without the mutation

    @classmethod
    def read(cls) -> "Known":
        """Return what is on disk."""
        return cls(**json.loads(KNOWN.read_text(encoding="utf-8"))) if KNOWN.is_file() else cls()

    def write(self) -> None:
        """Keep it."""
        KNOWN.parent.mkdir(parents=True, exist_ok=True)
        KNOWN.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def try_out(mutations: Mapping[str, Mutation], known: Known) -> None:
    """Find the verdicts that are not known yet; the mutations are named by their digests.

    Raises UserError where a test that killed one fails without it too."""
    preload()
    with tempfile.TemporaryDirectory() as place:
        copy = Copy(Path(place))
        for key, mutation in mutations.items():
            if key not in known.verdicts:
                known.verdicts[key] = copy.verdict(mutation)
                known.write()
                print(f"{mutation.name}: {known.verdicts[key]}", file=sys.stderr, flush=True)
        killed = {key: known.verdicts[key] for key in mutations.keys() - known.proven}
        failing = copy.failing([verdict for verdict in killed.values() if "::" in verdict])
    known.proven += [key for key, verdict in killed.items() if verdict not in failing]
    known.verdicts = {key: verdict for key, verdict in known.verdicts.items() if verdict not in failing}
    known.write()
    if failing:
        raise UserError(f"fails without any mutation: {', '.join(failing)}; mend that first")


def main(arguments: Arguments) -> int:
    """Try every mutation whose verdict is not known; print the table; return the exit code."""
    chosen = {digest(one): one for one in read_table() if fnmatch(one.name, arguments.only)}
    for mutation in chosen.values():
        mutation.apply((ROOT / mutation.file).read_text(encoding="utf-8"))
    known = Known.read()
    if chosen.keys() - known.proven:
        try_out(chosen, known)
    print("| Mutation | File | What it breaks | Noticed by |\n|---|---|---|---|")
    for key, mutation in chosen.items():
        breaks = mutation.breaks.replace("|", "\\|")
        print(f"| {mutation.name} | `{mutation.file}` | {breaks} | {known.verdicts[key]} |")
    survivors = [mutation.name for key, mutation in chosen.items() if known.verdicts[key] == SURVIVED]
    print(f"\n{len(chosen)} mutations, {len(survivors)} survived{': ' if survivors else ''}{', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m tests.mutation.trainers", description=__doc__))))
