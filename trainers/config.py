"""A training run as data: model, prompts, rewards, method, stages, and what happens around them.

[backbone]   path = "benchmarks/micro/pipeline"
[trainer]    settings of the method, shared by all stages
[stages.cold_start]            stages run in the order of the file
budget_passes = 100_000
settings = { phase = "cold_start" }

A file may open with `extends = "other.toml"`, relative to itself: it then holds only what differs from that one; and
with `method = "rtdmd"`, which is no part of the run's settings. Of a chain of files the nearest that names a method
counts, as it does for every other key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import UserError, as_table, build, config, nearest, overridden, parse_toml
from leaderboards.schema import NAME_RULE, is_name
from trainers.backbones.base import BackboneConfig
from trainers.base import Trainer, find
from trainers.prompts import PromptsConfig
from trainers.rewards import RewardConfig


@config
class StageConfig:
    """One stage: the method's settings where they differ, and when it ends (whatever comes first)."""

    settings: dict[str, Any] = field(default_factory=dict)
    trainer: str = ""  # another method than the run's
    prompts: PromptsConfig | None = None  # other training prompts than the run's
    iterations: int = 0  # 0 = no limit
    budget_passes: int = 0  # network passes of this stage, images × (forward + backward); 0 = no limit
    student_from: Literal["teacher", "previous", "previous_ema"] = "previous_ema"
    # previous: the student of the stage before (its EMA, where it has one) is the teacher from here on, and student
    # and fake score start from it: reinforcement learning over many steps, then distillation
    teacher_from: Literal["base", "previous"] = "base"

    def __post_init__(self) -> None:
        if self.teacher_from == "previous" and self.student_from == "previous":
            raise ValueError('teacher_from = "previous" starts the student from that teacher: leave student_from out')
        if self.iterations < 0 or self.budget_passes < 0:
            raise ValueError("iterations and budget_passes must be at least 0")
        if not self.iterations and not self.budget_passes:
            raise ValueError("a stage needs an end: set iterations or budget_passes")


@config
class StopConfig:
    """Early stop: a stage ends when a held-out metric stays below its best value since that stage's start."""

    metric: str = ""  # one of the canary's, not a reward; "" = never
    drop: float = 0.0  # how far below, in the metric's own unit
    patience: int = 1  # measurements in a row

    def __post_init__(self) -> None:
        if self.drop < 0 or self.patience < 1:
            raise ValueError("drop must be at least 0 and patience at least 1")


@config
class CanaryConfig:
    """A small fixed prompt set, sampled and scored while training: rewards against held-out metrics."""

    prompts: str = ""  # prompt file; "" = no canary
    limit: int = 0  # prompts; 0 = all
    metrics: tuple[str, ...] = ()  # besides the rewards
    every: int = 200  # iterations
    images_per_prompt: int = 1  # more for metrics of diversity
    batch_size: int = 40
    stop: StopConfig = StopConfig()

    def __post_init__(self) -> None:
        if self.every < 1 or self.images_per_prompt < 1 or self.batch_size < 1 or self.limit < 0:
            raise ValueError("every, images_per_prompt and batch_size must be at least 1, limit 0")


@config
class ExportConfig:
    """The student's folder."""

    weights: Literal["merged", "lora"] = "merged"  # a whole pipeline, or an adapter beside its base
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


