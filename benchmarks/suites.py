"""Suites: what is measured, as TOML files; a suite is a list of tasks and may include other suites by name.

include = ["micro"]

[[tasks]]
name = "micro"                        # of the task; two tasks of one name and content are one task
prompts = "micro"                     # a prompt set by name, or a file relative to the suite's
images_per_prompt = 4
metrics = ["shapes_geneval"]
picture_size = "64x64"                # only for models that draw pictures of this size
min_side = 256                        # only for models whose own pictures have at least so many pixels a side
[tasks.protocol]                      # overrides of the model's own protocol
guidance_scale = 1.0
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.config import UserError, config, nearest, read_toml
from benchmarks.protocol import Protocol
from benchmarks.sets import is_named

FOLDER = Path(__file__).parent / "suites"
_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


@config
class TaskSpec:
    """One prompt set under one protocol, and the metrics measured on its images."""

    name: str
    prompts: str
    images_per_prompt: int = 4
    metrics: tuple[str, ...]
    picture_size: str = ""  # "WIDTHxHEIGHT" of the models it is made for; "" = any model
    min_side: int = 0  # pixels of the shorter side of the pictures that a model draws by its own protocol
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _TASK_NAME.fullmatch(self.name) or self.name == "locks":  # it names a folder of the run directory
            raise ValueError(f"task name {self.name!r} cannot name a folder; use letters, digits, '_' and '-'")
        if self.images_per_prompt < 1 or not self.metrics:
            raise ValueError(f"task {self.name!r} needs at least one image per prompt and one metric")
        known = {f.name for f in fields(Protocol)}
        for key in self.protocol:
            if key not in known:
                raise ValueError(f"task {self.name!r}: unknown protocol key {key!r}; {nearest(key, known)}")


@config
class _SuiteFile:
    description: str = ""
    include: tuple[str, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A suite with its includes resolved: tasks of distinct names, in order."""

    name: str
    description: str
    tasks: tuple[TaskSpec, ...]


def available_suites() -> Mapping[str, Path]:
    """Return the shipped suites by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def read_suite(source: str) -> Suite:
    """Return a shipped suite by name, or that of a TOML file, its includes resolved.

    Raises UserError for an unknown name (naming the nearest one), a bad file, or two tasks that share a name only."""
    path = _suite_path(source)
    tasks: dict[str, TaskSpec] = {}
    _collect(path, tasks, seen=())
    if not tasks:
        raise UserError(f"{path}: a suite needs at least one task")
    return Suite(path.stem, read_toml(_SuiteFile, path).description, tuple(tasks.values()))


def _suite_path(source: str) -> Path:
    known = available_suites()
    if source in known:
        return known[source]
    if source.endswith(".toml"):
        return Path(source)
    raise UserError(f"unknown suite {source!r}; {nearest(source, known)}; or pass a file ending in .toml")


def _collect(path: Path, tasks: dict[str, TaskSpec], seen: tuple[Path, ...]) -> None:
    """Add a suite's tasks to `tasks`, those of its includes first."""
    if path in seen:
        raise UserError(f"{path}: includes itself by way of {', '.join(p.stem for p in seen)}")
    suite = read_toml(_SuiteFile, path)
    for name in suite.include:
        _collect(_suite_path(name), tasks, (*seen, path))
    for written in suite.tasks:
        task = replace(written, prompts=_prompts_source(written.prompts, path))
        earlier = tasks.setdefault(task.name, task)
        if earlier != task:
            raise UserError(f"{path}: task {task.name!r} stands twice with different content; rename one of the two")


def _prompts_source(prompts: str, suite: Path) -> str:
    return prompts if is_named(prompts) else str(suite.parent / prompts)
