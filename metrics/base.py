"""Contract 1: what a metric is, and the registry that finds metrics by id.

A metric declares the features it needs and is otherwise a pure function:

    features = ("openai/clip-vit-l-14:image", ...)       run once per batch for all metrics together
    measure(features, batch) -> rows                     one row per image; the rows are the evidence
    summarise(rows, prompts) -> Summary                  what every image contributes to the value

A training reward is `measure` over the same features, computed by their differentiable path
(`metrics.loaded.LoadedMetric.reward`), so that what is trained on and what is reported cannot drift apart.

Axes: B images of one batch, N images of a whole image set, D embedding size.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
from torch import Tensor

Aggregate = Literal["prompts", "categories", "set"]
Rows = dict[str, Tensor | list[str]]
Features = Mapping[str, Any]


class UserError(ValueError):
    """A mistake the user can mend: the message says what is wrong, where, and how to mend it (exit code 2)."""


class NotHere(UserError):
    """Weights or prompts are not on this machine; the message says where to get them."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, or all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One line of a prompt set. `metadata` holds what a judge needs (GenEval: tag, include, exclude)."""

    text: str
    id: str = ""
    category: str = ""
    split: str = ""  # "seen" or "unseen": whether training could have met this combination
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B images' prompts and seeds, in the order of the features' rows."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A metric's identity: all that a reader must know to compare the number."""

    id: str  # "clip_score"; a variant after a dot: "clip_score.rtdmd"
    version: int
    title: str
    unit: str
    higher_is_better: bool
    range: tuple[float, float]  # of one image's raw value; infinite where unbounded
    source: str  # paper and equation, or the code that defines it
    description: str  # what the number means, and what it does not
    variant: str = "official"  # official | corrected | a paper's name
    perceiver: str = ""  # what perceives: detector, VLM, OCR engine; "" = the encoder of `features`
    aggregate: Aggregate = "prompts"  # mean over prompts, unweighted mean over categories, or a set statistic
    differentiable: bool = False
    preprocessing: str = ""
    min_images_per_prompt: int = 1
    image_free: bool = True  # as a reward, it needs no real pictures
    micro: bool = False  # lives on the micro world only; never comparable with a real metric
    # The page of the metric (`python -m metrics card ID`) is made of these, too; plain sentences.
    comparable: str = ""  # when two numbers may be compared, and with which numbers of the same name they must not
    fooled_by: str = ""  # what moves the number without better pictures, and what it is blind to
    long_prompts: str = ""  # what happens to a prompt longer than is read; "" where no prompt is cut
    tensor_gap: str = ""  # measured difference of PIL and tensor preprocessing, and the command that measures it
    reported_scale: str = ""  # what papers print: "DMDR: ×100; RTDMD: as here"
    reward_divisor: float = 1.0  # by which papers divide the raw value before they mix rewards
    citation: str = ""  # authors, title, year, arXiv number


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a metric says of an image set; exactly one of the two fields is given.

    per_image_N: float32, what each image contributes; `leaderboards.statistics.estimate` turns it, by the card's
    `aggregate`, into value and interval, so both come from the one vector that the board stores.
        NaN: this image has no value, for a reason its row tells (an answer that is no rating); excluded and counted.
    value: of set statistics (FID), which have no value per image.
    """

    per_image_N: np.ndarray | None = None
    value: float | None = None


class Metric(Protocol):
    """The interface of a metric class; see the module's docstring."""

    card: Card
    features: tuple[str, ...]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return named columns of B rows: tensors [B] or [B, D], or B strings. Main column: "score",
        where an image has one without the others of its prompt."""
        ...

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return the summary of N rows and their N prompts, in any order of images."""
        ...


class PerImage:
    """Base of metrics whose value is an average of the column "score"."""

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return the scores themselves: each image contributes its own."""
        score_N = rows["score"]
        assert isinstance(score_N, Tensor)
        return Summary(per_image_N=score_N.detach().float().cpu().numpy())


class ReadsRecords:
    """Base of metrics that judge by more of a prompt than its wording: a record, questions, a text in quotes."""

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where pictures of this prompt cannot be judged."""
        raise NotImplementedError


def unfit_prompts(metric: Metric, prompts: Sequence[Prompt]) -> str:
    """Return how many prompts a metric cannot judge and why the first of them, "" where it can judge all of them.

    For those that draw pictures: hours later would be late to hear it."""
    if not isinstance(metric, ReadsRecords):
        return ""
    reasons = []
    for prompt in prompts:
        try:
            metric.check_prompt(prompt)
        except UserError as error:
            reasons.append(str(error))
    return f"{len(reasons)} of {len(prompts)} prompts cannot be judged (first: {reasons[0]})" if reasons else ""


def import_package_modules(package: str) -> None:
    """Import every module of a package, so that its decorators register what it defines."""
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, prefix=f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def import_entry_points(group: str) -> None:
    """Import the third-party modules that registered under an entry point group."""
    for entry in entry_points(group=group):
        entry.load()


def import_plugins(modules: Iterable[str]) -> None:
    """Import the modules a user named with `--plugin`. Raises UserError where one is no module, or cannot be read."""
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise UserError(f"--plugin {name!r}: name a module, as in `import`: my_metrics, not a file")
        try:
            importlib.import_module(name)
        except SyntaxError as error:
            raise UserError(f"--plugin {name}: {error.filename}, line {error.lineno}: {error.msg}") from error
        except ImportError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"--plugin {name}: no such module; it must be importable from here") from error
            raise UserError(f"--plugin {name}: cannot be imported: {error}") from error


T = TypeVar("T")
X = TypeVar("X")


class Registry(dict[str, T]):
    """Things of one kind by name, each registered where it is defined, so that adding one edits no other file."""

    def __init__(self, kind: str, package: str = "", group: str = "", hint: str = "") -> None:
        """kind: what a name names, for errors; package and group (of entry points): where `available` looks; hint:
        the end of an error that can only list what is known."""
        super().__init__()
        self.kind, self.package, self.group, self.hint = kind, package, group, hint

    def register(self, name: str) -> Callable[[X], X]:
        """Decorator: make a class or function known by a name. Raises UserError where the name is taken."""

        def add(thing: X) -> X:
            if name in self:
                raise UserError(f"{self.kind} {name!r} is taken twice: rename one of the two")
            self[name] = cast(T, thing)
            return thing

        return add

    def available(self) -> dict[str, T]:
        """Return everything by name, sorted: what is built in, entry points and plugins."""
        if self.package:
            import_package_modules(self.package)
        if self.group:
            import_entry_points(self.group)
        return dict(sorted(self.items()))

    def find(self, name: str, where: str = "") -> T:
        """Return one by name. Raises UserError, opened by `where`, naming the nearest name where it is unknown."""
        known = self.available()
        if name not in known:
            found = nearest(name, known)
            raise UserError(f"{where}unknown {self.kind} {name!r}; {found}{'' if found.endswith('?') else self.hint}")
        return known[name]


_METRICS: Registry[Callable[[], Metric]] = Registry("metric", "metrics", "fewstep_bench.metrics")
M = TypeVar("M", bound=type[Any])


def register(metric: M) -> M:
    """Class decorator: make a metric known by its card's id. Raises UserError where the id is taken."""
    return _METRICS.register(metric.card.id)(metric)


def available() -> dict[str, Callable[[], Metric]]:
    """Return every registered metric class by id: the built-in ones, entry points and plugins."""
    return _METRICS.available()


def make(identity: str) -> Metric:
    """Return a new metric by id. Raises UserError naming the nearest id where it is unknown."""
    return _METRICS.find(identity)()
