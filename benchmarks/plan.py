"""The plan of a run: which tasks a model can do, which image sets they share, which metrics can be measured.

Tasks of equal prompts and protocol share one image set, with as many images per prompt as the most demanding of them
asks for. What cannot be done keeps its place in the result, with the reason and what mends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.config import UserError, as_table, build
from benchmarks.models import Model, Pipeline
from benchmarks.prompts import read_prompts
from benchmarks.protocol import Dtype, Protocol
from benchmarks.store import ImageSet
from benchmarks.suites import Suite, TaskSpec
from metrics.base import nearest
from metrics.loaded import Scorer


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
    """A task as this run does it. `reason`: why it is skipped as a whole; `skipped`: why single metrics are."""

    spec: TaskSpec
    image_set: ImageSet
    images_per_prompt: int  # this task looks at; the shared set may have more
    reason: str = ""
    reduced: str = ""  # by which flags
    metrics: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

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

    def metrics_of(self, image_set: ImageSet) -> list[str]:
        """Return the metrics that some task measures on an image set."""
        tasks = (task for task in self.running if task.image_set.name == image_set.name)
        return sorted({metric for task in tasks for metric in task.metrics})


def make_plan(suite: Suite, model: Model, overrides: Overrides) -> Plan:
    """Return what is to be done. Raises UserError for unknown metrics and protocols that the model cannot follow."""
    asked = {metric for task in suite.tasks for metric in task.metrics}
    for metric in overrides.metrics:
        if metric not in asked:
            raise UserError(f"--metrics {metric}: suite {suite.name!r} has no such metric; {nearest(metric, asked)}")
    scorer = Scorer(sorted(asked))
    tasks = [_plan_task(spec, model, overrides, scorer) for spec in suite.tasks]
    return Plan(suite.name, tuple(_share_image_sets(tasks)))


def _plan_task(spec: TaskSpec, model: Model, overrides: Overrides, scorer: Scorer) -> PlannedTask:
    all_prompts = read_prompts(spec.prompts)
    prompts = all_prompts.spread(overrides.limit)
    images = min(overrides.seeds or spec.images_per_prompt, spec.images_per_prompt)
    metrics, skipped = [], {}
    for metric in spec.metrics:
        if overrides.metrics and metric not in overrides.metrics:
            continue
        if reason := _cannot_measure(metric, scorer, images):
            skipped[metric] = reason
        else:
            metrics.append(metric)
    protocol = _protocol(spec, model, overrides)
    task = PlannedTask(
        spec=spec,
        image_set=ImageSet(name=spec.name, prompts=prompts, images_per_prompt=images, protocol=protocol),
        reason=_cannot_run(spec, model, protocol, skipped if not metrics else {}),
        images_per_prompt=images,
        reduced=_reduced(spec, overrides, limited=prompts is not all_prompts, images=images),
        metrics=tuple(metrics),
        skipped=skipped,
    )
    if protocol and not task.reason and isinstance(model, Pipeline):
        model.check(protocol)
    return task


def _cannot_measure(metric: str, scorer: Scorer, images_per_prompt: int) -> str:
    least = scorer.card(metric).min_images_per_prompt
    if images_per_prompt < least:
        return (
            f"needs at least {least} images of each prompt, and there are {images_per_prompt}; pass --seeds {least}"
        )
    return scorer.missing(metric) or ""


def _cannot_run(
    spec: TaskSpec, model: Model, protocol: Protocol | None, all_metrics_missing: Mapping[str, str]
) -> str:
    """Return why a task is skipped: the wrong kind of model, or no metric that could be measured."""
    if spec.picture_size:
        width, height = (protocol.width, protocol.height) if protocol else _size_of_pictures(model)
        if f"{width}x{height}" != spec.picture_size:
            return f"for models that draw {spec.picture_size} pictures; this one draws {width}x{height}"
    if all_metrics_missing:
        return "no metric can be measured: " + "; ".join(f"{m}: {why}" for m, why in all_metrics_missing.items())
    return ""


def _size_of_pictures(model: Model) -> tuple[int, int]:
    assert not isinstance(model, Pipeline)  # pipelines have a protocol
    return model.picture_size


def _protocol(spec: TaskSpec, model: Model, overrides: Overrides) -> Protocol | None:
    """Return the model's own protocol, the task's fields over it, and the command line's over those."""
    changes = overrides.of_protocol()
    if model.protocol is None:
        if changes:
            raise UserError(f"{model.name}: pictures made elsewhere have no {', '.join(changes)} to change")
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
    shared: dict[tuple[str, str], ImageSet] = {}
    for task in tasks:
        if not task.reason:
            earlier = shared.setdefault(_key(task.image_set), task.image_set)
            most = max(earlier.images_per_prompt, task.image_set.images_per_prompt)
            shared[_key(task.image_set)] = replace(earlier, images_per_prompt=most)
    return [task if task.reason else replace(task, image_set=shared[_key(task.image_set)]) for task in tasks]


def _key(image_set: ImageSet) -> tuple[str, str]:
    return image_set.prompts.digest, image_set.protocol.digest() if image_set.protocol else ""
