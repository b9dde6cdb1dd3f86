"""A training run's state on disk: written whole or not at all, by one start at a time."""

import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.config import UserError, as_table, build
from trainers.config import RunConfig, resolved_settings

STATE, SETTINGS, LOG, LOCK, STUDENT = "checkpoint.pt", "run.json", "log.jsonl", "run.lock", "student"
RESOLVED = "resolved"  # in SETTINGS: each stage's settings in force; the rest tells those that were asked for
MENDS = "use another --out, or start over with --no-resume"
# What a damaged checkpoint makes its readers raise, by the place of the damage
DAMAGE = (
    RuntimeError, ValueError, OverflowError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


class Occupied(UserError):
    """Another process is at work in a run's folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other starts out of a run's folder; the system frees it when this process dies, however it dies.

    Raises Occupied where another one is at work, UserError where the folder cannot be made or written to."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Occupied(f"{folder}: another process is training here; wait for it, or use another --out") from error
    except OSError as error:
        raise UserError(f"{folder}: no folder to write to ({error.strerror}); --out names the run's") from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a process is at work in a run's folder at this moment."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the run's checkpoint by `state`; a kill at any moment leaves the old one or the new one."""
    temporary = folder / f"{STATE}.tmp"
    with temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / STATE)


def load_state(folder: Path, parts: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """Return the run's checkpoint, None where there is none.

    Raises UserError where it cannot be read or lacks one of its parts, and where there is a student without it: the
    run is over, or its checkpoint was removed, and going on would be to start over."""
    path = folder / STATE
    if not path.is_file():
        if (folder / STUDENT).is_dir():
            raise UserError(f"{path}: not there, though the student is; restore it, or start over with --no-resume")
        return None
    advice = "restore the file, or start over with --no-resume"
    _check(path, advice)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); {advice}") from error
    if not isinstance(state, dict) or not parts <= state.keys():
        raise UserError(f"{path}: not the checkpoint of a training, or one of another version; {advice}")
    return state


def _check(path: Path, advice: str) -> None:
    """Raise UserError where a file is no whole checkpoint: torch.load takes a flipped byte for a weight."""
    wrong: str | None = "no zip archive"  # of such files torch.load says nothing that helps
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                part = archive.testzip()
            wrong = part and f"{part} is damaged"
    except DAMAGE as error:
        wrong = str(error)
    if wrong is not None:
        raise UserError(f"{path}: not a readable checkpoint ({wrong}); {advice}")


def keep_state(folder: Path, stage: str) -> None:
    """Keep a copy of the checkpoint that a stage ended with, once; other runs may start from it."""
    if stage_state(folder, stage).exists():
        return
    temporary = folder / f"{STATE}.tmp"
    shutil.copyfile(folder / STATE, temporary)
    temporary.replace(stage_state(folder, stage))


def stage_state(folder: Path, stage: str) -> Path:
    """Return where `keep_state` puts a stage's last checkpoint."""
    return folder / f"after-{stage}.pt"


def teacher_folder(folder: Path, stage: str) -> Path:
    """Return where a run keeps the student of an earlier stage that is the teacher of this one."""
    return folder / f"teacher-{stage}"


def adopt_state(folder: Path, donor: Path, stages: Sequence[str]) -> None:
    """Start a claimed run from the end of the last of another one's stages: its checkpoint, its log up to there.

    Raises UserError where that checkpoint is damaged."""
    _check(stage_state(donor, stages[-1]), "restore or remove the file")
    folder.mkdir(parents=True, exist_ok=True)
    for teacher in (teacher_folder(donor, stage) for stage in stages):
        if teacher.exists():
            shutil.copytree(teacher, folder / teacher.name, dirs_exist_ok=True)
    if (donor / LOG).exists():
        write_text(folder / LOG, (donor / LOG).read_text(encoding="utf-8"))  # cut to its length on resume
    temporary = folder / f"{STATE}.tmp"
    shutil.copyfile(stage_state(donor, stages[-1]), temporary)
    temporary.replace(folder / STATE)


