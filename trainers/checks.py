"""What a start of a run would refuse, asked without its networks: for plans.

The checks are those of `trainers.loop.Loop`, by the same functions and in the same words.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.config import UserError, located
from metrics.base import NotHere
from trainers.backbones.base import find_loader
from trainers.backbones.checkpoint import check_class, open_base
from trainers.base import World
from trainers.canary import Canary
from trainers.config import RunConfig, stage_methods
from trainers.prompts import PromptStream, TrainingPrompts
from trainers.rehearsal import Rehearsal, rehearsed
from trainers.rewards import check_settings, load_rewards

CPU = torch.device("cpu")


@dataclass
class Untold:
    """What could not be checked, for something is not on this machine."""

    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def noted(self, where: str = "") -> Iterator[None]:
        """Note what is not here; every other UserError is opened by where its cause stands."""
        try:
            with located(where):
                yield
        except NotHere as error:
            self.reasons.append(str(error))


def check_start(method: str, run: RunConfig, where: str, check_benchmark: Callable[[RunConfig], None]) -> list[str]:
    """Return what cannot be checked here, and why. Raises UserError where a start of the run would be refused."""
    base, untold = open_base(run.backbone), Untold()
    if run.benchmark:
        with untold.noted(where):
            check_benchmark(run)
    methods, prompts, streams = (
        stage_methods(method, run, where),
        TrainingPrompts(run.seed),
        dict[str, PromptStream](),
    )
    for name, stage in run.stages.items():
        with untold.noted(f"{where}: {f'stages.{name}.' if stage.prompts else ''}prompts.source"):
            streams[name] = prompts.open(run.prompts_of(name))
    with located(f"{where}: rewards"):
        rewards = load_rewards(run.rewards, CPU)
    rewarded = [name for name, (trainer, config) in methods.items() if trainer.trains_on_rewards(config)]
    for stream in dict.fromkeys(streams[name] for name in rewarded if name in streams):
        with untold.noted(f"{where}: rewards"):
            rewards.check(stream.prompts)
    trained_on = {name for trainer, config in methods.values() for name in trainer.trained_on(config)}
    if run.canary.stop.metric in trained_on:
        raise UserError(f"{where}: canary.stop.metric {run.canary.stop.metric!r} is trained on: name another")
    with untold.noted(f"{where}: canary"):
        Canary(run.canary, rewards.ids, CPU)
    with located(f"{where}: backbone"):
        loader = find_loader(run.backbone)
        if hasattr(loader, "pipeline_class"):
            check_class(base.files, loader.pipeline_class.__name__)
    read = set[str]()
    for name, (kind, settings) in methods.items():
        backbone, world = Rehearsal(run.backbone, base.protocol), World(f"{run.seed}/{name}")
        with located(f"{where}: stages.{name}"), rehearsed(kind, settings, backbone, rewards, world) as made:
            if name in streams:
                streams[name].check(made.prompts_per_step * (run.processes or 1))
            read |= made.reward_settings
    with located(f"{where}: rewards"):
        check_settings(run.rewards, read)
    return list(dict.fromkeys(untold.reasons))
