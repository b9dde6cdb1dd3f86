"""Makes every weight of the micro world, stage by stage: python -m benchmarks.micro.make all

Each stage continues where it was cut (checkpoints under --work) and is skipped where its result is there.
README.md beside this file tells steps, time and what came out.
"""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from benchmarks.cli import parse
from benchmarks.micro.aesthetic import save_aesthetic
from benchmarks.micro.autoencoder import AutoencoderConfig, train_autoencoder
from benchmarks.micro.check import (
    auc_table,
    check_detector,
    digests,
    draw_test,
    teacher_table,
    write_prompts,
)
from benchmarks.micro.image_text import ImageTextConfig, Name, train_image_text
from benchmarks.micro.judge import accuracies, judge_all
from benchmarks.micro.pictures import PicturesConfig, labelled_pictures
from benchmarks.micro.pipeline import PROTOCOL, assemble, draw, export, load
from benchmarks.micro.renders import WEAK_WEIGHTS
from benchmarks.micro.teacher import Networks, TeacherConfig, train_teacher
from benchmarks.micro.training import Log
from benchmarks.protocol import write_protocol
from benchmarks.screen import guarded
from metrics.micro.prompts import prompt_sets

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PIPELINE = HERE / "pipeline"
SCORERS = ROOT / "metrics" / "micro"
SNAPSHOTS = (
    4000,
    12_000,
    24_000,
)  # of the first training: early teachers, whose mistakes the image-text models learn from
REFINE = TeacherConfig(steps=8000, tag_weights=WEAK_WEIGHTS, muon_lr=2e-3, adamw_lr=1e-3, kinds_weight=0.0, seed=2)
MARK = "<!-- written by `make check`; do not edit below -->"


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """What every stage takes."""

    work: Path = ROOT / "runs" / "micro-make"
    """checkpoints, logs and cached pictures; may be deleted when all is made"""

    @abstractmethod
    def run(self) -> None:
        """Do the stage's work."""


@dataclass(frozen=True, kw_only=True)
class Prompts(Stage):
    """Write the test suite's prompts and those for tuning."""

    def run(self) -> None:
        write_prompts(HERE)


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Stage):
    """Train the autoencoder on renders."""

    config: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def run(self) -> None:
        train_autoencoder(self.config, self.work).save_pretrained(self.work / "vae")


@dataclass(frozen=True, kw_only=True)
class Teacher(Stage):
    """Train transformer and text encoders on latents; `refine` and `encoders` start from snapshots of them."""

    config: TeacherConfig = field(default_factory=TeacherConfig)
    watch_every: int = 2000
    """steps between two looks at the dev prompts"""

    def run(self) -> None:
        self.train(self.work, None, SNAPSHOTS)

    def train(self, work: Path, start: Path | None, snapshots: Sequence[int]) -> None:
        """Train in a folder, from a pipeline's weights where `start` is given; export the pipeline."""
        vae = load_autoencoder(self.work)
        records = prompt_sets()["dev"]

        def watch(step: int, average: Networks, log: Log) -> None:
            if step in snapshots:
                export(average, vae, work / "snapshots" / str(step))
            if step % self.watch_every and step != self.config.steps:
                return
            for steps, guidance in ((28, PROTOCOL.guidance_scale), (4, 1.0)):
                pictures = draw(assemble(average, vae), [r["prompt"] for r in records], step, steps, guidance)
                shares = accuracies(judge_all(pictures, records), records)
                log(
                    f"dev, {steps} steps, guidance {guidance}: " + " ".join(f"{k} {v:.3f}" for k, v in shares.items())
                )

        networks = train_teacher(self.config, vae, work, watch, load(start) if start else None)
        export(networks, vae, PIPELINE)
        write_protocol(PROTOCOL, PIPELINE)


@dataclass(frozen=True, kw_only=True)
class Refine(Teacher):
    """Train the teacher on, at a lower rate and mostly on its weak categories, and export the pipeline."""

    config: TeacherConfig = field(default_factory=lambda: REFINE)

    def run(self) -> None:
        self.train(self.work / "refine", self.work / "snapshots" / str(SNAPSHOTS[-1]), snapshots=())


