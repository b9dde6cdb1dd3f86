"""What a run is checked for before any work is done, by a start and by a plan alike.

A start stops at everything that it cannot do. A plan is made on a laptop for another machine: what that one may have
and this one has not (prompt sets, weights) it notes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.config import UserError, located
from benchmarks.protocol import Protocol
from trainers.base import Trainer, World
from trainers.config import RunConfig, stage_methods
from trainers.prompts import PromptStream, TrainingPrompts
from trainers.rehearsal import Rehearsal, rehearsed
from trainers.rewards import RewardBank, check_settings, load_rewards

PER_ITERATION = "prompts per iteration"
# Opens the errors of what runs within by where their cause stands, and may swallow that something is not here
Noted = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Start:
    """The checked parts of a run, all but networks and canary; what was noted instead is missing."""

    run: RunConfig
    where: str
    methods: Mapping[str, tuple[type[Trainer], Any]]  # of each stage
    prompts: TrainingPrompts
    streams: Mapping[str, PromptStream]  # of each stage
    rewards: RewardBank
    rewarded: bool  # whether a stage trains on the rewards
    trained_on: list[str]  # metrics, the methods' own with them

    def rehearse(self, protocol: Protocol, processes: int = 1) -> None:
        """Make the trainer of every stage without its networks: what a later one refuses shows now.

        protocol: of the base model. processes: at work. Raises UserError naming the stage."""
        run, where, read = self.run, self.where, set[str]()
        for name, (kind, settings) in self.methods.items():
            backbone = Rehearsal(run.backbone, protocol)
            world = World(f"{run.seed}/{name}", planned=run.processes or 1, processes=processes)
            with (
                located(f"{where}: stages.{name}"),
                rehearsed(kind, settings, backbone, self.rewards, world) as made,
            ):
                world.share(made.prompts_per_step, PER_ITERATION)
                if name in self.streams:
                    self.streams[name].check(made.prompts_per_step * world.planned)
                read |= made.reward_settings
        with located(f"{where}: rewards"):
            check_settings(run.rewards, read)


def prepare(method: str, run: RunConfig, where: str, device: torch.device, noted: Noted = located) -> Start:
    """Check settings, prompts and rewards; `where` opens the errors in settings.

    Raises UserError for unknown names, bad settings of any stage, and whatever `noted` does not swallow."""
    methods, prompts = stage_methods(method, run, where), TrainingPrompts(run.seed)
    streams = dict[str, PromptStream]()
    for name, stage in run.stages.items():
        with noted(f"{where}: {f'stages.{name}.' if stage.prompts else ''}prompts.source"):
            streams[name] = prompts.open(run.prompts_of(name))
    with located(f"{where}: rewards"):
        rewards = load_rewards(run.rewards, device)
    rewarded = [name for name, (trainer, config) in methods.items() if trainer.trains_on_rewards(config)]
    for stream in dict.fromkeys(streams[name] for name in rewarded if name in streams):
        with noted(f"{where}: rewards"):
            rewards.check(stream.prompts)
    own = (name for trainer, config in methods.values() for name in trainer.trained_on(config))
    trained_on = list(dict.fromkeys([*(rewards.ids if rewarded else ()), *own]))
    if run.canary.stop.metric in trained_on:
        raise UserError(f"{where}: canary.stop.metric {run.canary.stop.metric!r} is trained on: name another")
    return Start(run, where, methods, prompts, streams, rewards, bool(rewarded), trained_on)
