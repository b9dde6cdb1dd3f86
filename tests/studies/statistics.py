"""Simulation study of the statistics: do intervals cover, and tests reject, as often as they say?

Run it by `tox -e study-statistics`.

Truth is known by construction; every run draws new prompts and images. For each kind of data and number of prompts:

    coverage     how often the 95 % interval of a value holds the true value
    difference   how often the 95 % interval of a paired difference holds the true difference
    reject       how often the paired test at 5 % rejects where nothing differs
    familywise   how often bands at 5 % separate any two of five models that do not differ

A rate is judged where there are at least 100 prompts: it must lie within two standard errors of its nominal value,
the error being that of its draws. Of 48 rates that are nominal in truth, two or three are off by chance: what is off
after `--runs` draws is drawn anew, once, with AGAIN times as many fresh seeds, and judged by these alone, in bounds
that much narrower. Both are shown. Fewer prompts are shown, not judged. Exit code 1 where a rate is off again.
"""

import math
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from leaderboards.statistics import Scores, compare, estimate, rank_bands

JUDGED_FROM = 100  # prompts
AGAIN = 4
MODELS = 5
IMAGES = 4
Draw = np.random.Generator
Data = Callable[[Draw, int], tuple[np.ndarray, float]]


def skewed(draw: Draw, prompts: int) -> tuple[np.ndarray, float]:
    """Exponential prompts of one image each."""
    return draw.exponential(size=(prompts, 1)), 1.0


def binary(draw: Draw, prompts: int) -> tuple[np.ndarray, float]:
    """A judge's right or wrong, one image per prompt, seven of ten right."""
    return draw.binomial(1, 0.7, size=(prompts, 1)).astype(float), 0.7


def clustered_binary(draw: Draw, prompts: int) -> tuple[np.ndarray, float]:
    """Four images share the difficulty of their prompt: prompts are easy or nearly hopeless."""
    return draw.binomial(1, draw.beta(0.9, 0.6, size=(prompts, 1)), size=(prompts, IMAGES)).astype(float), 0.6


def clustered_skewed(draw: Draw, prompts: int) -> tuple[np.ndarray, float]:
    """Gamma prompts, gamma images around them."""
    prompt_P1 = draw.gamma(2.0, 0.5, size=(prompts, 1))
    return prompt_P1 * draw.gamma(4.0, 0.25, size=(prompts, IMAGES)), 1.0


KINDS: dict[str, Data] = {f.__name__: f for f in (skewed, binary, clustered_binary, clustered_skewed)}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One line of the study."""

    kind: str
    prompts: int
    what: str
    nominal: float
    found: float
    runs: int

    @property
    def error(self) -> float:
        return math.sqrt(self.nominal * (1 - self.nominal) / self.runs)

    @property
    def verdict(self) -> str:
        if self.prompts < JUDGED_FROM:
            return "shown only"
        return "ok" if abs(self.found - self.nominal) <= 2 * self.error else "OFF"


def scores_of(values_PS: np.ndarray) -> Scores:
    prompts, images = values_PS.shape
    return Scores(
        values_N=values_PS.reshape(-1),
        prompt_ids=[f"p{p:05d}" for p in range(prompts) for _ in range(images)],
        seeds=[s for _ in range(prompts) for s in range(images)],
        categories=[""] * (prompts * images),
    )


def covers_value(data: Data, prompts: int, replicates: int, seed: int) -> bool:
    values_PS, truth = data(np.random.default_rng([1, seed]), prompts)
    scores = scores_of(values_PS)
    found = estimate(scores.values_N, scores.prompt_ids, scores.categories, "prompts", seed, replicates)
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def covers_difference(data: Data, prompts: int, replicates: int, seed: int) -> bool:
    draw = np.random.default_rng([2, seed])
    (a_PS, _), (b_PS, _) = data(draw, prompts), data(draw, prompts)
    found = compare(scores_of(a_PS), scores_of(b_PS), "prompts", seed, replicates)
    return found.low is not None and found.high is not None and found.low <= 0 <= found.high


def rejects(data: Data, prompts: int, replicates: int, seed: int) -> bool:
    draw = np.random.default_rng([3, seed])
    (a_PS, _), (b_PS, _) = data(draw, prompts), data(draw, prompts)
    return compare(scores_of(a_PS), scores_of(b_PS), "prompts", seed, replicates).p <= 0.05


def separates_any(data: Data, prompts: int, replicates: int, seed: int) -> bool:
    draw = np.random.default_rng([4, seed])
    models = [scores_of(data(draw, prompts)[0]) for _ in range(MODELS)]
    return any(band != (1, MODELS) for band in rank_bands(models, "prompts", True, seed, replicates))


QUESTIONS: dict[str, tuple[Callable[[Data, int, int, int], bool], float]] = {
    "coverage": (covers_value, 0.95),
    "difference": (covers_difference, 0.95),
    "reject": (rejects, 0.05),
    "familywise": (separates_any, 0.05),
}


def rate(kind: str, prompts: int, what: str, runs: int, replicates: int, first: int = 0) -> Rate:
    ask, nominal = QUESTIONS[what]
    hits = sum(ask(KINDS[kind], prompts, replicates, run) for run in range(first, first + runs))
    return Rate(kind=kind, prompts=prompts, what=what, nominal=nominal, found=hits / runs, runs=runs)


def study(
    runs: int = 4000, replicates: int = 999, prompts: tuple[int, ...] = (30, 100, 200, 553), workers: int = 2
) -> int:
    """Run the study and return the exit code.

    Args:
        runs: draws of every case; the bar asks for at least 4000
        replicates: resamples and sign flips of each draw
        prompts: numbers of prompts; those below 100 are shown, not judged
        workers: processes
    """
    cases = [(kind, n, what) for kind in KINDS for n in prompts for what in QUESTIONS]
    table = Table(
        title=f"{replicates} resamples; judged from {JUDGED_FROM} prompts: ± two standard errors, drawn anew once"
    )
    for heading in ("data", "prompts", "rate", "draws", "nominal", "found", "allowed", "verdict"):
        table.add_column(heading, justify="left" if heading in ("data", "rate", "verdict") else "right")
    off = 0
    with ProcessPoolExecutor(workers) as pool:
        for found in pool.map(partial(judged, runs=runs, replicates=replicates), cases):
            for one in found:
                cells = (
                    str(one.runs),
                    f"{one.nominal:.3f}",
                    f"{one.found:.4f}",
                    f"± {2 * one.error:.4f}",
                    one.verdict,
                )
                print(one.kind, one.prompts, one.what, *cells, file=sys.stderr, flush=True)  # as they come
                table.add_row(one.kind, str(one.prompts), one.what, *cells)
            off += found[-1].verdict == "OFF"
    Console().print(table)
    return 1 if off else 0


def judged(case: tuple[str, int, str], runs: int, replicates: int) -> list[Rate]:
    """Return a rate and, where it is off, the one of fresh draws that decides."""
    found = [rate(*case, runs=runs, replicates=replicates)]
    if found[0].verdict == "OFF":
        found.append(rate(*case, runs=AGAIN * runs, replicates=replicates, first=runs))
    return found


if __name__ == "__main__":
    sys.exit(tyro.cli(study))
