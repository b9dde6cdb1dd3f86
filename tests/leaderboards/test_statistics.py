"""Known cases, invariances and coverage of the statistics."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from leaderboards import resampling
from leaderboards.schema import ResultError
from leaderboards.statistics import Scores, breakdown, compare, estimate, holm, rank_bands


def scores_of(values_PS: np.ndarray, categories: list[str] | None = None) -> Scores:
    prompts, images = values_PS.shape
    return Scores(
        values_N=values_PS.reshape(-1),
        prompt_ids=[f"p{p:04d}" for p in range(prompts) for _ in range(images)],
        seeds=[s for _ in range(prompts) for s in range(images)],
        categories=[(categories or [""] * prompts)[p] for p in range(prompts) for _ in range(images)],
    )


def estimate_of(values_PS: np.ndarray, categories: list[str] | None = None, **options: Any) -> Any:
    scores = scores_of(values_PS, categories)
    how = "categories" if categories else "prompts"
    return estimate(scores.values_N, scores.prompt_ids, scores.categories, how, **options)


def test_every_prompt_weighs_the_same_whatever_its_number_of_images() -> None:
    found = estimate(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], [""] * 4, "prompts")
    assert (found.value, found.n_prompts, found.n_images) == (0.5, 2, 4)


def test_every_category_weighs_the_same_whatever_its_number_of_prompts() -> None:
    found = estimate(np.array([1.0, 1.0, 1.0, 0.0]), list("abcd"), ["x", "x", "x", "y"], "categories")
    assert found.value == 0.5


def test_bootstrap_variance_is_the_unbiased_variance_of_the_mean() -> None:
    means_P = np.random.default_rng(0).normal(size=12)
    replicates_R = resampling.bootstrap(means_P, np.zeros(12, int), 0, 200_000)
    # The variance of a variance of R normal draws is 2 / R: 1 % is more than four standard errors.
    assert replicates_R.var() == pytest.approx(means_P.var(ddof=1) / 12, rel=0.015)
    assert replicates_R.mean() == pytest.approx(means_P.mean(), abs=5 * means_P.std() / math.sqrt(12 * 200_000))


def test_stratified_bootstrap_has_the_analytic_standard_error() -> None:
    draw = np.random.default_rng(1)
    strata_P = np.repeat([0, 1], [10, 40])
    means_P = draw.normal(size=50) + 5 * strata_P  # the distance between the categories must not count
    replicates_R = resampling.bootstrap(means_P, strata_P, 0, 100_000)
    variance = sum(means_P[strata_P == s].var(ddof=1) / n for s, n in ((0, 10), (1, 40))) / 4
    assert replicates_R.var() == pytest.approx(variance, rel=0.02)


def test_interval_of_a_large_normal_sample_is_the_textbook_one() -> None:
    values_PS = np.random.default_rng(2).normal(size=(2000, 1))
    found = estimate_of(values_PS)
    half = 1.96 * values_PS.std(ddof=1) / math.sqrt(2000)
    assert found.low == pytest.approx(found.value - half, abs=0.06 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.06 * half)


def test_images_of_a_prompt_add_nothing_where_they_agree() -> None:
    once = estimate_of(np.random.default_rng(3).normal(size=(30, 1)))
    means = np.random.default_rng(3).normal(size=(30, 1))
    often = estimate_of(np.repeat(means, 8, axis=1))
    assert (often.low, often.high) == pytest.approx((once.low, once.high), rel=1e-9)


@pytest.mark.parametrize(
    ("values_PS", "categories"),
    [
        (np.array([[0.0, 1.0]]), None),
        (np.array([[0.0], [1.0], [0.5]]), ["x", "x", "y"]),
        (np.ones((30, 4)), None),
        (np.array([[1.0], [1.0], [0.0], [0.0]]), ["x", "x", "y", "y"]),
    ],
    ids=["one prompt", "a category of one prompt", "prompts that agree", "prompts that agree within categories"],
)
def test_no_interval_where_it_would_be_a_guess(values_PS: np.ndarray, categories: list[str] | None) -> None:
    found = estimate_of(values_PS, categories)
    assert found.low is None and found.high is None


@settings(max_examples=25)
@given(data=st.data())
def test_order_of_rows_changes_no_bit(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 40))
    values = np.array(data.draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=size, max_size=size)), np.float32)
    ids = [f"p{data.draw(st.integers(0, 7))}" for _ in range(size)]
    categories = ["xy"[int(name[1:]) % 2] for name in ids]
    order = data.draw(st.permutations(range(size)))
    shuffled = [[items[i] for i in order] for items in (ids, categories)]
    for how in ("prompts", "categories"):
        assert estimate(values, ids, categories, how, replicates=199) == estimate(
            values[order], shuffled[0], shuffled[1], how, replicates=199
        )


def test_means_are_exactly_rounded_in_any_order() -> None:
    values = np.array([1e16, 1.0, -1e16])
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2]):
        assert estimate(values[order], ["a"] * 3, [""] * 3, "prompts").value == 1 / 3


@settings(max_examples=25)
@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(0, 2**16))
def test_estimate_follows_shift_and_scale(shift: float, scale: float, seed: int) -> None:
    values_PS = np.random.default_rng(seed).random((20, 2))
    plain, moved = estimate_of(values_PS, replicates=399), estimate_of(shift + scale * values_PS, replicates=399)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(shift + scale * getattr(plain, name), abs=1e-8 * (1 + scale))


def test_memory_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (scores_of(np.random.default_rng(i).random((40, 2)), ["x", "y"] * 20) for i in range(2))
    whole = (compare(a, b, "categories", replicates=999), rank_bands([a, b], "prompts", True, replicates=999))
    monkeypatch.setattr(resampling, "_CHUNK", 500)
    assert whole == (compare(a, b, "categories", replicates=999), rank_bands([a, b], "prompts", True, replicates=999))


def test_draws_are_the_same_on_every_machine() -> None:
    """Golden values: a change of numpy or of the drawing code shows here, before it shows on a board."""
    values_PS = (np.arange(40, dtype=np.float32).reshape(20, 2) / 64) ** 2
    found = estimate_of(values_PS, ["x", "y"] * 10, replicates=999)
    assert (found.value, found.low, found.high) == GOLDEN
    assert compare(scores_of(values_PS), scores_of(values_PS[::-1] + 0.05)).p == GOLDEN_P


GOLDEN = (0.1253662109375, 0.07588704427083334, 0.1851535373263889)
GOLDEN_P = 0.3382


def coverage(kind: str, prompts: int, runs: int) -> float:
    """Share of runs whose interval holds the true mean."""
    draw = np.random.default_rng(7)
    hits = 0
    for run in range(runs):
        if kind == "skewed":
            values_PS, truth = draw.exponential(size=(prompts, 1)), 1.0
        else:  # four images of a prompt share its difficulty: U-shaped, as prompts are easy or hopeless
            values_PS, truth = draw.binomial(1, draw.beta(1.8, 0.2, size=(prompts, 1)), size=(prompts, 4)), 0.9
        found = estimate_of(values_PS.astype(float), seed=run, replicates=999)
        hits += found.low <= truth <= found.high
    return hits / runs


@pytest.mark.parametrize("kind", ["skewed", "clustered binary"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str) -> None:
    runs = 400
    error = math.sqrt(0.95 * 0.05 / runs)
    assert abs(coverage(kind, 120, runs) - 0.95) <= 2.5 * error


def test_bca_misses_more_evenly_than_percentiles_on_skewed_data() -> None:
    """Why BCa: of the percentile interval's misses on skewed data, nearly all lie on one side."""
    draw, misses = np.random.default_rng(11), {"bca": [0, 0], "percentile": [0, 0]}
    for run in range(400):
        means_P, strata_P = draw.lognormal(size=60), np.zeros(60, int)
        ordered_R = np.sort(resampling.bootstrap(means_P, strata_P, run, 999))
        percentile = (ordered_R[24], ordered_R[974])
        bca = resampling.bca_interval(means_P, strata_P, run, 999)
        assert bca[0] is not None and bca[1] is not None
        for name, (low, high) in (("bca", bca), ("percentile", percentile)):
            misses[name][0] += low > math.exp(0.5)
            misses[name][1] += high < math.exp(0.5)
    assert sum(misses["bca"]) <= sum(misses["percentile"])
    assert abs(misses["bca"][0] - misses["bca"][1]) < abs(misses["percentile"][0] - misses["percentile"][1])


