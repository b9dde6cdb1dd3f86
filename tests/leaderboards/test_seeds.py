"""Intervals over seeds and prompts: known answers, coverage by simulation, power."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from leaderboards.schema import ResultError
from leaderboards.seeds import LEAST_P, SeedEffect, coverage, effect, mean_squares

ONLY_SEEDS, ONLY_PROMPTS, ONLY_REST = (1.0, 0.0, 1e-6), (0.0, 1.0, 1e-6), (0.0, 0.0, 1.0)
EQUAL_SHARES = (0.07, 0.3, 0.5)  # of 60 prompts and 3 seeds: the error of the mean comes from all three alike


def ours(d_SP: np.ndarray) -> tuple[float, float]:
    found = effect(d_SP)
    return found.low, found.high


def test_one_number_per_seed_gives_students_interval() -> None:
    d_S = np.array([0.1, 0.4, 0.2, 0.35])
    found = effect(d_S)
    expected = stats.t.interval(0.95, 3, loc=d_S.mean(), scale=stats.sem(d_S))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert (found.seeds, found.prompts, found.freedom) == (4, 0, pytest.approx(3))


def test_mean_squares_are_those_of_a_two_way_table() -> None:
    d_SP = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]])
    # by hand: mean 3.5; seeds 3, 4; prompts 2, 3, 5.5; rest ± .5, ± .5, ± 1
    assert mean_squares(d_SP) == pytest.approx((1.5, 6.5, 1.5))


def test_prompts_alone_give_the_interval_of_their_means() -> None:
    prompt_P = np.random.default_rng(0).standard_normal(40)
    found = effect(np.stack([prompt_P] * 3))
    expected = stats.t.interval(0.95, 39, loc=prompt_P.mean(), scale=stats.sem(prompt_P))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("deviations", [ONLY_SEEDS, ONLY_PROMPTS, EQUAL_SHARES], ids=["seeds", "prompts", "all"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_whatever_dominates(deviations: tuple[float, float, float], seeds: int) -> None:
    covered = coverage(ours, seeds, 60, deviations, runs=1200)
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1200)


def test_images_alone_make_it_wide_not_wrong() -> None:
    assert coverage(ours, 3, 60, ONLY_REST, runs=600) > 0.95
    assert coverage(ours, 5, 60, ONLY_REST, runs=600) < 0.999  # and not without bounds


def test_the_simulation_tells_an_interval_that_forgets_seeds() -> None:
    def prompts_only(d_SP: np.ndarray) -> tuple[float, float]:
        prompt_P = d_SP.mean(axis=0)
        return stats.t.interval(0.95, len(prompt_P) - 1, loc=prompt_P.mean(), scale=stats.sem(prompt_P))

    assert coverage(prompts_only, 3, 60, (0.3, 0.3, 0.5), runs=400) < 0.5


def test_a_detectable_difference_is_detected_four_times_of_five() -> None:
    draw, deviations = np.random.default_rng(1), (0.05, 0.3, 0.5)

    def drawn(shift: float) -> np.ndarray:
        d_SP = shift + deviations[0] * draw.standard_normal((5, 1)) + deviations[1] * draw.standard_normal((1, 60))
        return d_SP + deviations[2] * draw.standard_normal((5, 60))

    detectable = np.mean([effect(drawn(0.0)).detectable() for _ in range(200)])
    found = np.mean([effect(drawn(float(detectable))).low > 0 for _ in range(400)])
    assert 0.72 < found < 0.92


# Of the seeds' effect, of the prompts', of the rest; the last number: how far the approximation may be off
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("deviations", "off"), [((0.1, 0.0, 0.0), 0.0), ((0.0, 0.0, 0.5), 0.0), ((0.03, 0.3, 0.5), 0.06)]
)
@pytest.mark.parametrize("errors", [1.0, 2.0, 4.0])
def test_power_is_how_often_a_true_difference_is_found(
    seeds: int, deviations: tuple[float, float, float], off: float, errors: float
) -> None:
    draw, prompts, runs = np.random.default_rng(3), 60, 2000
    of_seeds, of_prompts, of_rest = deviations
    seed_part, prompt_part = of_seeds**2 / seeds + of_rest**2 / (seeds * prompts), of_prompts**2 / prompts
    known = SeedEffect(0.0, ((seed_part, seeds - 1), (prompt_part, prompts - 1)), seeds, prompts)
    found = 0
    for _ in range(runs):
        d_SP = errors * known.error + of_seeds * draw.standard_normal((seeds, 1))
        d_SP = (
            d_SP + of_prompts * draw.standard_normal((1, prompts)) + of_rest * draw.standard_normal((seeds, prompts))
        )
        found += effect(d_SP).low > 0
    power = known.power("above", errors * known.error)
    assert power is not None and abs(found / runs - power) < off + 3 * (power * (1 - power) / runs) ** 0.5


def test_power_grows_with_what_would_matter_and_asks_more_of_equality() -> None:
    found = effect(np.random.default_rng(2).standard_normal((5, 60)) * 0.1)
    detectable = found.detectable()
    assert detectable is not None and found.power("above", detectable) == pytest.approx(0.8)
    assert found.power("above", 10.0) == pytest.approx(1.0)
    assert found.power("near", found.half_width / 20) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("seeds", "errors"), [(3, 5.0), (5, 3.0)])
def test_the_power_to_find_nothing_is_that_of_repetitions(seeds: int, errors: float) -> None:
    d_RS = np.random.default_rng(3).standard_normal((20_000, seeds))
    half_R = stats.t.ppf(0.975, seeds - 1) * d_RS.std(axis=1, ddof=1) / seeds**0.5
    smallest = errors / seeds**0.5  # the true error of a mean is 1 / sqrt(S)
    found = np.mean(np.abs(d_RS.mean(axis=1)) + half_R < smallest)
    known = SeedEffect(0.0, ((1 / seeds, seeds - 1),), seeds, 0)
    assert known.power("near", smallest) == pytest.approx(found, abs=0.01)


def test_p_is_that_of_the_t_test_where_seeds_alone_vary_and_agrees_with_the_interval() -> None:
    d_S = np.random.default_rng(0).standard_normal(5) + 1
    assert effect(d_S).p == pytest.approx(stats.ttest_1samp(d_S, 0.0).pvalue)
    found = effect(np.random.default_rng(4).standard_normal((5, 60)) + np.linspace(-1, 1, 60))
    for shift, least, most in ((-0.999, 0.05, 0.06), (-1.001, 0.04, 0.05)):
        touched = replace(found, value=shift * found.half_width)
        assert touched.p is not None and least <= touched.p <= most
    assert replace(found, value=0.0).p == 1 and replace(found, value=1e9).p == LEAST_P
    assert effect(np.ones((3, 4))).p is None


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ResultError, match="one seed"):
        effect(np.zeros((1, 30)))
    with pytest.raises(ResultError, match="not finite"):
        effect(np.array([[0.0, np.nan], [0.0, 1.0]]))
    assert effect(np.zeros((3, 4))).power("above", 0.1) is None  # nothing varied at all
