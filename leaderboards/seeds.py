"""Effects of training: intervals over seeds of training and prompts at once.

A difference d_sp of two arms is paired by training seed s and by prompt p, which are crossed: every student sees the
same prompts. What varies is then a random effect of the seed, one of the prompt, and the rest:

    d_sp = mu + S_s + P_p + E_sp        Var(mean) = (MS_S + MS_P - MS_E) / (S P)        (two-way mean squares)
    interval = mean ± sqrt(t_{S-1}^2 MS_S / (S P) + t_{P-1}^2 max(0, MS_P - MS_E) / (S P))

The seeds' part, of which 3 to 5 are known, gets Student's quantile of so few, the prompts' part that of so many: the
sum is no less than what either alone would ask (Cochran 1951, Biometrics 7, p. 17, for sums of mean squares). A
bootstrap that resamples seeds and prompts is no way out: its 95 % interval of 3 seeds covers 72 to 78 % of cases
where seeds dominate, this one 94 to 98 % whatever dominates; `tox -e study-seeds` shows both.

What is one number per training (a spread, a time, a distance of sets) has seeds alone: P = 1, Student's interval.
Axes: S seeds, P prompts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import nct as noncentral_t
from scipy.stats import t as student_t

from leaderboards.resampling import LEVEL
from leaderboards.schema import ResultError
from leaderboards.studies import Claimed

DRAWS = 10_000  # quantiles of an error that is itself estimated
POWER = 0.8  # of the smallest difference that is said to be detectable
LEAST_P = 1e-9  # below which quantiles are no longer exact


@dataclass(frozen=True)
class SeedEffect:
    """A mean over seeds and prompts with what is known of its error."""

    value: float
    parts: tuple[tuple[float, int], ...]  # of the mean's variance: (size, degrees of freedom) of seeds and of prompts
    seeds: int
    prompts: int

    @cached_property
    def half_width(self) -> float:
        """Half of the 95 % interval."""
        return self._half_width(LEVEL)

    @cached_property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(sum(part for part, _ in self.parts))

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of the error (Satterthwaite)."""
        curvature = sum(part**2 / freedom for part, freedom in self.parts if part)
        return self.error**4 / curvature if curvature else math.inf

    @property
    def p(self) -> float | None:
        """p of no difference, two-sided: 1 - the level whose interval just reaches 0. None where nothing varied."""
        if not self.error:
            return None

        def beyond(p: float) -> float:
            return self._half_width(1 - p) - abs(self.value)

        return float(brentq(beyond, LEAST_P, 1.0)) if beyond(LEAST_P) > 0 else LEAST_P

    def _half_width(self, level: float) -> float:
        return math.hypot(*(_quantile(level, freedom) * math.sqrt(part) for part, freedom in self.parts if part))

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width

    def power(self, claimed: Claimed, smallest: float) -> float | None:
        """Return the probability that a repetition of this study would confirm the claim.

        Of a difference: where it is as large as would just matter. Of "near", "not below" and "not above": where
        there is none. None where nothing varied: then there is no error to reckon with."""
        if not self.error:
            return None
        if claimed == "near":
            return self._within(smallest / self.error)
        return self._reach(smallest / self.error)

    def detectable(self) -> float | None:
        """Return the smallest true difference whose interval would leave 0 with probability 80 %."""
        if not self.error:
            return None
        most = 3 * self.half_width / self.error + 10  # of a single degree of freedom it is 1.3 times the half width
        return self.error * float(brentq(lambda errors: self._reach(errors) - POWER, 0.0, most))

    def _within(self, errors: float) -> float:
        """Return the probability that the interval around no difference lies within so many standard errors of 0."""
        found_D = np.sqrt(chi2.ppf((np.arange(DRAWS) + 0.5) / DRAWS, self.freedom) / self.freedom)  # error / its mean
        room_D = np.maximum(0.0, errors - self.half_width / self.error * found_D)
        return float(np.mean(2 * norm.cdf(room_D) - 1))

    def _reach(self, errors: float) -> float:
        """Return the probability that the interval around a difference of so many standard errors lies above 0.

        The interval's width varies with the difference: a noncentral t, exact where only the seeds vary."""
        return float(noncentral_t.sf(self.half_width / self.error, self.freedom, errors))


def effect(d_SP: np.ndarray) -> SeedEffect:
    """Return mean and error of differences over seeds [S] or over seeds and prompts [S, P].

    Raises ResultError for fewer than two seeds, and for a value that is not finite."""
    d_SP = np.asarray(d_SP, dtype=np.float64)
    if d_SP.ndim == 1:
        d_SP = d_SP[:, None]
    if len(d_SP) < 2:
        raise ResultError("one seed of training says nothing of how much seeds vary: train a second one")
    if not np.isfinite(d_SP).all():
        raise ResultError("a value is not finite")
    seeds, prompts = d_SP.shape
    of_seeds, of_prompts, of_rest = mean_squares(d_SP)
    seed_part = of_seeds / (seeds * prompts)
    prompt_part = max(0.0, of_prompts - of_rest) / (seeds * prompts)
    return SeedEffect(
        value=math.fsum(d_SP.ravel()) / d_SP.size,
        parts=((seed_part, seeds - 1), (prompt_part, prompts - 1)),
        seeds=seeds,
        prompts=prompts if prompts > 1 else 0,
    )


def mean_squares(d_SP: np.ndarray) -> tuple[float, float, float]:
    """Return the mean squares of seeds, prompts and the rest; those of prompts and rest are 0 for a single prompt."""
    seeds, prompts = d_SP.shape
    mean = d_SP.mean()
    seed_S1 = d_SP.mean(axis=1, keepdims=True) - mean
    prompt_1P = d_SP.mean(axis=0, keepdims=True) - mean
    rest_SP = d_SP - mean - seed_S1 - prompt_1P
    of_seeds = prompts * float((seed_S1**2).sum()) / (seeds - 1)
    if prompts == 1:
        return of_seeds, 0.0, 0.0
    of_prompts = seeds * float((prompt_1P**2).sum()) / (prompts - 1)
    return of_seeds, of_prompts, float((rest_SP**2).sum()) / ((seeds - 1) * (prompts - 1))


def coverage(
    interval: Callable[[np.ndarray], tuple[float, float]],
    seeds: int,
    prompts: int,
    deviations: tuple[float, float, float],
    runs: int,
) -> float:
    """Return how often an interval of simulated differences, whose mean is 0, holds it.

    deviations: of the seeds' effect, of the prompts', of the rest."""
    draw, hits = np.random.default_rng([seeds, prompts, runs]), 0
    of_seeds, of_prompts, of_rest = deviations
    for _ in range(runs):
        d_SP = of_seeds * draw.standard_normal((seeds, 1)) + of_prompts * draw.standard_normal((1, prompts))
        low, high = interval(d_SP + of_rest * draw.standard_normal((seeds, prompts)))
        hits += low <= 0 <= high
    return hits / runs


def _quantile(level: float, freedom: int) -> float:
    return float(student_t.ppf((1 + level) / 2, freedom))
