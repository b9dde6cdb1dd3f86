"""Does every preset train, and continue bit for bit after an interruption? On shrunken backbones of its family.

    python -m tests.studies.presets [--only PATTERN]

Each stage of a preset runs three iterations on a shrunken random checkpoint of its family (tests/shrunken): once
without a stop, once interrupted after the second iteration of every stage and started again. Both must leave the same
checkpoints, log and student, and the student must have moved. What is shrunken: batches to those of one process,
groups, the number of pairs, and R, so that the student is updated within three iterations; a student with a start of
its own starts from the same checkpoint. SDXL's pictures are larger than the other families', so that its
discriminator has a middle block that it can halve. All else is the preset's own. Rewards and LPIPS are stand-ins in
closed form with the cards of the real metrics (so with or without a gradient, as they are), because no weights are at
hand. Prints a Markdown table; exit code 1 where a preset fails. What has passed is kept in build/presets.json, under
a digest of the preset and the trainers' sources: started again, only the rest is run.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cli import parse
from benchmarks.config import UserError, as_table
from benchmarks.screen import guarded
from metrics.base import Prompt, make
from tests.shrunken.families import make as make_family
from tests.studies.kills import differences, left_behind
from trainers import dmd_lpips
from trainers import start as start_module
from trainers.base import Trainer, find
from trainers.config import CanaryConfig, RunConfig, stage_settings
from trainers.loop import Loop, Position
from trainers.presets import Preset, read_presets
from trainers.prompts import PromptsConfig
from trainers.rewards import RewardBank, RewardConfig

ROOT = Path(__file__).resolve().parents[2]
KNOWN = ROOT / "build" / "presets.json"
FAMILIES = {"sd3": "sd3-t5", "sdxl": "sdxl", "flux2": "flux2", "z_image": "z_image", "sit": "sit"}
RESOLUTION = {"sdxl": 128}  # pixels; the middle of the UNet is 8 x 8. Of the others the folder's own
ITERATIONS, STOP = 3, 2
SMALL = {"batch_size": 4, "groups": 2, "group_size": 4, "fake_score_updates": 1, "count": 4}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m tests.studies.presets`."""

    only: str = "*"  # names to try, with * and ?


class Interrupted(Exception):
    """Raised after a checkpoint, as a kill would end the run there."""


class StandIn:
    """A metric's card with a score in closed form: brightness, more of it the longer the prompt."""

    def __init__(self, identity: str) -> None:
        self.card = make(identity).card

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Take all prompts: these are of no benchmark, and brightness needs nothing of them."""

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [1 + len(prompt.text) % 7 for prompt in prompts]
        return images.mean(dim=(1, 2, 3)) * torch.tensor(lengths, dtype=images.dtype)

    def rewards(self, images: Tensor, several: Sequence[Sequence[Prompt]]) -> list[Tensor]:
        return [self.reward(images, prompts) for prompts in several]

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.reward(images, prompts).round(decimals=2)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within the context no trainer needs weights of a metric."""

    def rewards(settings: Sequence[RewardConfig], device: torch.device) -> RewardBank:
        return RewardBank(settings, {one.id: StandIn(one.id) for one in settings})  # type: ignore[misc]

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b) ** 2).mean(dim=(1, 2, 3))

    with (
        patch.object(start_module, "load_rewards", rewards),
        patch.object(dmd_lpips, "load_perceptual", lambda kind, device: squared),
    ):
        yield


def family_folder(kind: str, place: Path) -> Path:
    """Return the shrunken checkpoint of a backbone's kind, made where it is not there yet."""
    folder = place / FAMILIES[kind]
    return folder if folder.is_dir() else make_family(FAMILIES[kind], folder)


def prompt_file(kind: str, place: Path) -> Path:
    """Return a file of nine prompts: classes for SiT, sentences for the others."""
    looks = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "cross")]
    texts = [str(7 * n) for n in range(9)] if kind == "sit" else looks
    path = place / f"{kind}.jsonl"
    path.write_text("".join(json.dumps({"id": f"p-{n}", "prompt": text}) + "\n" for n, text in enumerate(texts)))
    return path