def test_comparison_is_paired_by_prompt_and_seed() -> None:
    noise_PS = np.random.default_rng(4).normal(size=(50, 4))
    a, b = scores_of(noise_PS + 0.1), scores_of(noise_PS)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.1)
    assert found.p == pytest.approx(1e-4)  # the smallest that 9,999 replicates can show
    assert (found.n_prompts, found.n_pairs, found.n_unpaired) == (50, 200, 0)


def test_comparison_turns_its_sign_with_its_sides() -> None:
    a, b = (scores_of(np.random.default_rng(i).random((30, 2))) for i in range(2))
    one, other = compare(a, b), compare(b, a)
    assert (one.difference, one.p) == (-other.difference, other.p)


def test_p_of_few_prompts_is_the_exact_mid_p() -> None:
    """Five differences of 1: of 32 sign patterns, two reach |sum| = 5, both by a tie."""
    a, b = scores_of(np.ones((5, 1))), scores_of(np.zeros((5, 1)))
    assert compare(a, b, replicates=99_999).p == pytest.approx(1 / 32, abs=0.002)


def test_mid_p_of_yes_and_no_is_mcnemars() -> None:
    """Nine discordant prompts, seven for one side: P(|sum| > 5) + P(|sum| = 5) / 2 = (2 * 10 + 36) / 512."""
    parts_P = np.array([1.0] * 7 + [-1.0] * 2 + [0.0] * 11)
    assert resampling.sign_flip_p(parts_P, 0, 99_999) == pytest.approx(56 / 512, abs=0.003)


