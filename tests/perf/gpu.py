"""Figures of a GPU: seconds of an iteration and peak memory at true sizes, pictures per second beside the pipeline.

    python -m tests.perf.gpu [--case dmdr-joint-sd3m ...] [--folder build/gpu] [--record]

SD3-M and SDXL with random weights at 1024 x 1024, rewards at their true size with random weights (HPS v2.1 and CLIP
L/14); gpu.toml lists the trainings: presets of the papers, with 16 images an iteration, or half as many until they
fit. A whole cycle, up to and with the student's update, warms up; the seconds are means over whole cycles, and the
largest of one iteration, the median over cycles: the student's. Without a GPU nothing is measured, and said so.
`--small` runs it all on shrunken models, to see whether it would run; figures of those are never recorded.
"""

import gc
import importlib.metadata
import os
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import torch

from benchmarks.cli import parse
from benchmarks.config import UserError, build, config, nearest
from benchmarks.models import Pipeline, open_model
from benchmarks.screen import guarded
from leaderboards.papers import REPORTED, read_paper_table
from leaderboards.studies import STUDIES, Beside, Measured, Measurements
from metrics.base import Prompt
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.perf.generation import direct_seconds, image_set_of, ours_seconds
from tests.perf.record import keep, machine
from tests.perf.scoring_inputs import architectures, prompt, write_weights
from tests.perf.sized import make_sized
from tests.perf.training_step import sized
from trainers.backbones.base import load
from trainers.base import Trainer, World, find
from trainers.config import RunConfig, merge, stage_settings
from trainers.presets import find_preset
from trainers.rewards import RewardConfig, load_rewards

GPU = STUDIES / "gpu.json"
CASES = Path(__file__).with_name("gpu.toml")
REWARDS = {"hps_v21": "hps-v2.1", "clip_score": "clip-vit-large-patch14"}  # metric: its weights
BATCHES = (16, 8, 4)  # images of an iteration: the first that fits
STEPS, PICTURES = 4, 64
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure on a GPU."""

    case: tuple[str, ...] = ()  # tables of gpu.toml, "generation-sd3m", "generation-sdxl"; () = all
    folder: Path = Path("build/gpu")  # models and weights are kept there
    cycles: int = 3
    small: bool = False
    record: bool = False  # keep the figures for the page


@config
class Cell:
    """A cell of a paper's table as leaderboards/reported holds it."""

    table: str
    system: str
    column: str

    def beside(self) -> Beside:
        """Return the cell as a figure to stand beside ours. Raises UserError where there is none."""
        rows = read_paper_table(REPORTED / f"{self.table}.json").rows
        row = next((row for row in rows if row.system == self.system), None)
        value = row.values.get(self.column) if row else None
        if not row or value is None:
            raise UserError(f"leaderboards/reported/{self.table}.json has no {self.column} of {self.system!r}")
        what = f"{self.system}, {self.column}, published for an H100"
        return Beside(value=value, what=what, source=self.table, notes=row.notes)


@config
class Case:
    """One training; see gpu.toml."""

    model: str
    preset: str
    stage: str
    cycle: int
    settings: dict[str, Any]
    published: Cell | None = None


