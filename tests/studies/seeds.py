"""Do intervals over seeds and prompts hold what they say? Ours beside two that do not.

Run it by `tox -e study-seeds`.

    ours        leaderboards/seeds.py
    bootstrap   seeds and prompts resampled independently of each other, percentiles: the usual crossed bootstrap
    prompts     Student's interval of the prompts' means: what is right for one trained model, not for its training

Truth is known by construction; the three columns of deviations are those of seeds, prompts and the rest. Ours must
cover at least 95 % less two standard errors everywhere; the others are shown. Exit code 1 where it does not.
"""

import math
import sys
from collections.abc import Callable

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

from leaderboards.seeds import coverage, effect

Interval = Callable[[np.ndarray], tuple[float, float]]
DEVIATIONS = [(0.0, 0.3, 0.5), (0.02, 0.3, 0.5), (0.05, 0.3, 0.5), (0.2, 0.3, 0.5), (1.0, 0.3, 0.5)]
RESAMPLES = 400


def ours(d_SP: np.ndarray) -> tuple[float, float]:
    found = effect(d_SP)
    return found.low, found.high


def crossed_bootstrap(d_SP: np.ndarray) -> tuple[float, float]:
    draw, (seeds, prompts) = np.random.default_rng(0), d_SP.shape
    seed_RS, prompt_RP = (draw.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in (seeds, prompts))
    low, high = np.quantile((seed_RS @ d_SP * prompt_RP).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def prompts_alone(d_SP: np.ndarray) -> tuple[float, float]:
    prompt_P = d_SP.mean(axis=0)
    return stats.t.interval(0.95, len(prompt_P) - 1, loc=prompt_P.mean(), scale=stats.sem(prompt_P))


def study(runs: int = 2000, seeds: tuple[int, ...] = (3, 5), prompts: int = 200) -> int:
    """Run the study and return the exit code.

    Args:
        runs: draws of every case
        seeds: numbers of seeds
        prompts: number of prompts
    """
    table = Table(title=f"coverage of 95 % intervals, {runs} draws, {prompts} prompts")
    for heading in ("seeds", "deviations: seeds, prompts, rest", "ours", "bootstrap", "prompts alone"):
        table.add_column(heading, justify="right")
    lowest = 1.0
    for count in seeds:
        for deviations in DEVIATIONS:
            intervals: list[Interval] = [ours, crossed_bootstrap, prompts_alone]
            covered = [coverage(interval, count, prompts, deviations, runs) for interval in intervals]
            lowest = min(lowest, covered[0])
            table.add_row(str(count), ", ".join(map(str, deviations)), *(f"{one:.3f}" for one in covered))
    Console().print(table)
    return 1 if lowest < 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs) else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(study))
