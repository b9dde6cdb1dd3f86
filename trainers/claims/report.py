"""The study of what is there: every claim of the plan with effect, interval, power and verdict, and the figures.

Intervals and their two sources of chance: leaderboards/seeds.py. Claims are judged one by one: where N arms do not
differ at all, claims of a direction "hold" of about N / 40 of them by chance, and claims of a difference of N / 20.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np

from benchmarks.config import UserError
from leaderboards.schema import ResultError
from leaderboards.seeds import SeedEffect, effect
from leaderboards.statistics import holm
from leaderboards.studies import Arm, Change, Claim, Claims, Effect, Figure, Level, Point, Series, Source
from metrics.base import make
from trainers.claims.measures import (
    NUMBERS,
    curve,
    described,
    differences,
    equal_passes,
    equal_updates,
    iterations,
    number,
)
from trainers.claims.plan import ClaimConfig, FigureConfig
from trainers.claims.record import Record
from trainers.claims.runs import Runs
from trainers.claims.schedule import UNTRAINED, Item

SAME_ITERATIONS = 0.02  # as a share


def claims_of(runs: Runs, command: str) -> Claims:
    """Return the study as the runs stand now; claims without enough seeds are listed as not judged."""
    plan = runs.study.plan
    figures = [figure for figure in (_figure(runs, one) for one in plan.figures) if figure]
    return Claims(
        title=plan.title,
        about=plan.about,
        command=command,
        claims=_corrected([_claim(runs, one) for one in plan.claims]),
        figures=figures,
        measures=[described(measure, metric_title)[0] for measure in plan.levels],
        arms=[
            _arm(runs, arm)
            for arm, own in plan.arms.items()
            if own.benchmark and plan.levels and _finished(runs, arm)
        ],
        changes=[Change(date=one.date, what=one.what) for one in plan.changes],
    )


def _corrected(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims, the headline ones with p by Holm for as many of them as have a p."""
    tested = {claim.id: claim.p for claim in claims if claim.headline and claim.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [claim.model_copy(update={"p_holm": adjusted.get(claim.id)}) for claim in claims]


def _arm(runs: Runs, arm: str) -> Arm:
    finished = _finished(runs, arm)
    trained = [one for one in finished if one.training]
    return Arm(
        title=runs.study.title(arm),
        seeds=len(trained),
        network_passes=_mean([one.trained.network_passes for one in trained]),
        iterations=_mean([iterations(one) for one in trained]),
        levels=[_arm_level(measure, finished) for measure in runs.study.plan.levels],
    )


def _mean(counts: Sequence[int]) -> int:
    return round(fmean(counts)) if counts else 0  # of an arm that is not trained


def _arm_level(measure: str, finished: Sequence[Record]) -> Level | None:
    try:
        point = _level(measure, finished, "")
    except UserError:  # a metric that this arm's benchmark has no value of
        return None
    return Level(value=point.y, low=point.low, high=point.high)


def finished_seeds(runs: Runs, arms: Sequence[str], seeds: int) -> list[int]:
    """Return the seeds for which every one of the arms is done."""
    return [seed for seed in range(seeds) if all(runs.record(_item(runs, arm, seed)) for arm in arms)]


def _claim(runs: Runs, claim: ClaimConfig) -> Claim:
    plan, study = runs.study.plan, runs.study
    seeds, needed = finished_seeds(runs, claim.arms, plan.most_seeds), plan.needed(claim)
    arms = [_records(runs, arm, seeds) for arm in claim.arms]
    found, problem = _measured(claim, arms, len(seeds))
    text, unit = described(claim.measure, metric_title)
    told = None if found is None else Effect(
        measure=text, unit=unit, value=found.value, low=found.low, high=found.high,
        claimed=claim.claimed, smallest=claim.smallest,
    )  # fmt: skip
    judged = told if len(seeds) >= needed and not problem else None
    return Claim(
        id=claim.id,
        statement=claim.statement,
        source=Source(paper=claim.source.paper, where=claim.source.where),
        arms=[study.title(arm) for arm in claim.arms],
        at=claim.at,
        topic=claim.topic,
        headline=claim.headline,
        effect=told,
        seeds=seeds,
        seeds_needed=needed,
        prompts=found.prompts if found else 0,
        images_per_prompt=_images_per_prompt(arms) if found and found.prompts else 1,
        iterations=_unequal_iterations(arms),
        power=found.power(claim.claimed, claim.smallest) if found else None,
        detectable=found.detectable() if found else None,
        p=found.p if found else None,
        verdict=judged.verdict if judged else "not judged",
        remark=judged.remark if judged else "",
        notes=" ".join(part for part in (claim.notes, problem and f"Not judged: {problem}.") if part),
    )


def _measured(claim: ClaimConfig, arms: Sequence[Sequence[Record]], seeds: int) -> tuple[SeedEffect | None, str]:
    """Return (the effect where two seeds or more are there, what keeps the claim from being judged)."""
    unequal = ""
    if claim.at == "equal passes":
        unequal = equal_passes([one for arm in arms for one in arm if one.training])
    elif claim.at == "equal updates":
        unequal = equal_updates(arms)
    if unequal:
        return None, unequal
    if seeds < 2:
        return None, ""
    try:
        return effect(differences(claim.measure, arms[0], arms[1])), ""
    except (UserError, ResultError) as error:
        return None, str(error)


def _figure(runs: Runs, figure: FigureConfig) -> Figure | None:
    """Return a figure of the arms that are there, None where there is none."""
    draw = {"curves": _curves, "scatter": _scatter, "bars": _bars, "sweep": _bars}[figure.kind]
    series = list(draw(runs, figure))
    if not series:
        return None
    x_title, y_title = _axes(figure)
    return Figure(id=figure.id, title=figure.title, x=x_title, y=y_title, series=series)


def _axes(figure: FigureConfig) -> tuple[str, str]:
    told = [described(measure, metric_title)[0] for measure in figure.measures]
    if figure.kind == "scatter":
        return told[0], told[1]
    x = {"iteration": "iteration", "passes": "network passes"}[figure.over] if figure.kind == "curves" else ""
    y = "mean gain in standard deviations of images" if figure.normalised else ", ".join(told)
    return figure.x_title or x, figure.y_title or y


def _curves(runs: Runs, figure: FigureConfig) -> Iterator[Series]:
    for arm in figure.arms:
        finished = _finished(runs, arm)
        if not finished:
            continue
        measured = {one: [curve(run, one, figure.stage, figure.over) for run in finished] for one in figure.measures}
        if figure.normalised:
            measured = {"": [_normalised(figure, run) for run in finished]}
        for measure, curves in measured.items():
            points = [_point([at[i] for at in curves]) for i in range(min(map(len, curves)))]
            if points:
                of = metric_title(measure) if len(measured) > 1 else ""
                yield Series(name=runs.study.title(arm), measure=of, points=points)


def _normalised(figure: FigureConfig, run: Record) -> list[tuple[int, float]]:
    """Return (iteration or passes, mean over the measures of the gain since the first point of the figure)."""
    gains = defaultdict(list)
    for measure in figure.measures:
        points, spread = curve(run, measure, figure.stage, figure.over), run.trained.first_deviations[measure]
        for at, value in points:
            gains[at].append((value - points[0][1]) / spread)
    return [(at, float(np.mean(values))) for at, values in gains.items()]


def _point(seeds: Sequence[tuple[int, float]]) -> Point:
    x, values = float(np.mean([at for at, _ in seeds])), [value for _, value in seeds]
    ends = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Point(x=x, y=float(np.mean(values)), low=ends[0], high=ends[1])


def _bars(runs: Runs, figure: FigureConfig) -> Iterator[Series]:
    """Yield a series for each measure; x is the arm's title, or its number in a sweep."""
    for measure in figure.measures:
        points = []
        for place, arm in enumerate(figure.arms):
            finished = _finished(runs, arm)
            if finished:
                x = figure.x[place] if figure.kind == "sweep" else runs.study.title(arm)
                points.append(_level(measure, finished, x))
        if points:
            yield Series(name=described(measure, metric_title)[0], points=points)


def _scatter(runs: Runs, figure: FigureConfig) -> Iterator[Series]:
    for arm in figure.arms:
        finished = _finished(runs, arm)
        if finished:
            x, y = (_level(measure, finished, "") for measure in figure.measures)
            yield Series(name=runs.study.title(arm), points=[Point(x=x.y, y=y.y, low=y.low, high=y.high)])


def _level(measure: str, finished: Sequence[Record], x: float | str) -> Point:
    """Return the mean of a measure over seeds and prompts, with its interval where there are two seeds or more."""
    if measure.partition(":")[0] in NUMBERS:
        values = np.array([number(measure, run) for run in finished])
    else:
        values = np.array([run.evidence(measure).means_P for run in finished])
    if len(finished) < 2:
        return Point(x=x, y=float(values.mean()))
    found = effect(values)
    return Point(x=x, y=found.value, low=found.low, high=found.high)


def _finished(runs: Runs, arm: str) -> list[Record]:
    return _records(runs, arm, range(runs.study.plan.most_seeds) if runs.study.budget(arm) else (UNTRAINED,))


def _records(runs: Runs, arm: str, seeds: Sequence[int]) -> list[Record]:
    """Return the records of an arm that are there; one that is not trained stands for every seed."""
    found = (runs.record(_item(runs, arm, seed)) for seed in seeds)
    return [record for record in found if record]


def _images_per_prompt(arms: Sequence[Sequence[Record]]) -> int:
    return arms[0][0].benchmarked.images_per_prompt


def _unequal_iterations(arms: Sequence[Sequence[Record]]) -> list[int]:
    """Return the mean iterations of each arm, [] where they are about equal or an arm was not trained."""
    if not all(one.training for arm in arms for one in arm) or not all(arms):
        return []
    told = [_mean([iterations(one) for one in arm]) for arm in arms]
    return told if max(told) - min(told) > SAME_ITERATIONS * max(told) else []


def _item(runs: Runs, arm: str, seed: int) -> Item:
    return Item(arm, seed if runs.study.budget(arm) else UNTRAINED)


def metric_title(metric: str) -> str:
    """Return a metric's title, as cards tell it."""
    return make(metric).card.title