def test_sums_that_only_rounding_tells_apart_are_ties() -> None:
    """1/3 + 1/3 + 1/3 against 1: of 16 patterns of signs, |sum| = 2 in two and |sum| = 0 in two."""
    parts_P = np.array([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert resampling.sign_flip_p(parts_P, 0, 99_999) == pytest.approx(1 / 16, abs=0.003)
    assert resampling.sign_flip_p(parts_P * [1, 1, 1, -1], 0, 9) == 1.0


def test_expanded_levels_of_many_prompts_are_the_plain_ones() -> None:
    draw = np.random.default_rng(12)
    of_ten, of_many = draw.normal(size=10), draw.normal(size=1_000_000)
    assert resampling.expanded_z(of_many, np.zeros(1_000_000, int)) == pytest.approx(1.959964, abs=1e-5)
    assert resampling.expanded_z(of_ten - of_ten.mean(), np.zeros(10, int)) == pytest.approx(2.262157, abs=1e-6)


def test_expanded_levels_of_strata_are_welchs() -> None:
    """Variances 1 and 4 of means of 5 and 9 prompts: 5^2 / (1 / 4 + 16 / 8) = 100 / 9 degrees of freedom."""
    strata_P = np.repeat([0, 1], [5, 9])
    influence_P = np.array([1.0, -1, 1, -1, 0]) / math.sqrt(5)
    influence_P = np.concatenate([influence_P, np.array([1.0, -1] * 4 + [0]) * math.sqrt(4 * 8 / 9 / 8)])
    assert resampling.expanded_z(influence_P, strata_P) == pytest.approx(2.198303, abs=1e-6)


def test_levels_of_few_prompts_stay_levels() -> None:
    """One prompt far out of six, and t beyond the pole of BCa: the upper end is the largest replicate."""
    means_P, strata_P = np.array([0.0] * 5 + [1.0]), np.zeros(6, int)
    low, high = resampling.bca_levels(np.linspace(-1, 1, 999), 0.99, means_P, strata_P)
    assert 0 < low < high == 1.0


def margin(d_P: np.ndarray, strata_P: np.ndarray | None = None, replicates: int = 999) -> float | None:
    strata_P = np.zeros(len(d_P), int) if strata_P is None else strata_P
    return resampling.difference_margins(d_P[:, None], strata_P, 0, replicates)[0]


def test_interval_of_a_difference_turns_its_sign_with_its_sides() -> None:
    draw = np.random.default_rng(13)
    a, b = (scores_of(draw.integers(0, 2, size=(60, 1)).astype(float)) for _ in "ab")
    one, other = compare(a, b), compare(b, a)
    assert one.low is not None and other.high is not None
    assert (one.low, one.high) == (-other.high, -other.low if other.low is not None else None)


def test_bootstrap_t_on_a_worked_case() -> None:
    """Differences 0 and 1 of two prompts: half of the resamples do not vary, the others are the sample itself; so q
    is Student's of one degree of freedom, and s = 1 / 2."""
    found = margin(np.array([0.0, 1.0]))
    assert found == pytest.approx(12.7062047 / 2, rel=1e-6)


def test_bootstrap_t_of_strata_against_a_plain_loop() -> None:
    """Three prompts and four: every resample of them, each with its own standard error."""
    strata_P, d_P = np.repeat([0, 1], [3, 4]), np.array([0.0, 1.0, 5.0, 2.0, 2.5, 4.0, 9.0])
    groups = [d_P[strata_P == s] for s in (0, 1)]

    def error(parts: list[np.ndarray]) -> float:
        return math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / 2

    def drawn(group: np.ndarray) -> list[np.ndarray]:
        return [group[list(index)] for index in itertools.product(range(len(group)), repeat=len(group))]

    t = []
    for parts in itertools.product(drawn(groups[0]), drawn(groups[1])):
        off = abs(sum(part.mean() for part in parts) - sum(group.mean() for group in groups)) / 2
        t.append(off / error(list(parts)) if error(list(parts)) else math.inf)
    q = np.quantile(t, 0.95, method="inverted_cdf")
    assert margin(d_P, strata_P, 99_999) == pytest.approx(q * error(groups), rel=0.03)


def test_margins_have_the_unit_of_the_differences_and_no_place() -> None:
    d_P = np.random.default_rng(14).standard_t(3, size=80)
    found = margin(d_P)
    assert found is not None
    assert margin(d_P * 1e-9) == pytest.approx(found * 1e-9, rel=1e-5)
    assert margin(d_P + 1e4) == pytest.approx(found, rel=1e-5)
    assert margin(d_P, replicates=0) is None


@pytest.mark.parametrize("prompts", range(301, 320))
def test_of_two_prompts_that_differ_among_hundreds_the_interval_is_students(prompts: int) -> None:
    """One resample in seven holds neither of them: the bootstrap cannot tell q."""
    d_P = np.zeros(prompts)
    d_P[:2] = 1.0
    expected = stdtrit(prompts - 1, 0.975) * d_P.std(ddof=1) / math.sqrt(prompts)
    assert margin(d_P) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**32))