def main(arguments: Arguments) -> int:
    """Print every figure; return the exit code."""
    if not torch.cuda.is_available() and not arguments.small:
        print("not measured: no CUDA device on this machine (--small tries the commands on shrunken models)")
        return 0
    if arguments.small and arguments.record:
        raise UserError("--small measures shrunken models: leave --record out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known: dict[str, Any] = dict(cases()) | {f"generation-{model}": model for model in ("sd3m", "sdxl")}
    for name in arguments.case or known:
        if name not in known:
            raise UserError(f"--case {name}: no such case; {nearest(name, list(known))}")
        case, rows = known[name], list[Measured]()
        if isinstance(case, Case):
            with random_rewards(arguments.folder / "weights", arguments.small):
                rows = training(name, case, arguments, device)
        else:
            rows = generation(name, case, arguments, device)
        for row in rows:
            print(f"{row.id:38} {row.value:9.4g} {row.unit:22} {row.setting}", flush=True)
        if arguments.record:
            record(rows)
    return 0


def cases() -> dict[str, Case]:
    """Return the tables of gpu.toml."""
    tables = tomllib.loads(CASES.read_text(encoding="utf-8"))
    return {name: build(Case, table, f"{CASES.name}: {name}") for name, table in tables.items()}


@contextmanager
def random_rewards(folder: Path, small: bool) -> Iterator[None]:
    """Within the context the rewards' weights are random ones of the true layout, on disk once made."""
    folder = folder.with_name("weights-small") if small else folder
    with architectures(small), mock.patch.dict(os.environ, {FOLDER: str(folder.resolve()), SYNTHETIC: "1"}):
        for identity in REWARDS.values():
            write_weights(folder, identity)
        yield


def training(name: str, case: Case, arguments: Arguments, device: str) -> list[Measured]:
    """Return the figures of a training with the largest batch that fits; none where none does."""
    place = arguments.folder / f"{case.model}{'-small' if arguments.small else ''}"
    model = make_sized(case.model, place, device, arguments.small)
    for batch in BATCHES:
        try:
            seconds, peak = iterations(case, model, batch, arguments, device)
            break
        except torch.OutOfMemoryError:
            forget()
    else:
        print(f"{name}: not measured: {BATCHES[-1]} images do not fit", flush=True)
        return []
    setting = f"{model_told(case.model, arguments.small)}, {batch} images an iteration, preset {case.preset}"
    shared = {"setting": f"{setting}; {machine(device)}", "repetitions": arguments.cycles, "versions": versions()}
    beside = [case.published.beside()] if case.published else []
    cycles = [seconds[start : start + case.cycle] for start in range(0, len(seconds), case.cycle)]
    told = [
        ("seconds", "seconds per iteration, mean of a cycle", mean(map(mean, cycles)), "seconds", []),
        ("update", "seconds of the iteration that updates the student", median(map(max, cycles)), "seconds", beside),
    ]
    if peak:
        told.append(("memory", "peak memory of training", peak / GIB, "GiB", []))
    return [
        Measured(id=f"{name}-{key}", what=f"{name}: {what}", value=value, unit=unit, beside=besides, **shared)
        for key, what, value, unit, besides in told
    ]


def iterations(
    case: Case, model: Path, batch: int, arguments: Arguments, device: str
) -> tuple[list[float], int | None]:
    """Return the seconds of every iteration of the measured cycles, and the peak of the device's memory."""
    method, run = run_of(case, model, batch, arguments.small)
    kind = find(run.stages[case.stage].trainer or method)
    settings = stage_settings(run, {case.stage: kind.Config}, case.preset)[case.stage]
    backbone = load(run.backbone, torch.device(device))
    trainer = kind(settings, backbone, load_rewards(run.rewards, torch.device(device)), World(seed=0))
    step, seconds = partial(one_step, trainer, device), []
    for iteration in range(case.cycle + 1):  # DMDR's first one leaves the student alone
        step(iteration)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for iteration in range(case.cycle + 1, (arguments.cycles + 1) * case.cycle + 1):
        seconds.append(step(iteration))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    del step, trainer, backbone
    forget()
    return seconds, peak


def run_of(case: Case, model: Path, batch: int, small: bool) -> tuple[str, RunConfig]:
    """Return (method, the preset's run of one stage on a model of ours, with our rewards)."""
    preset = find_preset(case.preset)
    run = preset.build()
    kind = {"sd3m": "sd3", "sdxl": "sdxl"}[case.model]
    backbone = replace(run.backbone, kind=kind, path=str(model), resolution=0 if small else 1024)
    if kind == "sdxl":
        # Its texts have one length, its attention none of the layers that SD3 has for texts beside pictures
        targets = tuple(name for name in run.backbone.lora.targets if not name.startswith(("add_", "to_add_")))
        backbone = replace(backbone, max_text_length=0, lora=replace(backbone.lora, targets=targets))
    stage = run.stages[case.stage]
    stage = replace(stage, settings=merge(stage.settings, sized(case.settings, batch)))
    rewards = tuple(RewardConfig(id=identity) for identity in REWARDS) if run.rewards else ()
    return preset.settings.method, replace(run, backbone=backbone, rewards=rewards, stages={case.stage: stage})


def one_step(trainer: Trainer, device: str, iteration: int) -> float:
    """Return the seconds of one iteration, prompts known."""
    prompts = [Prompt(text=prompt(number)) for number in range(trainer.prompts_per_step)]
    trainer.roles.backbone.encode([one.text for one in prompts])
    wait(device)
    start = time.perf_counter()
    trainer.step(prompts, iteration)
    wait(device)
    return time.perf_counter() - start


def generation(name: str, model: str, arguments: Arguments, device: str) -> list[Measured]:
    """Return pictures per second at four steps into a run directory, beside the pipeline alone."""
    folder = make_sized(
        model, arguments.folder / f"{model}{'-small' if arguments.small else ''}", device, arguments.small
    )
    pipeline = open_model(folder, device=device)
    assert isinstance(pipeline, Pipeline)
    batch, count = (BATCHES[0], PICTURES) if not arguments.small else (2, 4)
    protocol = replace(pipeline.protocol, num_inference_steps=STEPS, sigmas=(), guidance_scale=1.0)
    images = image_set_of(protocol, count)
    batches = [images.items[start : start + batch] for start in range(0, count, batch)]
    ours_seconds(pipeline, images, batch)  # loads the weights and warms up
    pairs = [
        (ours_seconds(pipeline, images, batch), direct_seconds(pipeline, images, batches))
        for _ in range(arguments.cycles)
    ]
    mine, bare = (count / median(seconds) for seconds in zip(*pairs, strict=True))
    setting = f"{model_told(model, arguments.small)}, {count} pictures in batches of {batch}; {machine(device)}"
    shared = {"setting": setting, "repetitions": arguments.cycles, "versions": versions()}
    beside = [
        Beside(value=bare, what="the stock pipeline in batches of the same size, nothing kept", source="same run")
    ]
    what = f"{name}: pictures per second at {STEPS} steps, every one written and journalled"
    return [Measured(id=f"{name}-rate", what=what, value=mine, unit="pictures per second", beside=beside, **shared)]


def model_told(model: str, small: bool) -> str:
    """Return what a reader needs to know of a model."""
    return f"{model}, shrunken" if small else f"{model}, true size, random weights, 1024 x 1024"


def versions() -> dict[str, str]:
    """Return the versions of what the seconds depend on."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")}
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def wait(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget() -> None:
    """Give back the device's memory."""
    gc.collect()
    torch.cuda.empty_cache()


def record(rows: list[Measured], path: Path = GPU) -> None:
    """Put figures into the study, in the order of their ids."""
    keep(
        Measurements,
        rows,
        path,
        title="Figures of a GPU",
        about="Trainings and drawing at true sizes with random weights; what is published stands beside.",
        command="tox -e perf-gpu -- --record",
    )


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m tests.perf.gpu", description=__doc__))))
