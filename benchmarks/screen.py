"""What the command shows: the catalogue, the plan of a run, the table at its end; and faults as one line."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.budget import fitting_block_size
from benchmarks.config import UserError
from benchmarks.estimate import EFFICIENCY, Device, Estimate, estimate, find_device
from benchmarks.model_cards import available_cards, card_protocol, find_card
from benchmarks.models import Pipeline
from benchmarks.store import ImageSet
from benchmarks.suites import available_suites, read_suite
from leaderboards.schema import MetricResult, Result, ResultError
from metrics import commands
from metrics.base import available, import_plugins
from metrics.loaded import Scorer
from metrics.weights import missing_table

if TYPE_CHECKING:
    from benchmarks.workflow import Prepared

PRODUCTS = 5  # timed for it


def guarded(command: Callable[[], int]) -> int:
    """Run a command as `metrics` runs its own; return its exit code. Invalid results are the user's to mend, too."""
    return commands.guarded(command, (UserError, ResultError))


def show_catalogue(plugins: Sequence[str]) -> None:
    """List suites, metrics and cards of published models."""
    import_plugins(plugins)
    suites = table_of("suite", "tasks", "description")
    for name in available_suites():
        suite = read_suite(name)
        suites.add_row(name, ", ".join(task.name for task in suite.tasks), suite.description)
    metrics = table_of("metric", "title", "unit", "better", "weights")
    scorer = Scorer(available())
    for name in scorer.metrics:
        card = scorer.card(name)
        better = "higher" if card.higher_is_better else "lower"
        metrics.add_row(name, card.title, card.unit, better, scorer.missing(name) or "here")
    models = table_of("published model", "title", "base", "steps", "guidance", "licence")
    for name in available_cards():
        if published := find_card(name):
            how = card_protocol(published, name)
            steps, guidance = str(how.num_inference_steps), f"{how.guidance_scale:g}"
            models.add_row(name, published.title, published.base, steps, guidance, published.licence)
    print_tables(suites, metrics, models)


def show_plan(prepared: "Prepared", device: str = "") -> None:
    """Show image sets, metrics, weights, passes, operations, memory, and about how long it takes.

    device: a name of benchmarks.estimate.DEVICES; "" = the present one. Raises UserError for an unknown one."""
    stated = find_device(device) if device else None
    plan, model = prepared.plan, prepared.model
    sets = table_of("image set", "prompts", "× images", "drawn", "passes each", "pictures")
    seconds, costs = 0.0, []
    for image_set in plan.image_sets:
        total = len(image_set.items)
        drawn = _already_drawn(prepared.out, image_set)
        passes, size = "-", "-"
        if image_set.protocol:
            per_image = image_set.protocol.num_inference_steps * (2 if image_set.protocol.guided else 1)
            passes, size = str(per_image), f"{image_set.protocol.width}x{image_set.protocol.height}"
            if isinstance(model, Pipeline):
                cost = estimate(model, image_set.protocol, _block_size(prepared))
                here = stated or Device(operations_per_second(prepared.device, image_set.protocol.dtype), 0)
                seconds += cost.seconds((total - drawn) * per_image, here)
                costs.append(_cost_line(image_set.name, cost, per_image, stated))
        prompts = len(image_set.prompts.prompts)
        sets.add_row(image_set.name, str(prompts), str(image_set.images_per_prompt), f"{drawn}/{total}", passes, size)
    metrics = table_of("task", "metric", "weights")
    for task in plan.tasks:
        if task.reason:
            metrics.add_row(task.spec.name, f"skipped ({task.n_images} images)", task.reason)
            continue
        for name in task.metrics:
            metrics.add_row(task.spec.name, name, "here")
        for name, reason in task.skipped.items():
            metrics.add_row(task.spec.name, name, f"skipped: {reason}")
        for name, reason in task.unfit.items():
            metrics.add_row(task.spec.name, name, f"fails: {reason}")
    print_tables(sets, metrics)
    parameters = f"{model.parameters / 1e6:,.1f} M parameters" if model.parameters else "parameters unknown"
    print(f"model {model.name}: {parameters}, digest {model.digest[:12]}; run directory {prepared.out}")
    for line in costs:
        print(line)
    reached = "the device's peak" if stated else "a matrix product's speed, measured now,"
    print(f"about {duration(seconds)} of drawing on {device or prepared.device}, scoring aside:")
    print(f"if {EFFICIENCY:.0%} of {reached} is reached; nothing was done")


