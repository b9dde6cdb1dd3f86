"""How much of a number is the protocol's: python -m benchmarks.sensitivity MODEL --limit 32

A model is drawn again with one setting changed at a time, from the same noise, and held against itself under its own
protocol, image by image:

    sampler   each of the others                        steps    half and twice as many
    eta       CPS at 0, 0.5 and 1                        dtype    another number format of the network
    resize    the same pictures, scored by the differentiable preprocessing (tensors) instead of the official one

The difference is paired over (prompt, seed), with interval, and p after Holm over the whole card. A difference
between two models that is smaller than one of these is a difference of protocols. Runs stand below
runs/<model>-sensitivity/, resumable like any other; the card is sensitivity.json and sensitivity.md there.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.models import Pipeline
from benchmarks.plan import Overrides, make_plan
from benchmarks.protocol import Protocol, Sampler
from benchmarks.screen import guarded
from benchmarks.store import ImageSet, Run, write_whole
from benchmarks.suites import read_suite
from benchmarks.summarise import Summarised
from benchmarks.verify import open_run
from benchmarks.workflow import RUNS, Prepared, Settings, prepare, work
from leaderboards.columns import number
from leaderboards.evidence import split, stated_metrics
from leaderboards.statistics import Scores, compare, holm
from leaderboards.store import file_stem
from leaderboards.table import escape_markdown
from metrics.images import read_image, to_tensor
from metrics.loaded import LoadedMetric

Factor = Literal["sampler", "steps", "eta", "dtype", "resize"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
Table = Mapping[tuple[str, str], Scores]  # by (task, metric)
BATCH = 16  # pictures scored at once


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure how much the numbers of a model depend on the protocol."""

    model: tyro.conf.Positional[str]
    """Diffusers folder, LoRA folder or hub id"""
    suite: str = "micro"
    """Name of a suite, or a TOML file"""
    factors: tuple[Factor, ...] = FACTORS
    """What to change"""
    limit: int | None = None
    """Only this many prompts of each task"""
    seeds: int | None = None
    """Only this many images of each prompt"""
    out: Path | None = None
    """Folder of the runs and the card; default runs/<model>-sensitivity"""
    device: str = "auto"
    plugin: tuple[str, ...] = ()
    """Modules that register metrics of your own"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting changed."""

    factor: Factor
    setting: str  # "renoise", "8 steps"
    protocol: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric under one changed setting; without a difference where it could not be measured, with the reason."""

    factor: str
    setting: str
    task: str
    metric: str
    own: float | None = None
    changed: float | None = None
    difference: float | None = None  # changed - own
    low: float | None = None
    high: float | None = None
    p: float | None = None  # after Holm
    n_prompts: int = 0
    n_pairs: int = 0
    reason: str = ""


def variants(own: Protocol, factors: Sequence[Factor]) -> Iterator[Variant]:
    """Yield every change of the protocol; `resize` changes none, and explicit sigmas hold for their number only."""
    steps = own.num_inference_steps
    for sampler in get_args(Sampler):
        if "sampler" in factors and sampler != own.sampler:
            yield Variant(factor="sampler", setting=sampler, protocol={"sampler": sampler})
    for count in sorted({max(1, steps // 2), 2 * steps} - {steps}):
        if "steps" in factors:
            changes = {"num_inference_steps": count, "sigmas": ()}
            yield Variant(factor="steps", setting=f"{count} steps", protocol=changes)
    for eta in (0.0, 0.5, 1.0):
        if "eta" in factors and (own.sampler, own.eta) != ("cps", eta):
            yield Variant(factor="eta", setting=f"CPS, η = {eta:g}", protocol={"sampler": "cps", "eta": eta})
    if "dtype" in factors:
        other = "float32" if own.dtype != "float32" else "bfloat16"
        yield Variant(factor="dtype", setting=other, protocol={"dtype": other})


def sensitivity(arguments: Arguments) -> tuple[str, Path, list[Line]]:
    """Draw, score and compare all variants; return the model's name, the folder, the card's lines.

    Raises UserError for what is no pipeline, and where the model's own protocol cannot run."""
    overrides = Overrides(limit=arguments.limit, seeds=arguments.seeds)
    settings = Settings(board=None, device=arguments.device, plugins=arguments.plugin, overrides=overrides)
    prepared = prepare(arguments.model, arguments.suite, settings)
    model = prepared.model
    if not isinstance(model, Pipeline):
        raise UserError(f"{arguments.model}: pictures made elsewhere have no protocol to change")
    folder = arguments.out or RUNS / f"{file_stem(model.name)}-sensitivity"
    unchanged = replace(prepared, settings=replace(settings, out=folder / "own"))
    own = _run(unchanged)
    lines: list[Line] = []
    for variant in variants(model.protocol, arguments.factors):
        try:
            changed = _run(_changed(prepared, arguments.suite, variant, folder))
        except UserError as error:
            lines.append(Line(factor=variant.factor, setting=variant.setting, task="", metric="", reason=str(error)))
            continue
        lines += _lines(variant.factor, variant.setting, own, split(changed.evidence))
    if "resize" in arguments.factors:
        lines += _lines("resize", "tensors", own, _scored_as_tensors(unchanged, own))
    return model.name, folder, adjusted(lines)