def test_of_three_prompts_the_interval_is_students(seed: int) -> None:
    """One resample in nine is three times the same prompt."""
    d_P = np.random.default_rng(seed).normal(size=3)
    assert margin(d_P, replicates=199) == pytest.approx(4.3026527 * d_P.std(ddof=1) / math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.1, 1 / 3])
def test_prompts_that_differ_by_rounding_alone_have_no_interval(shift: float) -> None:
    base_P = np.random.default_rng(15).random(1000)
    assert margin((base_P + shift) - base_P) is None
    assert margin(np.array([0.5] * 39 + [0.5 + 2.0**-44])) is None


def test_intervals_of_differences_cover_as_often_as_they_say() -> None:
    draw, runs, held = np.random.default_rng(16), 400, {"bootstrap-t": 0, "normal": 0}
    for run in range(runs):
        d_P = draw.exponential(size=12) - draw.exponential(size=12)
        (found,) = resampling.difference_margins(d_P[:, None], np.zeros(12, int), run, 399)
        assert found is not None
        held["bootstrap-t"] += abs(d_P.mean()) <= found
        held["normal"] += abs(d_P.mean()) <= 1.96 * d_P.std() / math.sqrt(12)
    assert abs(held["bootstrap-t"] / runs - 0.95) <= 2.5 * math.sqrt(0.95 * 0.05 / runs)
    assert held["normal"] / runs < 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / runs)  # the case can tell


