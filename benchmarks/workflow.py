"""One model on one suite, end to end: plan → generate → score → summarise → board.

Every stage does only what is missing, so the same call continues whatever was interrupted.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.about import about_run
from benchmarks.budget import fitting_block_size
from benchmarks.config import UserError
from benchmarks.generate import generate
from benchmarks.models import Model, open_model
from benchmarks.plan import Overrides, Plan, make_plan
from benchmarks.score import score
from benchmarks.store import Run
from benchmarks.suites import read_suite
from benchmarks.summarise import Summarised, summarise, write_result
from leaderboards.about import add_about
from leaderboards.schema import NAME_RULE, Result, ResultError, is_name, read_result
from leaderboards.store import file_stem, publish
from metrics.base import NotHere, import_plugins
from metrics.features import Models
from metrics.loaded import Scorer
from metrics.weights import use_folder, what_to_do

Stage = Literal["generate", "score", "summarise", "all"]
BOARD = Path(__file__).resolve().parent.parent / "leaderboards" / "results"
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do with a model besides the suite; none of it but `overrides` and `batch_size` decides a bit."""

    name: str | None = None  # of the model in results; default: its folder's, and what was overridden
    base: str | None = None
    out: Path | None = None  # run directory; default: runs/<model>-<suite>
    board: Path | None = BOARD  # None: publish nowhere
    stage: Stage = "all"
    batch_size: int | None = None  # pictures of a block; default: that of the run, or up to 16 by memory
    device: str = "auto"
    offline: bool = False
    plugins: Sequence[str] = ()
    prompts: Path | None = None  # folder of prompt sets that are not shipped; default: FEWSTEP_BENCH_PROMPTS
    weights: Path | None = None  # folder of weights; default: FEWSTEP_BENCH_WEIGHTS, then the hub's cache
    skip_missing: bool = False  # go on without the metrics whose weights are not here
    # (k, n), k from 0: only every n-th block, for a machine that shares no folder with the others
    shard: tuple[int, int] = (0, 1)
    overrides: Overrides = field(default_factory=Overrides)

    def __post_init__(self) -> None:
        if not 0 <= self.shard[0] < self.shard[1]:
            raise UserError(f"--shard {self.shard[0] + 1}/{self.shard[1]}: must be K/N with 1 <= K <= N")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: must be at least 1")


@dataclass(frozen=True)
class Prepared:
    """A model opened and a suite planned for it; nothing is drawn yet."""

    model: Model
    plan: Plan
    settings: Settings
    device: str

    @property
    def out(self) -> Path:
        """The run directory."""
        overrides = self.settings.overrides
        reduced = {"limit": overrides.limit, "seeds": overrides.seeds}
        suffix = "".join(f"-{key}{value}" for key, value in reduced.items() if value is not None)
        return self.settings.out or RUNS / f"{file_stem(self.model.name)}-{self.plan.suite}{suffix}"


def prepare(model: str | Path, suite: str, settings: Settings) -> Prepared:
    """Open a model and plan a suite for it. Raises UserError where either cannot be used."""
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if settings.weights:
        use_folder(settings.weights)
    import_plugins(settings.plugins)
    device = pick_device(settings.device)
    _check_name(settings.name)
    name = settings.name or _default_name(model, settings.overrides)
    opened = open_model(model, base=settings.base, device=device, name=name, offline=settings.offline)
    plan = make_plan(read_suite(suite), opened, settings.overrides, settings.prompts)
    return Prepared(opened, plan, settings, device)


