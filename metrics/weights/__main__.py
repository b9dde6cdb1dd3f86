"""Published weights: python -m metrics.weights list | fetch | verify | where

An ID is that of weights ("hps-v2.1") or of a metric ("hps_v21": all weights behind it).
Exit codes: 0 fine, 2 something for you to mend (one line), 1 our mistake.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from tyro.extras import SubcommandApp

from metrics.base import UserError, available, nearest
from metrics.commands import deferred, guarded, parsed, print_table
from metrics.loaded import Scorer
from metrics.selfcheck import weights_of_own_checks
from metrics.weights import Entry, ManifestWeights, entries, find_entry, use_folder
from metrics.weights.entries import should_be
from metrics.weights.files import compute_digest
from metrics.weights.hub import fetch
from metrics.weights.places import find_folder, hub_digest

# Suites are plain data of another package, which is not imported here.
SUITES = Path(__file__).resolve().parents[2] / "benchmarks" / "suites"
Ids = Annotated[tuple[str, ...], tyro.conf.Positional]
app = SubcommandApp()


@app.command(name="list")
@deferred
def list_command(ids: Ids = (), suite: str = "", weights: Path | None = None) -> None:
    """List weights: what they are for, size, licence, and whether they are here.

    Args:
        ids: weights or metrics; default: all
        suite: those that a suite needs: its name, or a TOML file
        weights: folder to look in first, DIR/<id>/<file>
    """
    chosen = _choose(ids, suite, weights) or list(entries().values())
    wanted_by = _wanted_by()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("weights", "for", "size", "licence", "pinned", "state"):
        table.add_column(column, overflow="fold")
    for entry in chosen:
        folder = find_folder(entry)
        state = "here" if not ManifestWeights(entry).missing() else "incomplete" if folder else "missing"
        pinned = f"{' and '.join(entry.unknown)} not known" if entry.unknown else "yes"
        table.add_row(entry.id, ", ".join(wanted_by.get(entry.id, ())), entry.size, entry.licence, pinned, state)
    print_table(table)


@app.command(name="fetch")
@deferred
def fetch_command(ids: Ids = (), suite: str = "", weights: Path | None = None) -> None:
    """Download weights, resuming what was interrupted, and hold them to the manifest.

    Args:
        ids: weights or metrics; of a metric, also what its self-check reads
        suite: all that a suite needs: its name, or a TOML file
        weights: folder to fetch into, DIR/<id>/<file>; default: the local hub cache
    """
    if not ids and not suite:
        raise UserError("say what to fetch: ids of weights or metrics, or --suite NAME (see: metrics.weights list)")
    if weights:
        weights.mkdir(parents=True, exist_ok=True)
    chosen, failed = _choose(ids, suite, weights, for_checks=True), []
    if not chosen:
        print(f"{', '.join(ids) or suite}: no published weights needed")
    for entry in chosen:
        print(f"{entry.id}: {entry.title}, {entry.size}, licence: {entry.licence}", flush=True)
        try:
            for line in fetch(entry):
                print(f"  {line}", flush=True)
        except UserError as error:  # the others may still come
            failed.append(str(error))
    if failed:
        raise UserError("; ".join(failed))


@app.command(name="verify")
@deferred
def verify_command(ids: Ids = (), suite: str = "", weights: Path | None = None) -> int:
    """Read the files anew and compare size and sha256 with the manifest; exit code 2 where one differs.

    Args:
        ids: weights or metrics, which must be here; default: all that are here
        suite: all that a suite needs
        weights: folder to look in first, DIR/<id>/<file>
    """
    chosen = _choose(ids, suite, weights)
    wrong = False
    for entry in chosen or list(entries().values()):
        for good, line in _verify(entry):
            if good is not None or chosen:
                print(f"{entry.id}: {line}")
            wrong |= good is False or (good is None and bool(chosen))
    return 2 if wrong else 0


@app.command(name="where")
@deferred
def where_command(ids: Ids = (), suite: str = "", weights: Path | None = None) -> int:
    """Print the path of every file that is here; exit code 2 where one is missing.

    Args:
        ids: weights or metrics; default: all
        suite: all that a suite needs
        weights: folder to look in first, DIR/<id>/<file>
    """
    chosen = _choose(ids, suite, weights)
    for entry in chosen or list(entries().values()):
        folder = find_folder(entry)
        for file in entry.files:
            path = folder / file.name if folder else None
            print(f"{entry.id}\t{path if path and path.is_file() else 'missing; ' + entry.mend}")
    return 2 if any(ManifestWeights(entry).missing() for entry in chosen) else 0


def _verify(entry: Entry) -> Iterator[tuple[bool | None, str]]:
    """Yield (right, line) of every file; None: it is not here."""
    folder = find_folder(entry)
    for file in entry.files:
        path = folder / file.name if folder else None
        if not path or not path.is_file():
            yield None, f"{file.name} is missing; {entry.mend}"
            continue
        found, should = compute_digest(path), file.digits or hub_digest(path)
        if should and not found.startswith(should):
            size = path.stat().st_size
            told = f" ({size:,} bytes, should be {file.bytes:,})" if file.bytes not in (0, size) else ""
            yield False, f"{path}: sha256 is {found}, {should_be(should)}{told}; {entry.mend}"
        elif file.pinned:
            yield True, f"{path}: right"
        else:
            yield True, f"{path}: {path.stat().st_size:,} bytes, sha256 {found}; the manifest does not know it yet"


def _choose(ids: Sequence[str], suite: str, weights: Path | None, for_checks: bool = False) -> list[Entry]:
    """Return the entries that ids and a suite's metrics mean, each once; for_checks: those of self-checks, too."""
    if weights:
        use_folder(weights)
    metrics = available()
    chosen: dict[str, Entry] = {}
    for identity in (*ids, *(_metrics_of(suite) if suite else ())):
        if identity in entries():
            found: Iterable[Entry] = (find_entry(identity),)
        elif identity in metrics:
            found = _entries_behind(identity)
            if for_checks:
                found = [*found, *map(find_entry, sorted(weights_of_own_checks(identity)))]
        else:
            raise UserError(f"unknown weights or metric {identity!r}; {nearest(identity, (*entries(), *metrics))}")
        chosen.update((entry.id, entry) for entry in found)
    return list(chosen.values())


def _entries_behind(metric: str) -> list[Entry]:
    weights: Iterable[Any] = Scorer([metric]).weights(metric)
    return [one.entry for one in weights if isinstance(one, ManifestWeights)]


def _wanted_by() -> dict[str, list[str]]:
    """Return the metrics that need each set of weights."""
    wanted: dict[str, list[str]] = {}
    for metric in available():
        for entry in _entries_behind(metric):
            wanted.setdefault(entry.id, []).append(metric)
    return wanted


def _metrics_of(suite: str) -> list[str]:
    """Return the metrics of a suite and those it includes. Raises UserError where there is no such suite."""
    path = Path(suite) if suite.endswith(".toml") else SUITES / f"{suite}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = [file.stem for file in SUITES.glob("*.toml")]
        raise UserError(f"--suite {suite}: no such suite; {nearest(suite, known)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error
    own = [metric for task in table.get("tasks", ()) for metric in task.get("metrics", ())]
    return [*own, *(metric for name in table.get("include", ()) for metric in _metrics_of(name))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda: parsed(app.cli, arguments, prog="python -m metrics.weights", description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
