"""What two arms are compared by.

    <metric>               the benchmark's evidence: a mean over images for each prompt           seeds × prompts
    gap:<a>:<b>            a - b, each in standard deviations of the second arm's images          seeds × prompts
    set:<metric>           the benchmark's value of a set of images (precision, recall, distance)
    area:<metric>:<stage>  the canary's mean over the network passes of a stage: who is faster up stays up
    roughness:<metric>     root mean square of the canary's steps in the second half of training, one step being a
                           twelfth of its passes: instability
    spread:<reward>        reward_std of the training batches in the second half of the last stage
    seconds_per_iteration  natural logarithm, of the last stage; passes_per_iteration likewise
    gradient_variance      natural logarithm of tr Cov(g) · passes per epoch (trainers/claims/gradient_probe.py): that
                           of a mean over so many passes, not over so many epochs

A gap above 0 says that the reward gained more than what it stands for. All but the first two are one number per
training. Axes: S seeds, P prompts.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from benchmarks.config import UserError
from trainers.claims.record import Record

T = TypeVar("T")
LOGARITHM = "ln of the ratio"
STEPS = 12  # of a training, for its roughness
PASS_TOLERANCE = 0.02  # as a share, or what the last iterations of an arm's stages may go beyond their budgets


def differences(measure: str, first: Sequence[Record], second: Sequence[Record]) -> np.ndarray:
    """Return d_SP, or d_S of measures that are one number per training; the two sequences are paired by seed.

    Raises UserError where the arms have not measured the same prompts by the same version of a metric."""
    for metric in metrics_of(measure)[0]:
        benchmarks = [run.benchmarked for run in (*first, *second)]
        if len({(one.prompts_digest, one.versions.get(metric)) for one in benchmarks}) > 1:
            raise UserError(f"{metric}: runs were benchmarked on different prompts, or by different versions of it")
    if measure.startswith("gap:"):
        _, a, b = measure.split(":")
        parts = [differences(one, first, second) / _deviation(one, second) for one in (a, b)]
        return parts[0] - parts[1]
    if measure == "seconds_per_iteration":
        trained = [run.trained for run in (*first, *second)]
        if len({one.compiled for one in trained}) > 1:
            raise UserError(f"{measure}: some of the runs were compiled and others not; train all of them alike")
        if len({one.machine for one in trained}) > 1:
            raise UserError(f"{measure}: the runs were made on different machines; train all of them on one")
    if ":" in measure or measure in NUMBERS:
        return np.array([number(measure, x) - number(measure, y) for x, y in zip(first, second, strict=True)])
    values = [np.array([one.evidence(measure).means_P for one in arm]) for arm in (first, second)]
    return values[0] - values[1]


def number(measure: str, run: Record) -> float:
    """Return a measure that is one number per training."""
    name, _, argument = measure.partition(":")
    return NUMBERS[name](run, argument)


def described(measure: str, title: Callable[[str], str]) -> tuple[str, str]:
    """Return (what a reader is told, unit) of a measure; `title` tells a metric's own title."""
    name, _, argument = measure.partition(":")
    if name == "gap":
        reward, held_out = argument.split(":")
        return f"gain in {title(reward)} beyond the gain in {title(held_out)}", "standard deviations of images"
    if name not in NUMBERS:
        return title(measure), ""
    metric, _, stage = argument.partition(":")
    text = TEXTS[name].format(title(metric) if metric else "", stage.replace("_", " "))
    return text, LOGARITHM if name in LOGARITHMIC else ""


def metrics_of(measure: str) -> tuple[list[str], list[str]]:
    """Return (metrics of the suite, metrics of canary or rewards) that a measure needs."""
    name, *arguments = measure.split(":")
    if name in ("gap", "set"):
        return arguments, []
    return ([], arguments[:1]) if name in NUMBERS else ([measure], [])


def curve(
    run: Record, metric: str, stage: str = "", over: Literal["iteration", "passes"] = "iteration"
) -> list[tuple[int, float]]:
    """Return (iteration, value) of a canary metric over a training, or over one of its stages and where that began.

    Of "spread:<reward>": the reward's spread in the training batches of the last stage, iterations of that stage.
    over "passes": (network passes since the training began, value)."""
    kind, _, reward = metric.partition(":")
    if kind == "spread":
        key = f"reward_std/{reward}"
        return [(int(line[over]), line[key]) for line in run.trained.last_stage if key in line]
    points = [point for point in run.trained.curves if metric in point]
    if stage:  # the canary measures the end of a stage, which is the next one's start
        own = [place for place, point in enumerate(points) if point["stage"] == stage]
        points = points[max(0, own[0] - 1) : own[-1] + 1] if own else []
    return [(int(str(point[over])), float(str(point[metric]))) for point in points]


