"""A training run as data: model, prompts, rewards, method, stages, and what happens around them.

[backbone]   path = "benchmarks/micro/pipeline"
[trainer]    settings of the method, shared by all stages
[stages.cold_start]            stages run in the order of the file
budget_passes = 100_000
settings = { phase = "cold_start" }
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from benchmarks.config import build, config
from trainers.backbones.base import BackboneConfig
from trainers.prompts import PromptsConfig
from trainers.rewards import RewardConfig


@config
class StageConfig:
    """One stage: the method's settings where they differ, and when it ends (whatever comes first)."""

    settings: dict[str, Any] = field(default_factory=dict)
    trainer: str = ""  # another method than the run's
    iterations: int = 0  # 0 = no limit
    budget_passes: int = 0  # network passes of this stage, images × (forward + backward); 0 = no limit
    student_from: Literal["teacher", "previous", "previous_ema"] = "previous_ema"

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.budget_passes < 0:
            raise ValueError("iterations and budget_passes must be at least 0")
        if not self.iterations and not self.budget_passes:
            raise ValueError("a stage needs an end: set iterations or budget_passes")


@config
class CanaryConfig:
    """A small fixed prompt set, sampled and scored while training: rewards against held-out metrics."""

    prompts: str = ""  # prompt file; "" = no canary
    limit: int = 0  # prompts; 0 = all
    metrics: tuple[str, ...] = ()  # besides the rewards
    every: int = 200  # iterations
    images_per_prompt: int = 1  # more for metrics of diversity
    batch_size: int = 40


@config
class ExportConfig:
    """The student's folder."""

    weights: Literal["merged", "lora"] = "merged"  # a whole pipeline, or an adapter beside its base
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


@config
class RunConfig:
    """See the module's docstring."""

    name: str
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    backbone: BackboneConfig
    prompts: PromptsConfig = PromptsConfig()
    rewards: tuple[RewardConfig, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, StageConfig]
    canary: CanaryConfig = CanaryConfig()
    checkpoint_every: int = 200  # iterations
    log_every: int = 10
    export: ExportConfig = ExportConfig()
    benchmark: str = ""  # suite that the student is put through at the end; "" = none

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("no stages: add a [stages.<name>] table")
        if self.checkpoint_every < 1 or self.log_every < 1:
            raise ValueError("checkpoint_every and log_every must be at least 1")
        if len({reward.id for reward in self.rewards}) < len(self.rewards):
            raise ValueError("rewards: an id is listed twice")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with those of `over` laid on top, key by key."""
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def trainer_settings(run: RunConfig, stage_name: str, config_class: type[Any], where: str) -> Any:
    """Return the method's config of one stage. Raises UserError as `benchmarks.config.build` does."""
    return build(
        config_class, merge(run.trainer, run.stages[stage_name].settings), f"{where}: stages.{stage_name}: trainer"
    )
