"""Check a run directory against itself: python -m benchmarks.verify runs/teacher-micro --recompute

Always: every picture is the one that was drawn, every value follows from the evidence beside the result. With
--recompute also, from the pictures up:

    pictures → rows     every picture is scored again; rows agree to 1e-5, on one machine to the last bit
    rows → result       all numbers, counts, intervals and settings are computed again; result.json and the evidence
                        beside it must be the same bytes, but for what stands under `volatile`
"""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError, build
from benchmarks.prompts import read_prompts
from benchmarks.protocol import Protocol
from benchmarks.resummarise import check_result
from benchmarks.rows import read_rows
from benchmarks.score import identify
from benchmarks.screen import guarded
from benchmarks.store import JOURNAL, RESULT, ImageSet, Journal, Run, read_header
from leaderboards import evidence
from leaderboards.schema import Result, read_result
from metrics.base import Batch, import_plugins
from metrics.images import read_image
from metrics.loaded import Scorer

# Of rows scored again, relative to a value's size above 1: another machine, other last bits (ImageReward's move by
# 3e-6 from one processor to another, HPSv3's by 5e-6). Statistics have none.
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Check that a run's result follows from its pictures."""

    run: tyro.conf.Positional[Path]
    """Run directory"""
    recompute: bool = False
    """Score every picture again"""
    device: str = "cpu"
    plugin: tuple[str, ...] = ()
    """Modules that register metrics of your own"""


def verify(path: Path, recompute: bool = False, device: str = "cpu") -> list[str]:
    """Return one line for each thing that was checked. Raises UserError naming the first that does not hold."""
    run, image_sets = open_run(path)
    result = read_result(path / RESULT)
    lines = []
    for image_set in image_sets:
        lines.append(_check_pictures(run, image_set))
        if recompute:
            lines += _score_again(run, image_set, result, device)
    if result.evidence:
        table = evidence.read(path / result.evidence.file, result.evidence.digest, result.evidence.rows)
        evidence.check(result, table)
        if recompute:
            lines.append(check_result(run, image_sets, result))
        lines.append(f"result: its values follow from {table.num_rows} rows of evidence")
    return lines


def open_run(path: Path) -> tuple[Run, list[ImageSet]]:
    """Return an existing run and its image sets, read from its own files. Raises UserError where they are damaged."""
    header = read_header(path)
    image_sets = []
    for name, settings in header["sets"].items():
        where = f"{path / 'run.json'} sets.{name}"
        image_set = _as_image_set(path, name, settings, where)
        if image_set.prompts.digest != settings.get("prompts_digest"):
            raise UserError(f"{path / name / 'prompts.jsonl'}: is not the prompt set that the run was made with")
        image_sets.append(image_set)
    return Run(path, header["block_size"], Journal(path / JOURNAL)), image_sets


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    import_plugins(arguments.plugin)
    for line in verify(arguments.run, arguments.recompute, arguments.device):
        print(line)
    return 0


def _as_image_set(path: Path, name: str, settings: Any, where: str) -> ImageSet:
    if not isinstance(settings, dict) or Path(name).name != name:
        raise UserError(f"{where}: not a run of this version")
    protocol, images = settings.get("protocol"), settings.get("images_per_prompt")
    if not isinstance(images, int):
        raise UserError(f"{where}.images_per_prompt: expected a whole number, not {images!r}")
    prompts = read_prompts(path / name / "prompts.jsonl")
    return ImageSet(
        name=name,
        prompts=replace(prompts, name=str(settings.get("prompt_set", prompts.name))),  # the file's is of the copy
        images_per_prompt=images,
        protocol=build(Protocol, protocol, f"{where}.protocol") if protocol is not None else None,
    )


def _check_pictures(run: Run, image_set: ImageSet) -> str:
    """Compare every block's pictures with the digest that was noted when they were drawn."""
    for block in range(run.count_blocks(image_set)):
        items = run.block(image_set, block)
        entry = run.drawn(image_set, block)
        if entry is None:
            raise UserError(f"{run.path / image_set.name}: block {block} is not drawn; start the run again")
        digests = [hashlib.sha256(run.image(image_set.name, item).read_bytes()).digest() for item in items]
        if hashlib.sha256(b"".join(digests)).hexdigest() != entry.get("pictures"):
            first = run.image(image_set.name, items[0])
            raise UserError(f"{first}: this picture or another of its block ({len(items)}) is not the one drawn")
    return f"{image_set.name}: {len(image_set.items)} pictures are those drawn"


def _score_again(run: Run, image_set: ImageSet, result: Result, device: str) -> list[str]:
    """Measure every picture again, and compare the rows."""
    metrics = sorted(
        {
            name
            for task in result.tasks
            for name, metric in task.metrics.items()
            if metric.status == "ok" and run.evidence(image_set.name, name).exists()
        }
    )
    scorer, worst = Scorer(metrics, device), dict.fromkeys(metrics, 0.0)
    for block in range(run.count_blocks(image_set)):
        items = run.block(image_set, block)
        images = [read_image(run.image(image_set.name, item)) for item in items]
        batch = Batch(prompts=[item.prompt for item in items], seeds=[item.seed for item in items])
        again = scorer.score(images, batch)
        for metric in metrics:
            stored = read_rows(run.evidence(image_set.name, metric), items, identify(metric, scorer))
            for column, values in stored.items():
                worst[metric] = max(worst[metric], _distance(values, again[metric][column]))
    for metric, distance in worst.items():
        if distance > TOLERANCE:
            path = run.evidence(image_set.name, metric)
            raise UserError(f"{path}: scored again, a row differs by {distance:.3g}; delete it to measure again")
    return [f"{image_set.name}: {metric} scored again, {_in_words(distance)}" for metric, distance in worst.items()]


def _in_words(distance: float) -> str:
    return f"largest difference {distance:.1g}: another machine?" if distance else "equal to the last bit"


def _distance(stored: Any, again: Any) -> float:
    """Return the largest difference of two columns; infinite where texts or shapes differ."""
    if isinstance(stored, list) or isinstance(again, list):
        return 0.0 if stored == again else float("inf")
    again = again.detach().cpu().reshape(len(again), *stored.shape[1:]).to(torch.float64)
    stored = stored.to(torch.float64)
    if not torch.equal(stored.isnan(), again.isnan()):  # a picture without a value is a fact, too
        return float("inf")
    return float(((stored - again).abs() / stored.abs().clamp_min(1)).nan_to_num(nan=0.0).max())


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.verify"))))
