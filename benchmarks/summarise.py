"""Stage 3: evidence → result. A pure function of the run directory: nothing is drawn or measured here.

The result is `ranked`, unless something of it is missing (`partial`: reduced by flags, or a metric failed) or the
weights of a metric are not the ones this project ships (`synthetic`).
"""

import hashlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from PIL import Image

from benchmarks.config import UserError, as_table
from benchmarks.cost import measured
from benchmarks.manifest import not_shipped
from benchmarks.models import Model
from benchmarks.overlap import trained_on
from benchmarks.pictures import PictureFolder
from benchmarks.plan import NOT_ASKED, Plan, PlannedTask
from benchmarks.seen import Row, leaves_more_than_numbers, seen, told_rows
from benchmarks.store import RESULT, ImageSet, Item, Run, write_whole
from benchmarks.values import identity_fields, value_of
from leaderboards import evidence
from leaderboards import schema as contract
from leaderboards.schema import Cost, Evidence, MetricResult, Result, Task, dump_result
from leaderboards.store import Sample, file_stem
from metrics.base import Card
from metrics.loaded import Scorer

ROOT = Path(__file__).resolve().parent.parent
GALLERY_PROMPTS, GALLERY_SEEDS = 32, 2
PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Summarised:
    """A result, the evidence its values follow from, and sample pictures for its page."""

    result: Result
    evidence: pa.Table
    gallery: list[Sample]


def summarise(run: Run, plan: Plan, model: Model, failed: Mapping[tuple[str, str], str]) -> Summarised:
    """Return the result of a run; `failed` holds the reasons by (image set, metric id)."""
    scorer = Scorer(sorted({metric for task in plan.tasks for metric in task.spec.metrics}))
    tasks, tables = [], [evidence.COLUMNS.empty_table()]
    for planned in plan.tasks:
        metrics: dict[str, MetricResult] = {}
        for metric in (*planned.metrics, *planned.skipped, *planned.unfit):
            reason = planned.reason or planned.skipped.get(metric, "")
            card = scorer.card(metric)
            if reason:
                metrics[metric] = _without_value(card, "skipped", reason)
                continue
            try:
                if broken := planned.unfit.get(metric) or failed.get((planned.image_set.name, metric)):
                    raise UserError(broken)
                metrics[metric], table = value_of(
                    run, planned.image_set, planned.spec.name, planned.images_per_prompt, card, scorer
                )
                tables.append(table)
            except UserError as error:
                metrics[metric] = _without_value(card, "failed", str(error))
        tasks.append(_as_task(run, planned, model, metrics))
    result = Result(
        status=_status(plan, tasks),
        model=_as_model(model),
        suite=plan.suite,
        tasks=tasks,
        cost=Cost(
            parameters=model.parameters,
            nfe=next((t.nfe for t in tasks if t.nfe is not None), None),
            components={} if isinstance(model, PictureFolder) else model.components,
        ),
        provenance=provenance(),
        evidence=None,
        volatile=_volatile(run),
    )
    return Summarised(result, pa.concat_tables(tables), list(_gallery(run, plan)))


def write_result(run: Run, summarised: Summarised) -> Result:
    """Write `result.json` and its evidence into the run directory; return the result with the evidence's digest."""
    content = evidence.pack(summarised.evidence)
    name = f"{file_stem(summarised.result.model.name)}.evidence.parquet"
    digest = hashlib.sha256(content).hexdigest()
    stated = Evidence(file=name, digest=digest, rows=summarised.evidence.num_rows)
    result = summarised.result.model_copy(update={"evidence": stated})
    write_whole(run.path / name, content)
    write_whole(run.path / RESULT, dump_result(result).encode())
    return result


