"""All pairs at once give what one comparison gives; win rates on cases with a known answer."""

import math

import numpy as np
import pytest

from leaderboards.pairs import compare_all, compare_with, win_rate
from leaderboards.schema import ResultError
from leaderboards.statistics import Scores, compare
from tests.leaderboards.test_statistics import scores_of

DRAW = np.random.default_rng(0)
SHARED_PS = DRAW.normal(size=(48, 2))
MODELS = [scores_of(SHARED_PS + shift + DRAW.normal(size=(48, 2)), ["x", "y", "z"] * 16) for shift in (0.0, 0.1, 0.6)]
JUDGED = [scores_of((DRAW.random((40, 4)) < rate).astype(float)) for rate in (0.4, 0.5, 0.9)]


@pytest.mark.parametrize(("models", "how"), [(MODELS, "categories"), (MODELS, "prompts"), (JUDGED, "prompts")])
def test_all_pairs_agree_with_single_comparisons(models: list[Scores], how: str) -> None:
    found = compare_all(models, how, replicates=999)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    for (i, j), pair in found.items():
        one = compare(models[i], models[j], how, replicates=999)
        assert pair.difference == pytest.approx(one.difference, abs=1e-12)
        assert (pair.low, pair.high) == pytest.approx((one.low, one.high), abs=1e-9)
        assert pair.p == pytest.approx(one.p, abs=2e-3)
        assert (pair.n_prompts, pair.n_pairs, pair.n_unpaired) == (one.n_prompts, one.n_pairs, one.n_unpaired)


@pytest.mark.parametrize("how", ["prompts", "categories"])
def test_differences_to_a_baseline_agree_with_single_comparisons(how: str) -> None:
    part = scores_of(SHARED_PS[:40], (["x", "y", "z"] * 16)[:40])  # on fewer prompts than the others
    for model, found in zip(
        [*MODELS[1:], part], compare_with([*MODELS[1:], part], MODELS[0], how, 0, 999), strict=True
    ):
        one = compare(model, MODELS[0], how, replicates=999)
        assert found.difference == pytest.approx(one.difference, abs=1e-12)
        assert (found.low, found.high, found.p) == pytest.approx((one.low, one.high, one.p), abs=2e-3)
        assert (found.n_pairs, found.n_unpaired) == (one.n_pairs, one.n_unpaired)


def test_twins_have_p_one_and_no_interval() -> None:
    (pair,) = compare_all([MODELS[0], MODELS[0]], replicates=199).values()
    assert (pair.difference, pair.low, pair.p) == (0.0, None, 1.0)


def test_win_rate_counts_ties_half_and_each_prompt_once() -> None:
    a = Scores(
        values_N=np.array([1.0, 1.0, 1.0, 0.0]), prompt_ids=list("aaab"), seeds=[0, 1, 2, 0], categories=[""] * 4
    )
    b = Scores(
        values_N=np.array([0.0, 0.0, 1.0, 1.0]), prompt_ids=list("aaab"), seeds=[0, 1, 2, 0], categories=[""] * 4
    )
    assert win_rate(a, b).value == pytest.approx((2.5 / 3 + 0) / 2)


def test_win_rates_of_the_two_sides_sum_to_one() -> None:
    one, other = win_rate(MODELS[0], MODELS[2]), win_rate(MODELS[2], MODELS[0])
    assert one.value + other.value == pytest.approx(1)
    assert one.low is not None and other.high is not None
    assert one.low == pytest.approx(1 - other.high, abs=0.03)
    assert win_rate(MODELS[0], MODELS[2], higher_is_better=False).value == pytest.approx(other.value)


def test_win_rate_of_equal_models_covers_a_half() -> None:
    """Coverage of the nominal 95 %; four images make the steps of the rate small against its error."""
    draw, hits, runs = np.random.default_rng(3), 0, 200
    for run in range(runs):
        a, b = (scores_of(draw.normal(size=(80, 4))) for _ in "ab")
        found = win_rate(a, b, seed=run, replicates=399)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert abs(hits / runs - 0.95) <= 2.5 * math.sqrt(0.95 * 0.05 / runs)


def test_models_without_a_common_image_are_refused() -> None:
    other = Scores(values_N=np.ones(1), prompt_ids=["other"], seeds=[0], categories=[""])
    with pytest.raises(ResultError, match="every model"):
        compare_all([MODELS[0], other])
    with pytest.raises(ResultError, match="both"):
        win_rate(MODELS[0], other)
