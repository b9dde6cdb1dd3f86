"""A plan: arms, what is claimed of them, and the figures, as trainers/configs/claims/<name>.toml holds them.

    [bases.dmdr]                     a method, a config file, and the stages that its arms run
    [arms.joint]                     a base, and what the arm changes in it; or a model that is only benchmarked
    [[claims]]                       two arms, a measure, what is claimed of arms[0] - arms[1]
    [[figures]]                      arms and measures to draw

A measure is the id of a metric, compared prompt by prompt, or another of those in trainers/claims/measures.py.
Arms of one claim must have equal budgets of network passes, unless one of them is not trained or the claim says that
it compares something else: equal updates, or an arm with where it began.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import UserError, build, config, nearest, parse_toml
from benchmarks.suites import read_suite
from leaderboards.studies import Claimed, Compared
from trainers.config import RunConfig, merge, read_table

FOLDER = Path(__file__).parent.parent / "configs" / "claims"


@config
class BaseConfig:
    """What arms of one family share."""

    method: str
    config: str  # file, relative to the plan
    settings: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]]  # laid over the file's stages of these names; its other stages are left out


@config
class ArmConfig:
    """A training, or a model that is only benchmarked."""

    title: str = ""  # "" = its name
    base: str = ""
    like: str = ""  # an earlier arm whose settings this one changes further
    stages: tuple[str, ...] = ()  # only these of the base's stages; () = all
    settings: dict[str, Any] = field(default_factory=dict)
    benchmark: bool = True  # false: the claims on it ask its log alone
    model: str = ""  # benchmark this folder instead of training
    steps: int = 0  # of that model; 0 = its protocol's
    guidance: float = -1.0  # of that model; -1 = its protocol's

    def __post_init__(self) -> None:
        if (bool(self.base) + bool(self.like) + bool(self.model)) != 1:
            raise ValueError("an arm has either a base, or an arm it is like, or a model")


@config
class SourceConfig:
    """Where a claim is made."""

    paper: str
    where: str


@config
class ClaimConfig:
    """One claim; see leaderboards/studies.py for what `claimed` means."""

    id: str
    statement: str
    source: SourceConfig
    arms: tuple[str, str]
    measure: str
    claimed: Claimed = "above"
    smallest: float  # difference that would matter
    headline: bool = False
    at: Compared = "equal passes"
    topic: str = ""  # heading under which a reader finds it
    seeds: int = 0  # of training, for it to be judged; 0 = the plan's
    notes: str = ""

    def __post_init__(self) -> None:
        if self.smallest <= 0:
            raise ValueError("smallest must be above 0")
        if self.at != "equal passes" and not self.notes:
            raise ValueError(f"at = {self.at!r}: say in notes what is compared, for passes are unequal")
        if self.headline and self.seeds:
            raise ValueError("a headline claim has the plan's headline_seeds: leave its seeds out")


@config
class FigureConfig:
    """One figure.

    curves   canary metrics of the arms over their iterations or passes: mean of the seeds, and their range
    bars     a measure of each arm, with its interval
    sweep    the same over numbers x, one for each arm
    scatter  two measures of each arm, one on each axis
    """

    id: str
    title: str
    kind: Literal["curves", "bars", "sweep", "scatter"]
    arms: tuple[str, ...]
    measures: tuple[str, ...]
    x: tuple[float, ...] = ()
    x_title: str = ""
    y_title: str = ""
    stage: str = ""  # of curves: only this stage; "" = all
    over: Literal["iteration", "passes"] = "iteration"  # of curves
    normalised: bool = False  # of curves: mean over the measures of (value - first value) / first spread

    def __post_init__(self) -> None:
        if self.kind == "sweep" and len(self.x) != len(self.arms):
            raise ValueError("a sweep needs one x for each arm")
        if self.kind == "scatter" and len(self.measures) != 2:
            raise ValueError("a scatter needs two measures")


@config
class ChangeConfig:
    """A change of the plan after some of its runs were known: readers must be told."""

    date: str  # "2026-11-22"
    what: str


@config
class Plan:
    """The whole of it."""

    title: str
    about: str
    suite: str
    seeds: int = 3  # of training, for a claim to be judged
    headline_seeds: int = 5
    passes_per_second: float = 500.0  # until a log of the arm's own kind tells
    benchmark_seconds: float = 120.0  # until one has been measured
    bases: dict[str, BaseConfig]
    arms: dict[str, ArmConfig]
    claims: tuple[ClaimConfig, ...]
    figures: tuple[FigureConfig, ...] = ()
    levels: tuple[str, ...] = ()  # measures of every arm, to be told as they are
    changes: tuple[ChangeConfig, ...] = ()

    def needed(self, claim: ClaimConfig) -> int:
        """Return the number of seeds that a claim is judged from."""
        return self.headline_seeds if claim.headline else claim.seeds or self.seeds

    @property
    def most_seeds(self) -> int:
        """The number of seeds that an arm can have."""
        return max(self.seeds, self.headline_seeds, *(claim.seeds for claim in self.claims))


@dataclass(frozen=True)
class Study:
    """A plan with its place, and the run of each of its trained arms."""

    plan: Plan
    path: Path
    runs: Mapping[str, tuple[str, dict[str, Any]]]  # arm -> (method, the run's table without name and seed)

    def run(self, arm: str, seed: int) -> tuple[str, RunConfig]:
        """Return (method, run) of an arm's training from one seed."""
        method, table = self.runs[arm]
        return method, build(RunConfig, table | {"name": f"{arm}-s{seed}", "seed": seed}, f"{self.path}: arms.{arm}")

    def digest(self, arm: str, seed: int) -> str:
        """Return the sha256 of what files say of an arm's training from a seed, and of the pictures it is judged by.

        What a setting is that no file names is the program's own affair, and so are the metrics of the suite: a
        finished run stays what it is when either grows."""
        own = self.plan.arms[arm]
        told: dict[str, Any] = {"model": own.model, "steps": own.steps, "guidance": own.guidance}
        if arm in self.runs:
            method, table = self.runs[arm]
            told = {"method": method, "seed": seed, "run": table, "stages": [*table["stages"]]}
        if own.benchmark:
            tasks = [asdict(replace(task, metrics=("-",))) for task in read_suite(self.plan.suite).tasks]
            told["suite"] = tasks
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def budget(self, arm: str) -> int:
        """Return an arm's network passes, 0 where it is not trained."""
        return sum(budget for _, budget in self.stages(arm))

    def stages(self, arm: str) -> list[tuple[str, int]]:
        """Return (stage, its network passes) of an arm, in order."""
        if arm not in self.runs:
            return []
        return [(name, stage["budget_passes"]) for name, stage in self.runs[arm][1]["stages"].items()]

    def title(self, arm: str) -> str:
        """Return what a reader is told of an arm."""
        return self.plan.arms[arm].title or arm