@config
class RunConfig:
    """See the module's docstring."""

    name: str  # of folder and student, on boards too
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    # Batches are given per process, of so many processes: the size of the whole batch is part of the method, the
    # number of those at work is not. 0 = as many as the run begins with.
    processes: int = 0
    backbone: BackboneConfig
    prompts: PromptsConfig = PromptsConfig()
    rewards: tuple[RewardConfig, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, StageConfig]
    canary: CanaryConfig = CanaryConfig()
    checkpoint_every: int = 200  # iterations
    log_every: int = 10  # iterations, and a stage's end; a line holds the latest of every value since the one before
    export: ExportConfig = ExportConfig()
    benchmark: str = ""  # suite that the student is put through at the end; "" = none

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"name must have {NAME_RULE}")
        if not self.stages:
            raise ValueError("no stages: add a [stages.<name>] table")
        if self.checkpoint_every < 1 or self.log_every < 1 or self.processes < 0:
            raise ValueError("checkpoint_every and log_every must be at least 1, processes 0")
        if len({reward.id for reward in self.rewards}) < len(self.rewards):
            raise ValueError("rewards: an id is listed twice")
        if stop := self.canary.stop.metric:
            if stop in {reward.id for reward in self.rewards}:
                raise ValueError(f"canary.stop.metric {stop!r} is trained on: name a held-out metric")
            if stop not in self.canary.metrics:
                known = nearest(stop, self.canary.metrics)
                raise ValueError(f"canary.stop.metric {stop!r} must be one of canary.metrics; {known}")
            if not self.canary.prompts:
                raise ValueError(f"canary.stop.metric {stop!r} is measured on canary.prompts: name a file of them")
        if self.backbone.student_path and any(stage.student_from == "teacher" for stage in self.stages.values()):
            raise ValueError('backbone.student_path is where the student starts: leave student_from = "teacher" out')
        later = [stage.teacher_from == "previous" for stage in self.stages.values()]
        if later[0]:
            raise ValueError('the first stage has none before it: teacher_from must be "base"')
        if self.export.weights == "lora" and self.backbone.training == "full":
            raise ValueError('export.weights = "lora" has no adapter where backbone.training = "full": use "merged"')
        if any(later) and self.export.weights == "lora":
            raise ValueError('export.weights = "lora" has no base where teacher_from = "previous": use "merged"')
        if self.backbone.student_path.endswith(".safetensors") and self.export.weights == "lora":
            raise ValueError('export.weights = "lora" needs a folder as backbone.student_path; use "merged"')

    def prompts_of(self, stage: str) -> PromptsConfig:
        """Return what a stage is trained on."""
        return self.stages[stage].prompts or self.prompts


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with those of `over` laid on top, key by key."""
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def read_table(path: Path) -> dict[str, Any]:
    """Return a TOML file's table laid over the one that it extends, without the method: `read_method` tells that.

    Raises UserError where a file is missing, malformed or extends itself."""
    table = _read_chain(path)
    table.pop("method", None)
    return table


def read_method(path: Path) -> str:
    """Return the method that a file, or the nearest of those it extends, says it is of; "" where none does.

    Raises UserError as `read_table`, and where it is no name."""
    method = _read_chain(path).get("method", "")
    if not isinstance(method, str):
        raise UserError(f"{path}: method must be the name of a trainer, not {method!r}")
    return method


def _read_chain(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, by way of {seen[-1]}")
    table = parse_toml(path)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends must be the path of a TOML file, not {parent!r}")
    return merge(_read_chain(path.parent / parent, (*seen, path.resolve())), table)


def read_run(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Return the run that a file describes, with "dotted.key=value" on top. Raises UserError as its parts do."""
    return build(RunConfig, overridden(read_table(path), overrides), str(path))


def stage_methods(method: str, run: RunConfig, where: str) -> dict[str, tuple[type[Trainer], Any]]:
    """Return each stage's trainer with its settings. Raises UserError as `find` and `stage_settings`."""
    classes = {
        name: find(stage.trainer or method, f"{where}: stages.{name}: " if stage.trainer else "")
        for name, stage in run.stages.items()
    }
    settings = stage_settings(run, {name: trainer.Config for name, trainer in classes.items()}, where)
    return {name: (trainer, settings[name]) for name, trainer in classes.items()}


def resolved_settings(method: str, run: RunConfig, where: str) -> dict[str, dict[str, Any]]:
    """Return each stage's settings in force, as plain values: what the run says, and else its method's defaults.

    Raises UserError as `stage_methods`."""
    return {name: as_table(settings) for name, (_, settings) in stage_methods(method, run, where).items()}


def stage_settings(run: RunConfig, configs: Mapping[str, type[Any]], where: str) -> dict[str, Any]:
    """Return each stage's config; `configs` holds its method's class by stage.

    [trainer] is laid under every stage's settings. Where stages have different methods, a key of it counts in those
    that know it. Raises UserError as `benchmarks.config.build` does, for a key that none knows too."""
    known = {stage: {field.name for field in fields(cls)} for stage, cls in configs.items()}
    anywhere = set().union(*known.values())
    built = {}
    for stage, cls in configs.items():
        shared = {k: v for k, v in run.trainer.items() if k in known[stage] or k not in anywhere}
        table = merge(shared, run.stages[stage].settings)
        built[stage] = build(cls, table, f"{where}: stages.{stage}: trainer")
    return built