def work(prepared: Prepared) -> Summarised | None:
    """Do the stages; return what the last of them found, None where it stops before the summary.

    Raises UserError where no task can run, or for what a stage cannot do; what is done stays done."""
    plan, settings, model = prepared.plan, prepared.settings, prepared.model
    refuse_missing(prepared)
    _refuse_idle(plan)
    identity = {"name": model.name, "weights_digest": model.digest}
    run = Run.open(
        prepared.out,
        model=identity,
        suite=plan.suite,
        sets=plan.image_sets,
        block_size=settings.batch_size,
        default_block_size=fitting_block_size(plan.image_sets, model, prepared.device),
    )
    run = replace(run, shard_of=settings.shard)
    failed: dict[tuple[str, str], str] = {}
    if settings.stage in ("generate", "all"):
        for image_set in plan.image_sets:
            generate(run, image_set, model)
    if settings.stage in ("score", "all"):
        models: Models = {}
        for image_set in plan.image_sets:
            broken = score(run, image_set, plan.metrics_of(image_set), prepared.device, models)
            failed |= {(image_set.name, metric): reason for metric, reason in broken.items()}
    if settings.stage not in ("summarise", "all") or run.sharded:
        return None
    with run.lock("summarise"):
        summarised = summarise(run, plan, model, failed)
        result = write_result(run, summarised)
        if settings.board:
            _publish(result, summarised, settings.board)
            add_about(settings.board / file_stem(result.suite), about_run(plan))
    return Summarised(result, summarised.evidence, summarised.gallery)


def check(model: Model, suite: str) -> None:
    """Raise UserError where a suite could not be run whole on a model like this one, for no task is for such models.

    Raises NotHere where weights are not, or no task can run and some have no prompts here."""
    plan = make_plan(read_suite(suite), model, Overrides())
    if plan.missing:
        raise NotHere(_lacking(plan))
    _refuse_idle(plan)


def refuse_missing(prepared: Prepared) -> None:
    """Raise UserError where weights are missing and nobody said to go on without them: before anything is drawn."""
    if prepared.plan.missing and not prepared.settings.skip_missing:
        raise UserError(f"{_lacking(prepared.plan)}; or pass --skip-missing to run the rest; nothing was drawn")


def _lacking(plan: Plan) -> str:
    """Return which metrics lack weights and what mends it."""
    scorer = Scorer(plan.missing)
    absent = (weights for metric in plan.missing for weights in scorer.weights(metric) if weights.missing())
    mend = "; ".join(dict.fromkeys(what_to_do(weights) for weights in absent))
    return f"no weights for {', '.join(plan.missing)}; {mend}"


def _refuse_idle(plan: Plan) -> None:
    if not plan.running:
        reasons = "; ".join(f"{task.spec.name}: {task.reason}" for task in plan.tasks)
        kind = UserError if all(task.image_set.prompts.prompts for task in plan.tasks) else NotHere
        raise kind(f"no task of suite {plan.suite!r} can run: {reasons}")


def evaluate(model: str | Path, suite: str = "micro", settings: Settings | None = None, **changes: Any) -> Result:
    """Benchmark a model and return its result, which also stands in the run directory and on the board.

    `changes` are fields of Settings: evaluate("ckpt/", "micro", name="student", board=None).
    Raises UserError as `python -m benchmarks.run` does."""
    prepared = prepare(model, suite, replace(settings or Settings(), **changes, stage="all"))
    summarised = work(prepared)
    assert summarised is not None  # "all" ends with the summary
    return summarised.result


def pick_device(device: str) -> str:
    """Return a torch device; "auto" is this process's accelerator, else the CPU.

    Raises UserError for a device that is not there."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device}: not usable here ({reason}); try --device cpu") from error
    return device


def _check_name(name: str | None) -> None:
    """Raise UserError for a name that a result cannot bear."""
    if not is_name(name or "model"):
        raise UserError(f"--name {name!r}: {NAME_RULE}")


def _default_name(model: str | Path, overrides: Overrides) -> str:
    """Return the name of the folder, card or hub id, with what the command line changed: that is another row."""
    folder = Path(model)
    card = folder.suffix == ".toml"
    name = folder.stem if card else folder.resolve().name if folder.exists() else re.sub("[/:]", "--", str(model))
    return name + overrides.suffix()


def _publish(result: Result, summarised: Summarised, board: Path) -> None:
    """Put a result on a board; a partial one never takes the place of a complete one."""
    place = board / file_stem(result.suite) / f"{file_stem(result.model.name)}.json"
    if result.status == "partial" and place.is_file():
        try:
            if read_result(place).status != "partial":
                print(f"{place}: stays, since this result is partial")
                return
        except ResultError:
            pass  # not readable: nothing to protect
    publish(summarised.result, summarised.evidence, board, summarised.gallery)
