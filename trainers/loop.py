"""The training loop: stages in turn, budgets in network passes, log, checkpoints, canary, export.

A run lives in its folder: run.json (settings), log.jsonl, checkpoint.pt, student/ (the exported model). Started again
it continues, bit for bit as if it had not been interrupted; the log is cut back to the checkpoint.

Several processes (torchrun, accelerate launch) train on one batch: each on its share of the prompts, with gradients,
logs and counted passes brought together. What is drawn for a sample depends on its place in the whole batch alone, so
the number of processes decides nothing but the time, and may change when a run is resumed. The main one alone writes.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from benchmarks.config import as_table, located
from benchmarks.overlap import write_fingerprints
from benchmarks.protocol import write_protocol
from leaderboards.schema import StageRecord
from leaderboards.schema import Training as TrainingRecord
from trainers.backbones.base import Backbone, BackboneConfig, find_loader
from trainers.backbones.base import load as load_backbone
from trainers.backbones.checkpoint import base_digests, check_base
from trainers.base import Trainer, World
from trainers.canary import Canary
from trainers.checkpoint import (
    LOG,
    STUDENT,
    begun_with,
    claim_folder,
    forget_run,
    keep_state,
    load_state,
    replaced_folder,
    save_state,
    teacher_folder,
    write_text,
)
from trainers.config import RunConfig, StageConfig
from trainers.launch import check_launch
from trainers.pause import Pause
from trainers.progress import Progress
from trainers.start import PER_ITERATION, prepare

# Of a checkpoint
PARTS = frozenset(
    {
        "position", "passes", "prompt_positions", "log_lines", "recent", "curves", "stages", "rewards", "trainer",
        "idle_fake_score", "prompt_digests", "base_digests",
    }
)  # fmt: skip
# What may change between starts
FREE = frozenset(
    {
        "name", "benchmark", "export", "checkpoint_every", "backbone.name", "backbone.sharded", "backbone.compile",
        "backbone.prompt_cache", "backbone.prompt_cache_folder", "backbone.offload_text_encoders",
        "backbone.offload_autoencoder",
    }
)  # fmt: skip


@dataclass
class Position:
    """Where a run stands."""

    stage: str
    iteration: int = 0  # of the stage
    total: int = 0  # of the run
    passes_before: int = 0  # network passes of earlier stages
    stopped_by: str = ""  # the canary metric whose fall ended the stage


class Loop:
    """One run of a method, from its settings to the exported student."""

    def __init__(self, method: str, run: RunConfig, folder: Path, resume: bool = True, where: str = "config") -> None:
        """Load everything the run needs, so that a user's mistake shows before any work is done.

        `where` opens the errors in settings. Raises UserError for unknown names, bad settings of any stage, weights
        that are not here and a folder that holds another run; the folder is then as it was."""
        # The others wait in a collective while the main process measures or exports
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        self.accelerator = Accelerator(cpu=run.device == "cpu", kwargs_handlers=[patience])
        check_launch(self.accelerator, run.backbone)
        if not run.processes:
            begun = begun_with(folder) if resume else 0
            run = replace(run, processes=begun or self.accelerator.num_processes)
        self.method, self.run, self.folder = method, run, folder
        self._start = start = prepare(method, run, where, self.accelerator.device)
        self.rewards = start.rewards
        self.rewards.gather = self.accelerator.gather
        with located(f"{where}: canary"):
            self._canary = Canary(run.canary, self.rewards.ids, self.accelerator.device)
        with located(f"{where}: backbone"):
            self.backbone = self._load_backbone(run.backbone)
        start.rehearse(self.backbone.protocol(), self.accelerator.num_processes)
        if self.accelerator.is_main_process:
            if not resume:
                forget_run(folder)
            claim_folder(folder, method, run, FREE, where)
        # Of a large base a minute's work: the main process does it for all. A plug-in's kind may have no such files
        read = self.accelerator.is_main_process and hasattr(find_loader(run.backbone), "pipeline_class")
        self._base_digests = base_digests(run.backbone) if read else {}
        self.accelerator.wait_for_everyone()
        self._curves: list[dict[str, Any]] = []
        self._stages: list[dict[str, Any]] = []  # what training.json tells of each finished stage
        self._log_lines = 0
        self._recent: dict[str, float] = {}  # the latest of every value since the last line of the log

    def train(self, until: float = math.inf) -> Path:
        """Run every stage that is not finished; return the folder of the exported student.

        until: a moment of the main process's time.monotonic(); raises Paused after the first iteration that ends
        beyond it. Raises KeyboardInterrupt or SystemExit after the first that ends beyond Ctrl-C or SIGTERM."""
        with Pause(until) as self._pause:
            student = self._train()
            if (due := self._due()) > 0:
                self._pause.leave(due)
        return student

    def _train(self) -> Path:
        names = list(self.run.stages)
        state = load_state(self.folder, PARTS)
        position = Position(**state["position"]) if state else Position(names[0])
        promoted = [n for n in names[: names.index(position.stage) + 1] if self.run.stages[n].teacher_from != "base"]
        if promoted:
            self.backbone = self._load_backbone(self._promoted(promoted[-1]))
        trainer = self._make_trainer(position.stage)
        self._restore(trainer, position.stage, state)
        self._run_stage(trainer, position)
        for name in names[names.index(position.stage) + 1 :]:
            self._hand_over(trainer, name)
            trainer = self._make_trainer(name)
            position = Position(name, 0, position.total, self.backbone.passes)
            self._run_stage(trainer, position)
        return self._export(trainer)

    def _make_trainer(self, stage: str) -> Trainer:
        accelerator, (trainer, settings) = self.accelerator, self._start.methods[stage]
        world = World(f"{self.run.seed}/{stage}", planned=self.run.processes)
        if accelerator.num_processes > 1:
            world = replace(
                world,
                rank=accelerator.process_index,
                processes=accelerator.num_processes,
                reduce=partial(accelerator.reduce, reduction="mean"),
                gather=accelerator.gather,
                gather_list=gather_object,
            )
        made = trainer(settings, self.backbone, self.rewards, world)
        self._stream = self._start.streams[stage]
        self._share = world.share(made.prompts_per_step, PER_ITERATION)
        return made

    def _load_backbone(self, settings: BackboneConfig) -> Backbone:
        torch.manual_seed(self.run.seed)  # of the adapters' initial weights
        return load_backbone(settings, self.accelerator.device)

    def _promoted(self, stage: str) -> BackboneConfig:
        """Return the backbone whose teacher, and the student's start, is the student of the stages before `stage`."""
        return replace(self.run.backbone, path=str(teacher_folder(self.folder, stage)), student_path="")

    def _hand_over(self, previous: Trainer, name: str) -> None:
        """Give the next stage its initial weights; the networks themselves live on in the backbone."""
        stage = self.run.stages[name]
        if stage.teacher_from == "previous":
            self._promote(previous, name)
        elif stage.student_from == "previous_ema":
            previous.roles.student.adopt_average()
        elif stage.student_from == "teacher":
            torch.manual_seed(self.run.seed)  # as at the start: a resumed run has not drawn what this one has
            self.backbone.reset()

    def _promote(self, previous: Trainer, name: str) -> None:
        """Make the student the teacher of stage `name`, by way of a folder: the run may be resumed from there."""
        folder, passes = teacher_folder(self.folder, name), self.backbone.passes
        if self.accelerator.is_main_process:
            with replaced_folder(folder) as new:
                self._write_student(previous, new, "merged", "float32")
                write_protocol(self.backbone.protocol(), new)
        elif self.run.backbone.sharded:
            self._write_student(previous, None, "merged", "float32")
        self.accelerator.wait_for_everyone()
        self.backbone = self._load_backbone(self._promoted(name))
        self.backbone.passes = passes

    def _run_stage(self, trainer: Trainer, position: Position) -> None:
        """Train from `position` to the end of its stage."""
        run, stage = self.run, self.run.stages[position.stage]
        over = self._fraction(stage, position) >= 1  # the checkpoint is of the stage's very end
        with Progress(position.stage, self.accelerator.is_main_process) as progress:
            while (done := self._fraction(stage, position)) < 1:
                if position.iteration % run.canary.every == 0 and (position.iteration or not position.total):
                    self._measure(trainer, position)
                    if self._has_fallen(position):
                        break
                with located(f"stages.{position.stage}, iteration {position.iteration + 1}"):
                    self._recent |= self._step(trainer, position.iteration)
                position.iteration, position.total = position.iteration + 1, position.total + 1
                progress.show(done, position.iteration, self._recent)
                if position.iteration % run.log_every == 0:  # not every iteration updates all the roles
                    self._log_recent(position)
                due = self._due()
                if (due or position.iteration % run.checkpoint_every == 0) and self._fraction(stage, position) < 1:
                    self._checkpoint(trainer, position)
                    if due:
                        self._pause.leave(due)
        if not over:
            if position.iteration % run.log_every:
                self._log_recent(position)  # the next stage's lines are its own
            if not position.stopped_by:
                self._measure(trainer, position)
            self._close(trainer, position)
            self._checkpoint(trainer, position)
        if self.accelerator.is_main_process and position.stage != list(run.stages)[-1]:
            keep_state(self.folder, position.stage)

    def _due(self) -> int:
        """Return why to pause, 0 where not: to every process the same, for all must pause at one iteration.

        A signal to any of them counts, and the clock of the main one."""
        if self.accelerator.num_processes == 1:
            return self._pause.due
        everyone = self.accelerator.gather(torch.tensor([self._pause.due], device=self.accelerator.device)).tolist()
        return max(everyone) if max(everyone) > 0 else int(everyone[0])

    def _step(self, trainer: Trainer, iteration: int) -> dict[str, float]:
        """Train on this process's share of the next prompts; count the passes of all processes."""
        count, size, before = self.accelerator.num_processes, self._share, self.backbone.passes
        own = self.accelerator.process_index * size
        logs = trainer.step(self._stream.take(size * count)[own : own + size], iteration)
        if count > 1:
            passes = torch.tensor([self.backbone.passes - before], device=self.accelerator.device)
            self.backbone.passes = before + int(self.accelerator.gather(passes).sum())
        return logs | self.rewards.take_missing()

    def _mean(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the mean over processes of what each has to say; what one has not counts as 0."""
        everyone: list[dict[str, float]] = gather_object([logs])
        names = dict.fromkeys(name for one in everyone for name in one)
        return {name: sum(one.get(name, 0.0) for one in everyone) / len(everyone) for name in names}

    def _fraction(self, stage: StageConfig, position: Position) -> float:
        """Return how much of the stage is done, 1 at its end."""
        if position.stopped_by:
            return 1.0
        passes = self.backbone.passes - position.passes_before
        by_iterations = position.iteration / stage.iterations if stage.iterations else 0.0
        return max(by_iterations, passes / stage.budget_passes if stage.budget_passes else 0.0)

    def _measure(self, trainer: Trainer, position: Position) -> None:
        """Sample and score the canary with the weights that would be exported; it costs the budget nothing."""
        if self.accelerator.is_main_process or self.run.backbone.sharded:  # of which every process has a part
            passes = self.backbone.passes
            with trainer.roles.student.averaged():
                values, spreads = self._canary.measure(trainer)
            self.backbone.passes = passes
            if values:
                point = {"stage": position.stage, "iteration": position.total, "passes": passes}
                self._curves.append(point | values)
                logs = {f"canary/{name}": value for name, value in values.items()}
                self._log(position, logs | {f"canary_std/{name}": value for name, value in spreads.items()})

    def _has_fallen(self, position: Position) -> bool:
        """Return whether a held-out metric has fallen too far; the position then says which one ended the stage."""
        (name,) = broadcast_object_list([self._canary.stopped_by(self._curve(position.stage))])
        if name:
            position.stopped_by = name
            self._log(position, {f"stopped_by/{name}": 1.0})
            if self.accelerator.is_main_process:
                told = f"{position.stage}: over after {position.iteration} iterations, for {name} has fallen"
                print(told, file=sys.stderr)
        return bool(name)

    def _curve(self, stage: str) -> list[dict[str, Any]]:
        """Return a stage's measurements, that of its start too: the last of the stage before, whose student it is."""
        first = next((n for n, point in enumerate(self._curves) if point["stage"] == stage), len(self._curves))
        if first and self.run.stages[stage].student_from != "teacher":
            first -= 1
        return self._curves[first:]

    def _close(self, trainer: Trainer, position: Position) -> None:
        """Note what training.json shall tell of the stage.

        Raises UserError where its last update has ruined the student."""
        with located(f"stages.{position.stage}, iteration {position.iteration}"):
            trainer.roles.student.check()
        record = StageRecord(
            name=position.stage,
            method=self.run.stages[position.stage].trainer or self.method,
            iterations=position.iteration,
            network_passes=self.backbone.passes - position.passes_before,
            image_free=trainer.image_free,
            stopped_by=position.stopped_by,
            settings=as_table(self._start.methods[position.stage][1]),
        )
        self._stages.append(record.model_dump())

    def _log_recent(self, position: Position) -> None:
        """Write the latest of every value since the last such line."""
        self._log(position, self._mean(self._recent))
        self._recent = {}

    def _log(self, position: Position, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            line = {"stage": position.stage, "iteration": position.iteration, "passes": self.backbone.passes}
            line |= {name: float(f"{value:.6g}") for name, value in values.items()}
            self._log_lines += 1
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"volatile": {"time": round(time.time(), 2)}}) + "\n")

    def _checkpoint(self, trainer: Trainer, position: Position) -> None:
        recent = self._mean(self._recent)  # every process will go on with it; the mean of equal ones is the same
        if self.accelerator.is_main_process:
            state = {
                "position": asdict(position),
                "passes": self.backbone.passes,
                "prompt_positions": self._start.prompts.state_dict(),
                "prompt_digests": self._start.prompts.digests,
                "base_digests": self._base_digests,
                "log_lines": self._log_lines,
                "recent": recent,
                "curves": self._curves,
                "stages": self._stages,
                "trainer": trainer.state_dict(),
                "idle_fake_score": self._idle_fake_score(trainer, position.stage),
                "rewards": self.rewards.state_dict(),
            }
            save_state(self.folder, state)
        self.accelerator.wait_for_everyone()

    def _idle_fake_score(self, trainer: Trainer, stage: str) -> list[torch.Tensor]:
        """Return the fake score's weights where this stage does not train them and an earlier one may have."""
        if stage == next(iter(self.run.stages)) or trainer.roles.has_fake_score:
            return []
        return [p.detach() for p in self.backbone.parameters("fake_score")]

    def _restore(self, trainer: Trainer, stage: str, state: dict[str, Any] | None) -> None:
        """Continue from a checkpoint; what the log holds beyond it is cut off and will be written again.

        Raises UserError where the prompts or the base's weights have changed since."""
        if state:
            with located(str(self.folder)):
                self._start.prompts.check(state["prompt_digests"])
                check_base(self.run.backbone, self._base_digests, state["base_digests"])
        log = self.folder / LOG
        if log.exists() and self.accelerator.is_main_process:
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(log, "".join(lines[: state["log_lines"] if state else 0]))
        if state:
            self._log_lines, self._recent = state["log_lines"], state["recent"]
            trainer.load_state_dict(state["trainer"])
            for mine, stored in zip(self._idle_fake_score(trainer, stage), state["idle_fake_score"], strict=True):
                mine.copy_(stored)
            self._start.prompts.load_state_dict(state["prompt_positions"])
            self.rewards.load_state_dict(state["rewards"])
            self.backbone.passes = state["passes"]
            self._curves, self._stages = state["curves"], state["stages"]

    def _export(self, trainer: Trainer) -> Path:
        """Write the student's folder with its protocol and the record of its training."""
        folder = self.folder / STUDENT
        if self.accelerator.is_main_process:
            record = TrainingRecord(
                method=self.method,
                config=as_table(self.run),
                seed=self.run.seed,
                rewards=self._start.trained_on,
                image_free=(self.rewards.image_free or not self._start.rewarded)
                and all(stage["image_free"] for stage in self._stages),
                network_passes=self.backbone.passes,
                prompts_digest=self._start.prompts.all.digest,
                base_digest=self._base_digests.get("path"),
                curves=self._curves,
                stages=[StageRecord(**stage) for stage in self._stages],
            )
            with replaced_folder(folder) as new:
                self._write_student(trainer, new, self.run.export.weights, self.run.export.dtype)
                write_protocol(trainer.protocol(), new)
                write_fingerprints(new, (prompt.text for prompt in self._start.prompts.all.prompts))
                settings = self.run.backbone
                told = {"base": settings.name or Path(settings.path).resolve().name} | record.model_dump(mode="json")
                write_text(new / "training.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        elif self.run.backbone.sharded:
            self._write_student(trainer, None, self.run.export.weights, self.run.export.dtype)
        self.accelerator.wait_for_everyone()
        return folder

    def _write_student(self, trainer: Trainer, folder: Path | None, weights: str, dtype: str) -> None:
        """Write the averaged student; without a folder, lend the main process this one's part of the base."""
        with trainer.roles.student.averaged():
            self.backbone.export(folder, weights, dtype)