def show_missing(metrics: Iterable[str]) -> None:
    """Show which weights these metrics lack: what, size, licence, and the command that brings them."""
    scorer = Scorer(metrics)
    if table := missing_table({metric: scorer.weights(metric) for metric in scorer.metrics}):
        print_tables(table)


def show_result(result: Result, out: Path) -> None:
    """Show every metric's value, interval and status."""
    table = table_of("task", "metric", "value", "95 % interval", "images", "status")
    for task in result.tasks:
        for name, metric in task.metrics.items():
            value = f"{metric.value:.4f}" if metric.value is not None else "-"
            table.add_row(task.name, name, value, _interval(metric), str(metric.n_images), _status(metric))
        if not task.metrics:
            table.add_row(task.name, "-", "-", "-", "-", f"{task.status}: {task.reason}")
    print_tables(table)
    for task in result.tasks:
        if task.n_trained_prompts:
            print(f"{task.name}: the model was trained on {task.n_trained_prompts} of its {task.n_prompts} prompts")
    nfe = f"{result.cost.nfe} passes per image, " if result.cost.nfe else ""
    print(f"{result.model.name} on {result.suite}: {result.status}, {nfe}result in {out}")


def _status(metric: MetricResult) -> str:
    if metric.status != "ok":
        return f"{metric.status}: {metric.reason}"
    cut = f", {metric.n_truncated} of {metric.n_prompts} prompts cut" if metric.n_truncated else ""
    return f"ok{cut}" + (f", {metric.n_excluded} images without a value" if metric.n_excluded else "")


def _interval(metric: MetricResult) -> str:
    return f"{metric.low:.4f} .. {metric.high:.4f}" if metric.low is not None and metric.high is not None else "-"


def _already_drawn(out: Path, image_set: ImageSet) -> int:
    """Count pictures on the disk; the run directory may not exist yet."""
    root = out / image_set.name / "images"
    return sum((root / item.prompt.id / f"{item.seed}.png").is_file() for item in image_set.items)


def _block_size(prepared: "Prepared") -> int:
    """Return the pictures of a block, as the run would choose them."""
    asked = prepared.settings.batch_size
    return asked or fitting_block_size(prepared.plan.image_sets, prepared.model, prepared.device)


def _cost_line(name: str, cost: Estimate, passes: int, device: Device | None) -> str:
    how = "counted" if cost.counted else "2 x parameters x tokens"
    tera, gib = cost.operations_per_pass * passes / 1e12, 2**30
    fits = ""
    if device:
        fits = " fits" if cost.bytes < device.memory_gib * gib else " does not fit"
        fits += f" {device.memory_gib:.0f} GiB; a smaller --batch-size needs less"
    return (
        f"{name}: {tera:.4g} TFLOP an image ({how}); memory about {cost.weights_bytes / gib:.2f} GiB of weights + "
        f"{cost.decoding_bytes / gib:.2f} GiB to decode a block{fits}"
    )


def operations_per_second(device: str, dtype: str) -> float:
    """Return a device's speed at a large matrix product: the median of several, after one that warms up."""
    import torch

    side = 1024 if device == "cpu" else 8192
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(PRODUCTS + 1):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / median(seconds[1:])


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def table_of(*columns: str) -> Table:
    """Return an empty table with these headings."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables as wide as the terminal, or 160 columns where there is none."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table)
