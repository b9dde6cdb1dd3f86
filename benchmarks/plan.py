"""The plan of a run: which tasks a model can do, which image sets they share, which metrics can be measured.

Tasks of equal prompts and protocol share one image set, with as many images per prompt as the most demanding of them
asks for. What cannot be done keeps its place in the result, with the reason and what mends it; weights that a task
of this model lacks are collected, so that nobody draws for hours before hearing of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.config import UserError, as_table, build
from benchmarks.models import Model, Pipeline
from benchmarks.native import wrong_size
from benchmarks.prompts import PromptSet
from benchmarks.protocol import Dtype, Protocol
from benchmarks.sets import MissingPrompts, read_set
from benchmarks.store import ImageSet
from benchmarks.suites import Suite, TaskSpec
from metrics.base import make, nearest, unfit_prompts
from metrics.loaded import Scorer
from metrics.sets import SetMetric, WholePrompts

NOT_ASKED = "none of its metrics is among --metrics"


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line changes. `limit`, `seeds` and `metrics` reduce a run, which makes its result partial."""

    limit: int | None = None  # prompts of each task
    seeds: int | None = None  # images per prompt
    metrics: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "seeds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: must be at least 1")

    def of_protocol(self) -> dict[str, int | float | str]:
        """Return the changed fields of the protocol; together with the weights they make another model."""
        changed = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "dtype": self.dtype}
        return {key: value for key, value in changed.items() if value is not None}

    def suffix(self) -> str:
        """Return what a model's name gets where no name was given: "@steps=4,guidance=1.0"."""
        changed = {"steps": self.steps, "guidance": self.guidance, "dtype": self.dtype}
        given = ",".join(f"{key}={value}" for key, value in changed.items() if value is not None)
        return f"@{given}" if given else ""


@dataclass(frozen=True, kw_only=True)
class PlannedTask:
    """A task as this run does it. `reason`: why it is skipped as a whole; `skipped`: why single metrics are; `unfit`:
    which of them fail, because they cannot judge these prompts."""

    spec: TaskSpec
    image_set: ImageSet
    images_per_prompt: int  # this task looks at; the shared set may have more
    reason: str = ""
    reduced: str = ""  # by which flags
    metrics: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)  # those of `skipped` that only lack weights

    @property
    def n_images(self) -> int:
        """Images this task looks at."""
        return len(self.image_set.prompts.prompts) * self.images_per_prompt


@dataclass(frozen=True)
class Plan:
    """All tasks of a suite, and the image sets of those that run."""

    suite: str
    tasks: tuple[PlannedTask, ...]

    @property
    def running(self) -> list[PlannedTask]:
        """The tasks that are not skipped."""
        return [task for task in self.tasks if not task.reason]

    @property
    def image_sets(self) -> list[ImageSet]:
        """The distinct image sets of the tasks that run."""
        return list({task.image_set.name: task.image_set for task in self.running}.values())

    @property
    def missing(self) -> dict[str, str]:
        """The metrics that some task would measure if their weights were there, and what is wrong with those."""
        return {metric: why for task in self.tasks for metric, why in task.missing.items()}

    def metrics_of(self, image_set: ImageSet) -> list[str]:
        """Return the metrics that some task measures on an image set."""
        tasks = (task for task in self.running if task.image_set.name == image_set.name)
        return sorted({metric for task in tasks for metric in task.metrics})


def make_plan(suite: Suite, model: Model, overrides: Overrides, prompts: Path | None = None) -> Plan:
    """Return what is to be done; `prompts` is the folder of prompt sets that are not shipped.

    Raises UserError for unknown metrics and protocols that the model cannot follow."""
    asked = {metric for task in suite.tasks for metric in task.metrics}
    for metric in overrides.metrics:
        if metric not in asked:
            raise UserError(f"--metrics {metric}: suite {suite.name!r} has no such metric; {nearest(metric, asked)}")
    scorer = Scorer(sorted(asked))
    tasks = [_plan_task(spec, model, overrides, scorer, prompts) for spec in suite.tasks]
    return Plan(suite.name, tuple(_share_image_sets(tasks)))


def _plan_task(
    spec: TaskSpec, model: Model, overrides: Overrides, scorer: Scorer, folder: Path | None
) -> PlannedTask:
    all_prompts, no_prompts = _prompts(spec, folder)
    prompts = all_prompts.spread(overrides.limit)
    images = min(overrides.seeds or spec.images_per_prompt, spec.images_per_prompt)
    metrics = [metric for metric in spec.metrics if not overrides.metrics or metric in overrides.metrics]
    total = images * len(prompts.prompts)
    too_few = {metric: why for metric in metrics if (why := _too_few_images(metric, scorer, images, total))}
    missing = {metric: why for metric in metrics if metric not in too_few and (why := scorer.missing(metric) or "")}
    skipped = {**too_few, **missing}
    unfit = {metric: why for metric in metrics if (why := unfit_prompts(scorer.metrics[metric], prompts.prompts))}
    cannot = {**skipped, **unfit}
    protocol = _protocol(spec, model, overrides)
    reason = _wrong_model(spec, model, protocol) or no_prompts
    if reason:
        missing = {}  # of a task that cannot run anyway, nobody misses the weights
    elif not metrics:
        reason = NOT_ASKED
    elif len(cannot) == len(metrics):
        reason = "no metric can be measured: " + "; ".join(f"{metric}: {why}" for metric, why in cannot.items())
    if protocol and not reason and isinstance(model, Pipeline):
        model.check(protocol)
    return PlannedTask(
        spec=spec,
        image_set=ImageSet(name=spec.name, prompts=prompts, images_per_prompt=images, protocol=protocol),
        reason=reason,
        images_per_prompt=images,
        reduced=_reduced(spec, overrides, limited=prompts is not all_prompts, images=images),
        metrics=tuple(metric for metric in metrics if metric not in cannot),
        skipped={metric: why for metric, why in skipped.items() if metric not in unfit},
        unfit=unfit,
        missing={metric: why for metric, why in missing.items() if metric not in unfit},
    )