def equal_passes(arms: Sequence[Record]) -> str:
    """Return "" where trainings took equal network passes, else what they took."""
    passes = {one.name: one.trained.network_passes for one in arms}
    if not passes:
        return ""
    fewest, last = min(passes.values()), max(map(_last_iterations, arms))
    if max(passes.values()) - fewest <= max(PASS_TOLERANCE * fewest, last):
        return ""
    return "network passes differ: " + ", ".join(f"{name} {count:,}" for name, count in passes.items())


def equal_updates(arms: Sequence[Sequence[Record]]) -> str:
    """Return "" where two arms took equal iterations, seed by seed, else what they took."""
    for one, other in zip(*arms, strict=True):
        a, b = iterations(one), iterations(other)
        if abs(a - b) > PASS_TOLERANCE * max(a, b):
            return f"updates differ: {one.name} {a:,}, {other.name} {b:,}"
    return ""


def iterations(run: Record) -> int:
    """Return the iterations of a training, of all its stages."""
    return sum(stage.iterations for stage in run.trained.stages)


def _last_iterations(run: Record) -> float:
    return sum(stage.network_passes / max(1, stage.iterations) for stage in run.trained.stages)


def _deviation(metric: str, arm: Sequence[Record]) -> float:
    """Return the standard deviation of all the images of an arm, of which each run has as many."""
    runs = [one.evidence(metric) for one in arm]
    within = statistics.fmean(one.deviation**2 for one in runs)
    return math.sqrt(within + statistics.pvariance([one.mean for one in runs]))


def _area(run: Record, argument: str) -> float:
    metric, _, stage = argument.partition(":")
    points = curve(run, metric, stage, over="passes")
    x, y = np.array(_enough(run, points, f"canary points of {metric} in stage {stage}")).T
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def _roughness(run: Record, metric: str) -> float:
    """Return it of the points nearest to equal parts of the passes: the points of another arm may lie wider."""
    points = curve(run, metric, over="passes")
    x, y = np.array(_enough(run, points, f"canary points of {metric}", least=STEPS + 1)).T
    nearest = [int(np.abs(x - at).argmin()) for at in np.linspace(x[0], x[-1], STEPS + 1)[STEPS // 2 :]]
    return float(np.sqrt((np.diff(y[nearest]) ** 2).mean()))


def _spread(run: Record, reward: str) -> float:
    values = [value for _, value in curve(run, f"spread:{reward}")]
    return statistics.fmean(
        _enough(run, values, f"lines with reward_std/{reward} in its last stage", least=1)[len(values) // 2 :]
    )


def _per_iteration(run: Record, key: Callable[[dict[str, float]], float]) -> float:
    lines = _enough(run, run.trained.last_stage, "logged iterations of its last stage")
    steps = [(key(b) - key(a)) / (b["iteration"] - a["iteration"]) for a, b in pairwise(lines)]
    return math.log(statistics.median(steps))


def _passes_per_iteration(run: Record, _: str = "") -> float:
    return _per_iteration(run, lambda line: line["passes"])


def _gradient_variance(run: Record, _: str) -> float:
    values = [line["gradient_variance"] for line in run.trained.last_stage if "gradient_variance" in line]
    found = _enough(run, values, "lines with gradient_variance in its last stage", least=1)[-1]
    return math.log(found) + _passes_per_iteration(run)


def _enough(run: Record, found: list[T], what: str, least: int = 2) -> list[T]:
    """Return what was found. Raises UserError where it is too little."""
    if len(found) < least:
        raise UserError(f"{run.name}: {len(found)} {what}; at least {least} are needed")
    return found


NUMBERS: dict[str, Callable[[Record, str], float]] = {
    "set": Record.set_value,
    "area": _area,
    "roughness": _roughness,
    "spread": _spread,
    "seconds_per_iteration": lambda run, _: _per_iteration(run, lambda line: line["time"]),
    "passes_per_iteration": _passes_per_iteration,
    "gradient_variance": _gradient_variance,
}
LOGARITHMIC = ("seconds_per_iteration", "passes_per_iteration", "gradient_variance")
TEXTS = {
    "set": "{}",
    "area": "mean of {} over the {} (canary)",
    "roughness": "roughness of {} late in training (canary)",
    "spread": "spread of {} in training batches",
    "seconds_per_iteration": "seconds per iteration",
    "passes_per_iteration": "network passes per iteration",
    "gradient_variance": "variance of the policy gradient at equal network passes",
}


def check_measures(measures: Sequence[str], suite: Sequence[str], watched: Sequence[str], where: str) -> None:
    """Raise UserError for a measure whose metric neither the suite nor canary and rewards know."""
    for measure in measures:
        for names, known, what in zip(metrics_of(measure), (suite, watched), ("suite", "canary"), strict=True):
            for name in names:
                if name not in known:
                    raise UserError(
                        f"{where}: measure {measure!r}: {name!r} is not in the {what}; known: {', '.join(known)}"
                    )