def test_p_is_one_between_equal_models_and_the_interval_is_left_out() -> None:
    a = scores_of(np.random.default_rng(5).random((20, 2)))
    assert (compare(a, a).p, compare(a, a).low) == (1.0, None)


def test_p_is_uniform_where_nothing_differs() -> None:
    draw = np.random.default_rng(6)
    p = []
    for _ in range(300):
        a, b = (scores_of(draw.binomial(1, 0.6, size=(60, 2)).astype(float)) for _ in "ab")
        p.append(compare(a, b, replicates=399).p)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.09)


def test_rows_without_a_partner_are_counted_and_left_out() -> None:
    a, b = scores_of(np.ones((4, 2))), scores_of(np.zeros((3, 2)))
    found = compare(a, b)
    assert (found.n_pairs, found.n_unpaired) == (6, 2)


def test_holm_on_a_worked_case() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1, then made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)


def test_bands_separate_what_differs_and_join_what_does_not() -> None:
    draw = np.random.default_rng(8)
    base_PS = draw.normal(size=(100, 2))
    models = [scores_of(base_PS + shift + 0.3 * draw.normal(size=(100, 2))) for shift in (0.0, 0.0, 1.0)]
    assert rank_bands(models, "prompts", True) == [(2, 3), (2, 3), (1, 1)]
    assert rank_bands(models, "prompts", False) == [(1, 2), (1, 2), (3, 3)]


def test_bands_of_twins_and_of_nobody() -> None:
    a = scores_of(np.random.default_rng(9).random((20, 2)))
    assert rank_bands([a, a], "prompts", True) == [(1, 2), (1, 2)]
    assert rank_bands([], "prompts", True) == []


def test_bands_of_equal_models_rarely_separate_any() -> None:
    """Familywise: of many boards of five models that do not differ, at most one in twenty tells any two apart."""
    draw, wrong = np.random.default_rng(10), 0
    for _ in range(150):
        models = [scores_of(draw.normal(size=(40, 1))) for _ in range(5)]
        wrong += any(band != (1, 5) for band in rank_bands(models, "prompts", True, replicates=399))
    assert wrong / 150 <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 150)


def test_breakdown_averages_a_category_over_prompts_and_a_split_as_the_whole() -> None:
    scores = Scores(
        values_N=np.array([1.0, 0.0, 1.0, 1.0, 0.0]),
        prompt_ids=list("abcde"),
        seeds=[0] * 5,
        categories=["x", "x", "x", "y", "y"],
        splits=["seen", "seen", "unseen", "seen", "unseen"],
    )
    found = breakdown(scores, "categories")
    assert {name: part.value for name, part in found.categories.items()} == {"x": 2 / 3, "y": 0.5}
    assert {name: part.value for name, part in found.splits.items()} == {"seen": 0.75, "unseen": 0.5}
    assert found.total.value == (2 / 3 + 0.5) / 2


@pytest.mark.parametrize(
    ("values", "ids", "categories", "message"),
    [
        ([], [], [], "no values"),
        ([1.0], ["a", "b"], [""], "pass one of each"),
        ([1.0, math.nan], ["a", "b"], ["", ""], "'b' is not finite"),
        ([1.0, 0.0], ["a", "a"], ["x", "y"], "'a' stands in two categories"),
    ],
)
def test_bad_rows_are_refused_with_a_reason(
    values: list[float], ids: list[str], categories: list[str], message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        estimate(np.array(values), ids, categories, "categories")


def test_models_without_a_common_image_cannot_be_compared() -> None:
    a = scores_of(np.ones((2, 1)))
    b = Scores(values_N=np.ones(1), prompt_ids=["other"], seeds=[0], categories=[""])
    with pytest.raises(ResultError, match="occurs in both"):
        compare(a, b)
    with pytest.raises(ResultError, match="every model"):
        rank_bands([a, b], "prompts", True)


def test_one_image_given_twice_is_refused() -> None:
    twice = Scores(values_N=np.ones(2), prompt_ids=["a", "a"], seeds=[0, 0], categories=["", ""])
    with pytest.raises(ResultError, match="twice"):
        compare(twice, twice)
