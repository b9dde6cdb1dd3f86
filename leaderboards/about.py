"""What a page tells about a suite beside its results: what its prompts say, and what its metrics mean.

    <board>/<suite>.about.json      {"prompts": {task: {prompt id: text}}, "metrics": {metric id: notes}}

Every run that reaches a board adds what it knows; no value is computed from it. Texts of prompt sets that may not be
handed on are left out by the one who adds. It comes from others as results do, so its size is bounded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import Field, ValidationError

from leaderboards.schema import MAX_FILE_BYTES, Name, ResultError, Strict, first_fault
from leaderboards.store import write_atomically

NOTES = ".about.json"
PromptText = Annotated[str, Field(max_length=20_000)]
Note = Annotated[str, Field(max_length=4000)]


class MetricNotes(Strict):
    """Of a metric's card what a reader of a number must know; "" where the card says nothing."""

    description: Note  # what the number means, and what it does not
    comparable: Note = ""  # when two numbers may be compared
    fooled_by: Note = ""  # what moves the number without better pictures
    source: Note = ""


class About(Strict):
    """All that is told of one suite."""

    prompts: Mapping[Name, Mapping[str, PromptText]] = Field(default_factory=dict)
    metrics: Mapping[str, MetricNotes] = Field(default_factory=dict)

    def texts(self, task: str) -> Mapping[str, str]:
        """Return what the prompts of a task say, by id; those that may not be told are absent."""
        return self.prompts.get(task, {})


def about_path(suite: Path) -> Path:
    """Return the file that belongs to a suite's folder on a board."""
    return suite.with_name(f"{suite.name}{NOTES}")


def read_about(suite: Path) -> About:
    """Return what is told of the suite whose results lie in this folder: nothing, where there is no file.

    Raises ResultError in one line where the file is not valid."""
    path = about_path(suite)
    try:
        if path.is_symlink() or path.stat().st_size > MAX_FILE_BYTES:
            raise ResultError(f"{path}: a link, or larger than {MAX_FILE_BYTES // 2**20} MiB")
        return About.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return About()
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'about')}") from error


def add_about(suite: Path, new: About) -> None:
    """Add to what is told of a suite; newer texts and notes replace those of the same id, all others stay.

    Raises ResultError where what is there is not valid."""
    path = about_path(suite)
    with FileLock(path.with_name(f".{path.name}.lock")):  # runs of several models may end at one time
        old = read_about(suite)
        prompts = {task: {**old.texts(task), **new.texts(task)} for task in {*old.prompts, *new.prompts}}
        told = About(prompts=prompts, metrics={**old.metrics, **new.metrics})
        text = json.dumps(told.model_dump(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())