def adjusted(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with p adjusted by Holm over all that have one."""
    found = iter(holm([line.p for line in lines if line.p is not None]))
    return [line if line.p is None else replace(line, p=next(found)) for line in lines]


def to_markdown(name: str, lines: Sequence[Line]) -> str:
    """Return the card as a table."""
    head = ("factor", "setting", "metric", "own", "changed", "difference", "95 % interval", "p (Holm)", "prompts")
    rows: list[tuple[str, ...]] = [head, ("---",) * 3 + ("---:",) * 6]
    for line in lines:
        interval = "–" if line.low is None else f"{number(line.low)} to {number(line.high)}"
        numbers = (number(line.own), number(line.changed), number(line.difference), interval)
        p = "–" if line.p is None else f"{line.p:.4f}"
        told = (line.factor, line.setting, f"{line.task}/{line.metric}" if line.metric else line.reason)
        rows.append((*map(escape_markdown, told), *numbers, p, str(line.n_prompts)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"# Protocol sensitivity of {escape_markdown(name)}\n\nDifference: changed − own, paired.\n\n{table}\n"


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    name, folder, lines = sensitivity(arguments)
    card = {"model": name, "lines": [asdict(line) for line in lines]}
    text = to_markdown(name, lines)
    write_whole(folder / "sensitivity.json", (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "sensitivity.md", text.encode())
    print(text, end="")
    return 0


def _run(prepared: Prepared) -> Summarised:
    found = work(prepared)
    assert found is not None  # all stages end with the summary
    return found


def _changed(prepared: Prepared, suite: str, variant: Variant, folder: Path) -> Prepared:
    """The same model on the same suite, with the variant's settings over those of every task."""
    read = read_suite(suite)
    tasks = tuple(replace(task, protocol={**task.protocol, **variant.protocol}) for task in read.tasks)
    settings = replace(prepared.settings, out=folder / file_stem(f"{variant.factor}-{variant.setting}"))
    plan = make_plan(replace(read, tasks=tasks), prepared.model, settings.overrides, settings.prompts)
    return replace(prepared, plan=plan, settings=settings)


def _lines(factor: str, setting: str, own: Summarised, changed: Table) -> Iterator[Line]:
    ours = split(own.evidence)
    for task, name, metric in stated_metrics(own.result):
        if (task.name, name) not in changed:
            continue
        theirs = changed[task.name, name]
        how: Literal["categories", "prompts"] = "categories" if metric.aggregate == "categories" else "prompts"
        found = compare(theirs, ours[task.name, name], how)
        yield Line(
            factor=factor,
            setting=setting,
            task=task.name,
            metric=name,
            own=metric.value,
            changed=None if metric.value is None else metric.value + found.difference,
            difference=found.difference,
            low=found.low,
            high=found.high,
            p=found.p,
            n_prompts=found.n_prompts,
            n_pairs=found.n_pairs,
        )


def _scored_as_tensors(prepared: Prepared, own: Summarised) -> Table:
    """Return what the differentiable path makes of the pictures of a run, by (task, metric)."""
    run, _ = open_run(prepared.out)
    sets = {task.spec.name: task.image_set for task in prepared.plan.running}
    official, found = split(own.evidence), {}
    for task, name, _metric in stated_metrics(own.result):
        metric = LoadedMetric(name, prepared.device)
        if metric.card.differentiable:
            rows = official[task.name, name]
            found[task.name, name] = replace(rows, values_N=_rewards(metric, run, sets[task.name], rows))
    return found


def _rewards(metric: LoadedMetric, run: Run, image_set: ImageSet, rows: Scores) -> np.ndarray:
    """Return the differentiable score of every row's picture, float32 [N]."""
    import torch

    items = {(item.prompt.id, item.seed): item for item in image_set.items}
    chosen = [items[key] for key in zip(rows.prompt_ids, rows.seeds, strict=True)]
    values: list[float] = []
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            images = to_tensor([read_image(run.image(image_set.name, item)) for item in batch])
            values += metric.reward(images, [item.prompt for item in batch]).cpu().tolist()
    return np.array(values, np.float32)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.sensitivity", description=__doc__))))