def _prompts(spec: TaskSpec, folder: Path | None) -> tuple[PromptSet, str]:
    """Return a task's prompts, and why there are none."""
    try:
        return read_set(spec.prompts, folder), ""
    except MissingPrompts as error:
        return PromptSet(spec.prompts, ()), str(error)


def _too_few_images(metric: str, scorer: Scorer, images_per_prompt: int, images: int) -> str:
    least = scorer.card(metric).min_images_per_prompt
    if images_per_prompt < least:
        return (
            f"needs at least {least} images of each prompt, and there are {images_per_prompt}; pass --seeds {least}"
        )
    made = scorer.metrics[metric]
    if isinstance(made, SetMetric) and images < made.min_images:
        return f"needs at least {made.min_images} images in all, and there are {images}; take more prompts or seeds"
    return ""


def _wrong_model(spec: TaskSpec, model: Model, protocol: Protocol | None) -> str:
    """Return why a task is not for a model, by the size of what it draws."""
    if spec.picture_size:
        width, height = _size_of_pictures(model, protocol)
        if f"{width}x{height}" != spec.picture_size:
            return f"for models that draw {spec.picture_size} pictures; this one draws {width}x{height}"
    if spec.min_side:
        width, height = _size_of_pictures(model, model.protocol)
        if min(width, height) < spec.min_side:
            return f"for models that draw at least {spec.min_side} pixels a side; this one draws {width}x{height}"
    if isinstance(model, Pipeline) and protocol and (why := wrong_size(model.files, protocol)):
        return f"this model {why}"
    return ""


def _size_of_pictures(model: Model, protocol: Protocol | None) -> tuple[int, int]:
    """Return width and height under a protocol, or of pictures made elsewhere."""
    if protocol:
        return protocol.width, protocol.height
    assert not isinstance(model, Pipeline)  # pipelines have a protocol
    return model.picture_size


def _protocol(spec: TaskSpec, model: Model, overrides: Overrides) -> Protocol | None:
    """Return the model's own protocol, the task's fields over it, and the command line's over those."""
    changes = overrides.of_protocol()
    if model.protocol is None:
        if changes:
            raise UserError(f"{model.name}: has no protocol, and so no {', '.join(changes)} to change")
        return None
    changes = {**spec.protocol, **changes}
    table = {**as_table(model.protocol), **changes}
    if "sigmas" not in changes and table["num_inference_steps"] != model.protocol.num_inference_steps:
        table["sigmas"] = []  # they belonged to another number of steps: fall back to the even grid
    return build(Protocol, table, f"protocol of task {spec.name!r}")


def _reduced(spec: TaskSpec, overrides: Overrides, *, limited: bool, images: int) -> str:
    """Return the flags that took something away from a task, "" where none did."""
    flags = []
    if limited:
        flags.append(f"--limit {overrides.limit}")
    if images < spec.images_per_prompt:
        flags.append(f"--seeds {images}")
    if overrides.metrics and set(spec.metrics) - set(overrides.metrics):
        flags.append(f"--metrics {' '.join(overrides.metrics)}")
    return " ".join(flags)


def _share_image_sets(tasks: list[PlannedTask]) -> list[PlannedTask]:
    """Give tasks of equal prompts and protocol the set of the first of them, with the most images any asks for."""
    shared: dict[tuple[str, str, int], ImageSet] = {}
    for task in tasks:
        if not task.reason:
            earlier = shared.setdefault(_key(task), task.image_set)
            most = max(earlier.images_per_prompt, task.image_set.images_per_prompt)
            shared[_key(task)] = replace(earlier, images_per_prompt=most)
    return [task if task.reason else replace(task, image_set=shared[_key(task)]) for task in tasks]


def _key(task: PlannedTask) -> tuple[str, str, int]:
    """Return what tasks that share a set have in common; a metric of all pictures of a prompt fixes their number."""
    image_set = task.image_set
    fixed = any(isinstance(make(metric), WholePrompts) for metric in task.metrics)
    protocol = image_set.protocol.digest() if image_set.protocol else ""
    return image_set.prompts.digest, protocol, image_set.images_per_prompt if fixed else 0