@dataclass(frozen=True, kw_only=True)
class Encoders(Stage):
    """Draw and label pictures, and train the two image-text models on them."""

    models: tuple[Name, ...] = ("clip", "clip_heldout")
    """which of the two to make"""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    clip: ImageTextConfig = field(default_factory=partial(ImageTextConfig, name="clip"))
    clip_heldout: ImageTextConfig = field(default_factory=partial(ImageTextConfig, name="clip_heldout"))

    def run(self) -> None:
        vae = load_autoencoder(self.work)
        early = [self.work / "snapshots" / str(step) for step in SNAPSHOTS]
        for config in (getattr(self, name) for name in self.models):
            data = labelled_pictures(self.pictures, config, early, PIPELINE, vae, self.work)
            train_image_text(config, data, self.work).save(SCORERS / config.name)


@dataclass(frozen=True, kw_only=True)
class Aesthetic(Stage):
    """Fit the aesthetic score on clean and degraded renders."""

    def run(self) -> None:
        save_aesthetic(SCORERS / "aesthetic")


@dataclass(frozen=True, kw_only=True)
class Check(Stage):
    """Measure what the README claims, on fresh noise and test prompts, and write it there."""

    images_per_prompt: int = 4

    def run(self) -> None:
        detector = check_detector()
        records = prompt_sets()["test"]
        drawn = draw_test(PIPELINE, records, self.images_per_prompt, self.work)
        files = digests([PIPELINE, *(SCORERS / name for name in ("clip", "clip_heldout", "aesthetic"))], ROOT)
        total = sum(entry["bytes"] for entry in files.values())
        recipes = {
            "autoencoder": asdict(AutoencoderConfig()),
            "teacher": asdict(TeacherConfig()),
            "refine": asdict(REFINE),
            "clip": asdict(ImageTextConfig(name="clip")),
            "clip_heldout": asdict(ImageTextConfig(name="clip_heldout")),
        }
        manifest = json.dumps({"schema_version": 1, "recipes": recipes, "files": files}, indent=1)
        (HERE / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
        report = [
            f"Detector on 2,000 renders: {100 * detector['own prompt']:.2f} % of their own prompts judged right, "
            f"{100 * detector['wrong prompt']:.2f} % of wrong prompts judged wrong.",
            f"Teacher, % right, test suite, {self.images_per_prompt} images per prompt, drawn fresh:",
            teacher_table(drawn, records),
            "Image-text models: area under the curve, right against wrong pictures of the teacher, on test prompts "
            "(of two objects, positions and attributes: held-out combinations only):",
            auc_table(drawn, records),
            f"All weights, configs and tokenizers: {total / 1e6:.2f} MB in {len(files)} files (manifest.json).",
        ]
        readme = HERE / "README.md"
        head = readme.read_text(encoding="utf-8").partition(MARK)[0]
        readme.write_text(head + MARK + "\n\n" + "\n\n".join(report) + "\n", encoding="utf-8")
        print("\n\n".join(report))


@dataclass(frozen=True, kw_only=True)
class All(Stage):
    """Every stage in order."""

    def run(self) -> None:
        for stage in (Prompts, Autoencoder, Teacher, Refine, Encoders, Aesthetic, Check):
            stage(work=self.work).run()


def load_autoencoder(work: Path) -> "AutoencoderKL":
    """Return the autoencoder of the first stage, or the shipped one where that stage was not run."""
    from diffusers import AutoencoderKL

    folder = work / "vae" if (work / "vae").is_dir() else PIPELINE / "vae"
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return vae.eval().requires_grad_(False)


Command = (
    Annotated[Prompts, tyro.conf.subcommand("prompts")]
    | Annotated[Autoencoder, tyro.conf.subcommand("autoencoder")]
    | Annotated[Teacher, tyro.conf.subcommand("teacher")]
    | Annotated[Refine, tyro.conf.subcommand("refine")]
    | Annotated[Encoders, tyro.conf.subcommand("encoders")]
    | Annotated[Aesthetic, tyro.conf.subcommand("aesthetic")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[All, tyro.conf.subcommand("all")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the stage that the command line names; return the exit code."""
    stage: Stage = parse(Command, prog="python -m benchmarks.micro.make", description=__doc__, args=args)
    stage.run()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