def provenance() -> dict[str, str]:
    """Return the versions of what computes the values."""
    found = {"python": platform.python_version()}
    for package in ("fewstep-bench", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a clone that was not installed
    return found


def _as_task(run: Run, planned: PlannedTask, model: Model, metrics: dict[str, MetricResult]) -> Task:
    image_set, reduced = planned.image_set, planned.reduced
    overlap = trained_on(model.folder, image_set.prompts)
    protocol = as_table(image_set.protocol) if image_set.protocol else {}
    canonical = json.dumps(protocol, sort_keys=True, separators=(",", ":"))
    broken = [name for name, metric in metrics.items() if metric.status == "failed"]
    reason = planned.reason or reduced or (f"failed: {', '.join(broken)}" if broken else "")
    return Task(
        name=planned.spec.name,
        prompt_set=image_set.prompts.name,
        prompts_digest=image_set.prompts.digest,
        n_prompts=len(image_set.prompts.prompts),
        n_trained_prompts=None if overlap is None else len(overlap),
        images_per_prompt=planned.images_per_prompt,
        protocol=protocol,
        protocol_digest=image_set.protocol.digest()
        if image_set.protocol
        else hashlib.sha256(canonical.encode()).hexdigest(),
        nfe=None if planned.reason else _nfe(run, planned),
        metrics=metrics,
        status="skipped" if planned.reason else "partial" if reason else "ok",
        reason=reason,
    )


def _nfe(run: Run, planned: PlannedTask) -> int | None:
    """Return the network passes per image as they were counted while drawing; None for pictures made elsewhere."""
    entry = run.drawn(planned.image_set, 0)
    count = (entry or {}).get("nfe")
    return count if isinstance(count, int) else None


def _without_value(card: Card, status: Literal["skipped", "failed"], reason: str) -> MetricResult:
    # A board is read elsewhere: paths of this machine's clone mean nothing there.
    return MetricResult(**identity_fields(card), status=status, reason=reason.replace(f"{ROOT}{os.sep}", ""))


def _as_model(model: Model) -> contract.Model:
    training = model.training
    return contract.Model(
        name=model.name,
        weights_digest=model.digest,
        base=model.base,
        method=training.method if training else "",
        trained_on=list(training.rewards) if training else [],
        training=training,
    )


def _status(plan: Plan, tasks: Sequence[Task]) -> Literal["ranked", "synthetic", "partial"]:
    values = [name for task in tasks for name, metric in task.metrics.items() if metric.status == "ok"]
    left_out = any(planned.reason == NOT_ASKED for planned in plan.tasks)
    if left_out or any(task.status == "partial" for task in tasks) or not values:
        return "partial"
    return "synthetic" if not_shipped(sorted(set(values))) else "ranked"


def _gallery(run: Run, plan: Plan) -> Iterator[Sample]:
    """Yield sample pictures: prompts spread evenly over each image set, the same ones for every model."""
    for image_set in plan.image_sets:
        task = next(t for t in plan.running if t.image_set.name == image_set.name)
        chosen = image_set.prompts.spread(GALLERY_PROMPTS // len(plan.image_sets) or 1)
        told = _told(run, plan, image_set, {prompt.id for prompt in chosen.prompts})
        for prompt in chosen.prompts:
            for seed in range(min(GALLERY_SEEDS, task.images_per_prompt)):
                png = run.image(image_set.name, Item(prompt, seed)).read_bytes()
                size = Image.open(io.BytesIO(png), formats=["PNG"]).size
                views = {
                    metric: seen(rows[prompt.id, seed], prompt, size)
                    for metric, rows in told.items()
                    if (prompt.id, seed) in rows
                }
                yield Sample(
                    task=task.spec.name,
                    prompt_id=prompt.id,
                    prompt=prompt.text,
                    category=prompt.category,
                    split=prompt.split,
                    seed=seed,
                    seen={metric: view for metric, view in views.items() if view},
                    png=png,
                )


def _told(run: Run, plan: Plan, image_set: ImageSet, prompt_ids: set[str]) -> dict[str, dict[tuple[str, int], Row]]:
    """Return the rows of metrics that left boxes, reasons or answers, by metric id."""
    paths = {metric: run.evidence(image_set.name, metric) for metric in plan.metrics_of(image_set)}
    return {
        metric: told_rows(path, prompt_ids)
        for metric, path in paths.items()
        if path.is_file() and leaves_more_than_numbers(path)
    }


def _volatile(run: Run) -> dict[str, contract.JsonValue]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "host": host(),
        "seconds_drawing": round(sum(entry.get("seconds", 0.0) for entry in run.journal.drawn().values()), 1),
        "peak_memory_mib": _peak_memory_mib(),
        "cost": _measured_cost(run),
        "commit": commit(),
    }


def _measured_cost(run: Run) -> dict[str, contract.JsonValue]:
    """Return what an image of each image set cost where it was drawn, by the set's name."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _), entry in run.journal.drawn().items():
        by_set.setdefault(name, []).append(entry)
    found = {name: measured(entries, run.block_size) for name, entries in sorted(by_set.items())}
    return {name: cost for name, cost in found.items() if cost}


def _peak_memory_mib() -> int:
    """Return this process's largest resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def host() -> str:
    """Return the machine in words: system and number of processors."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def commit() -> str:
    """Return the git commit this code stands at, with "+" where the tree differs from it; "" outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