def forget_run(folder: Path) -> None:
    """Remove all that a run has made, so that it starts over.

    The settings go last: were they the first, a kill in between would leave a checkpoint of unknown settings."""
    # benchmarks are of the student that is no more; their run directory refuses another one
    for path in (*folder.glob("benchmark-*"), *folder.glob("teacher-*"), *folder.glob(STUDENT)):
        shutil.rmtree(path)
    for path in (folder / STATE, *folder.glob("after-*.pt"), folder / LOG, folder / SETTINGS):
        path.unlink(missing_ok=True)


def is_begun(folder: Path) -> bool:
    """Return whether a folder holds something to continue: settings without a checkpoint bind nobody."""
    return (folder / STATE).is_file() or (folder / STUDENT).is_dir()


def claim_folder(
    folder: Path, method: str, run: RunConfig, free: frozenset[str] = frozenset(), where: str = "config"
) -> None:
    """Write the run's settings into its folder, or compare them with those of the run that it holds.

    Raises UserError naming the first difference: a run is never continued under other settings. Keys in `free` may
    change, and so may the program: a key that it has got since counts as left at its default. A default of a method
    that it has changed since is a difference. `where` opens the errors in the methods' settings."""
    path = folder / SETTINGS
    settings = {"method": method, **as_table(run)}
    resolved = resolved_settings(method, run, where)
    if not is_begun(folder):
        folder.mkdir(parents=True, exist_ok=True)
        told = settings | {RESOLVED: resolved}
        write_text(path, json.dumps(told, indent=2) + "\n")  # not sorted: the order of stages is a setting, too
        return
    stored = _settings_of(folder)
    differences = _differences(stored, settings)
    if list(stored["stages"]) != list(settings["stages"]):
        differences.setdefault("stages", (list(stored["stages"]), list(settings["stages"])))
    for key, (old, new) in differences.items():
        if not free & {key, key.partition(".")[0]}:
            raise UserError(f"{path}: {key} was {old!r}, now {new!r}; {MENDS}")
    for key, (old, new) in changed_defaults(path, resolved).items():
        raise UserError(f"{path}: {key} was {old!r}, now {new!r} by default; {MENDS}")


def changed_defaults(path: Path, resolved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (old, new) of the settings in force by which the run of a file differs, in the stages of `resolved`.

    Keys younger than the file are left out, and of a file that is older than this record there is nothing to tell.
    The file is one that `read_settings` takes."""
    stored = json.loads(path.read_text(encoding="utf-8")).get(RESOLVED, {})
    stored = {stage: stored[stage] for stage in resolved if stage in stored}
    return _differences(stored, _known(stored, resolved), RESOLVED)


def read_settings(path: Path) -> dict[str, Any]:
    """Return a run's stored settings as asked for, complete: keys younger than the file stand at their defaults.

    Raises UserError where the file is missing or damaged, or holds what this version does not know."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        method = table.pop("method")
        if not isinstance(table.pop(RESOLVED, {}), dict):  # older files have none
            raise TypeError(RESOLVED)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the settings of a training") from error
    return {"method": method, **as_table(build(RunConfig, table, str(path)))}


def begun_with(folder: Path) -> int:
    """Return the number of processes that the run in a folder was laid out for, 0 where there is none.

    Raises UserError where its settings cannot be read."""
    return int(_settings_of(folder)["processes"]) if is_begun(folder) else 0


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder. Raises UserError as `read_settings` does, with what mends it."""
    try:
        return read_settings(folder / SETTINGS)
    except UserError as error:
        raise UserError(f"{error}; {MENDS}") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new empty folder that takes the place of `folder` when all went well."""
    new, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _known(old: Any, new: Any) -> Any:
    """Return nested tables without the keys that the older ones lack."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {name: _known(old[name], value) for name, value in new.items() if name in old}


def _differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {key: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "method", name)):
        found |= _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    return found