def shrunken_run(preset: Preset, families: Path, place: Path) -> RunConfig:
    """Return the preset's run on its family's shrunken checkpoint; what it draws of a teacher lies in `place`."""
    run = preset.build()
    kind, method = run.backbone.kind, preset.settings.method
    configs = {name: find(stage.trainer or method).Config for name, stage in run.stages.items()}
    settings, prompts = stage_settings(run, configs, preset.name), PromptsConfig(source=str(prompt_file(kind, place)))
    stages = {
        name: replace(
            stage, settings=_small(as_table(settings[name]), place), iterations=ITERATIONS, budget_passes=0,
            prompts=stage.prompts and prompts,
        )
        for name, stage in run.stages.items()
    }  # fmt: skip
    folder = str(family_folder(kind, families))
    start, side = folder if run.backbone.student_path else "", RESOLUTION.get(kind, 0)
    backbone = replace(run.backbone, path=folder, student_path=start, resolution=side)
    return replace(
        run, device="cpu", processes=1, backbone=backbone, prompts=prompts, trainer={}, stages=stages,
        canary=CanaryConfig(), checkpoint_every=1, log_every=1, benchmark="",
    )  # fmt: skip


def _small(table: Mapping[str, Any], place: Path) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            small[key] = _small(value, place)
        elif key == "folder":
            small[key] = str(place / "teacher-samples")
        else:
            small[key] = min(value, SMALL[key]) if key in SMALL else value
    return small


def faults(method: str, run: RunConfig, place: Path) -> list[str]:
    """Train twice, without and with interruptions; return what is wrong, nothing where all is well."""
    whole = Loop(method, run, place / "whole")
    before = [p.detach().clone() for p in whole.backbone.parameters("student")]
    whole.train()
    moved = any(not torch.equal(a, b) for a, b in zip(before, whole.backbone.parameters("student"), strict=True))
    shutil.rmtree(place / "teacher-samples", ignore_errors=True)
    stops = 0
    while not _ran_through(Loop(method, run, place / "resumed")):
        stops += 1
    found = differences(left_behind(place / "resumed"), left_behind(place / "whole"))
    found += [] if moved else ["the student has not moved"]
    return found + ([] if stops == len(run.stages) else [f"{stops} stops in {len(run.stages)} stages"])


def _ran_through(loop: Loop) -> bool:
    """Train until the second iteration of a stage is saved, or to the end; return whether it was the end."""
    save = loop._checkpoint

    def stop(trainer: Trainer, position: Position) -> None:
        save(trainer, position)
        if position.iteration == STOP:
            raise Interrupted

    with patch.object(loop, "_checkpoint", stop):
        try:
            loop.train()
        except Interrupted:
            return False
    return True


def digest(preset: Preset) -> str:
    """Return the digest of all that a verdict is known by."""
    found = hashlib.sha256(json.dumps([preset.settings.method, preset.run], sort_keys=True).encode())
    for path in [Path(__file__), *sorted((ROOT / "trainers").rglob("*.py"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def tried(preset: Preset, families: Path) -> str:
    """Return "resumes bit for bit", or what is wrong with the preset."""
    with tempfile.TemporaryDirectory() as place, stand_ins():
        try:
            run = shrunken_run(preset, families, Path(place))
            found = faults(preset.settings.method, run, Path(place))
        except UserError as error:
            found = [str(error)]
    return "; ".join(found) or "resumes bit for bit"


def main(arguments: Arguments) -> int:
    """Try every preset that is not known to pass; print the table; return the exit code."""
    chosen = [preset for preset in read_presets().values() if fnmatch(preset.name, arguments.only)]
    digests = {preset.name: digest(preset) for preset in chosen}
    known: dict[str, str] = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.is_file() else {}
    KNOWN.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    print("| Preset | Method | Family | Stages | Result |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as families:
        for preset in chosen:
            key, run, began = digests[preset.name], preset.build(), time.monotonic()
            result = known.get(key) or f"{tried(preset, Path(families))} ({time.monotonic() - began:.0f} s)"
            if result.startswith("resumes"):
                known[key] = result
                KNOWN.write_text(json.dumps(known, indent=1), encoding="utf-8")
            failed += key not in known
            row = (f"`{preset.name}`", preset.settings.method, run.backbone.kind, ", ".join(run.stages), result)
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{len(chosen)} presets, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m tests.studies.presets", description=__doc__))))