def find_plan(name: str) -> Path:
    """Return the file of a shipped plan, or of one by its path. Raises UserError naming the nearest."""
    named = FOLDER / f"{name}.toml"
    path = named if named.is_file() else Path(name)
    if not path.is_file():
        raise UserError(f"unknown plan {name!r}; {nearest(name, [file.stem for file in FOLDER.glob('*.toml')])}")
    return path


def read_study(path: Path) -> Study:
    """Read a plan and check all that can be checked before anything is trained. Raises UserError in one line."""
    plan = build(Plan, parse_toml(path), str(path))
    study = Study(plan, path, dict(_runs(plan, path)))
    for what, arms in _mentions(plan):
        for arm in arms:
            if arm not in plan.arms:
                raise UserError(f"{path}: {what}: no such arm: {arm!r}; {nearest(arm, plan.arms)}")
    if len({claim.id for claim in plan.claims}) < len(plan.claims):
        raise UserError(f"{path}: two claims have one id")
    for claim in plan.claims:
        if claim.at == "equal passes":
            check_equal_passes(study, claim)
    return study


def check_equal_passes(study: Study, claim: ClaimConfig) -> None:
    """Raise UserError where the trained arms of a claim have different budgets."""
    budgets = {arm: study.budget(arm) for arm in claim.arms if study.budget(arm)}
    if len(set(budgets.values())) > 1:
        told = ", ".join(f"{arm} {passes:,}" for arm, passes in budgets.items())
        raise UserError(
            f"{study.path}: claims.{claim.id}: arms have unequal network passes ({told}); make them equal"
        )


def _mentions(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    for claim in plan.claims:
        yield f"claims.{claim.id}", claim.arms
    for figure in plan.figures:
        yield f"figures.{figure.id}", figure.arms


def _runs(plan: Plan, path: Path) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    resolved: dict[str, ArmConfig] = {}
    for name, own in plan.arms.items():
        where = f"{path}: arms.{name}"
        arm = own
        if own.like:
            if own.like not in resolved:
                raise UserError(
                    f"{where}.like: no such trained arm before it: {own.like!r}; {nearest(own.like, resolved)}"
                )
            parent = resolved[own.like]
            settings = merge(parent.settings, own.settings)
            arm = ArmConfig(base=parent.base, stages=own.stages or parent.stages, settings=settings)
        if arm.model:
            continue
        if arm.base not in plan.bases:
            raise UserError(f"{where}.base: no such base: {arm.base!r}; {nearest(arm.base, plan.bases)}")
        resolved[name] = arm
        yield name, (plan.bases[arm.base].method, _table(plan.bases[arm.base], arm, path, where))


def _table(base: BaseConfig, arm: ArmConfig, path: Path, where: str) -> dict[str, Any]:
    table = read_table(path.parent / base.config)
    own = table.get("stages", {})
    unknown = [stage for stage in arm.stages if stage not in base.stages]
    if unknown:
        raise UserError(f"{where}.stages: {unknown[0]!r} is none of its base's; {nearest(unknown[0], base.stages)}")
    chosen = {name: stage for name, stage in base.stages.items() if not arm.stages or name in arm.stages}
    stages = {name: merge(own.get(name, {}), stage) for name, stage in chosen.items()}
    table = merge(table | {"stages": stages, "benchmark": ""}, base.settings)
    table = merge(table, arm.settings)
    build(RunConfig, table | {"name": "arm"}, where)  # a mistake shows here, with its place
    for name, stage in table["stages"].items():
        if not stage.get("budget_passes") or stage.get("iterations"):
            raise UserError(f"{where}: stages.{name} needs budget_passes, and no iterations: budgets are compared")
    return table
