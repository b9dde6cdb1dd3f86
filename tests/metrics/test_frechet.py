"""Known distances, exact merging, and the properties that every Fréchet distance has."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import frechet
from metrics.base import UserError
from metrics.frechet import (
    Moments,
    factor,
    frechet_distance,
    frechet_distance_of_features,
    moments_of_parts,
    trace_sqrt_product,
)


def gaussian(n: int, d: int, seed: int, offset: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return offset + generator.normal(size=(n, d)) @ generator.normal(size=(d, d))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    first, second = Moments.of(a), Moments.of(b)
    return frechet_distance(first.mean_D, first.covariance_DD, second.mean_D, second.covariance_DD)


def test_known_distances() -> None:
    one = np.ones((1, 1))
    assert frechet_distance(np.zeros(1), one, np.ones(1), 4 * one) == pytest.approx(2, abs=1e-12)
    diagonal = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 25.0])
    assert frechet_distance(np.zeros(3), diagonal[0], np.array([1.0, 0, 0]), diagonal[1]) == pytest.approx(6)
    c1, c2 = np.array([[2.0, 1], [1, 2]]), np.diag([1.0, 4.0])
    found = frechet_distance(np.array([1.0, 0]), c1, np.zeros(2), c2)
    assert found == pytest.approx(1.7712204477, abs=1e-9)


def test_two_by_two_trace_has_a_closed_form() -> None:
    for seed in range(5):
        c1, c2 = (Moments.of(gaussian(9, 2, 2 * seed + part)).covariance_DD for part in (0, 1))
        trace = np.sqrt(np.trace(c1 @ c2) + 2 * np.sqrt(np.linalg.det(c1) * np.linalg.det(c2)))
        found = frechet_distance(np.zeros(2), c1, np.zeros(2), c2)
        assert found == pytest.approx(np.trace(c1) + np.trace(c2) - 2 * trace, rel=1e-10)


def test_a_set_is_at_distance_zero_from_itself() -> None:
    many, few = gaussian(300, 20, 0), gaussian(15, 20, 1)
    assert abs(distance(many, many)) < 1e-9 * np.trace(Moments.of(many).covariance_DD)
    assert abs(distance(few, few)) < 1e-6 * np.trace(Moments.of(few).covariance_DD)
    assert abs(frechet_distance_of_features(few, few)) < 1e-12 * np.trace(Moments.of(few).covariance_DD)


def test_a_wide_spectrum_keeps_its_digits() -> None:
    scales = np.logspace(0, -6, 40)
    sample = np.random.default_rng(0).normal(size=(200, 40)) * scales
    assert abs(distance(sample, sample)) < 1e-12


@pytest.mark.parametrize(("decades", "by_squares"), [(0, True), (1, True), (2, True), (6, False), (9, False)])
def test_roots_of_squares_are_taken_only_where_they_keep_their_digits(
    decades: float, by_squares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(3)
    turn = np.linalg.qr(draw.normal(size=(60, 60)))[0]
    a, b = (turn * 10 ** draw.uniform(-decades, 0, 60) @ draw.normal(size=(60, 60)) for _ in "ab")
    asked: list[int] = []

    def svdvals(product: np.ndarray) -> np.ndarray:
        asked.append(len(product))
        return np.linalg.svd(product, compute_uv=False)

    monkeypatch.setattr(frechet, "svdvals", svdvals)
    exact = float(np.linalg.svd(a.T @ b, compute_uv=False).sum())
    assert trace_sqrt_product(a, b) == pytest.approx(exact, rel=1e-10)
    assert asked == ([] if by_squares else [60])


def test_an_eigenvalue_that_rounding_made_negative_counts_as_0() -> None:
    made = factor(np.diag([4.0, -0.01]))
    assert np.allclose(made @ made.T, np.diag([4.0, 0.0]))


def test_shift_rotation_scale_and_swap() -> None:
    a, b = gaussian(80, 6, 0), gaussian(90, 6, 1, offset=0.3)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    before = distance(a, b)
    assert distance(a + 7, b + 7) == pytest.approx(before, rel=1e-9)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(before, rel=1e-9)
    assert distance(3 * a, 3 * b) == pytest.approx(9 * before, rel=1e-9)
    assert distance(b, a) == pytest.approx(before, rel=1e-9)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 300), max_size=7), st.sampled_from([0.0, 1e6]), st.integers(0, 1000))
def test_any_cut_merges_to_the_whole(cuts: list[int], offset: float, seed: int) -> None:
    whole = np.random.default_rng(seed).normal(size=(300, 8)) + offset
    merged = moments_of_parts(np.split(whole, sorted(cuts)))
    exact = Moments.of(whole)
    assert merged.n == 300
    assert np.abs(merged.mean_D - exact.mean_D).max() <= 1e-10 * max(1, offset)
    assert np.abs(merged.covariance_DD - exact.covariance_DD).max() <= 1e-9
    assert np.abs(merged.covariance_DD - np.cov((whole - offset).T)).max() < 1e-9


def test_merging_is_exact_for_the_cuts_of_a_large_set() -> None:
    whole = np.random.default_rng(0).normal(size=(5000, 32)) + 1e6
    merged = moments_of_parts(np.split(whole, [7, 300, 301, 2000, 4999, 4999]))
    assert np.abs(merged.covariance_DD / Moments.of(whole).covariance_DD - 1)[np.eye(32, dtype=bool)].max() < 1e-10


def test_duplicating_every_image_changes_the_divisor_only() -> None:
    a, b = gaussian(50, 4, 0), gaussian(60, 4, 1)
    twice = Moments.of(np.repeat(a, 2, axis=0))
    assert np.allclose(twice.covariance_DD, Moments.of(a).covariance_DD * (2 * 50 - 2) / (2 * 50 - 1))
    assert distance(np.repeat(a, 2, axis=0), b) != pytest.approx(distance(a, b), rel=1e-6)


def test_few_features_of_many_dimensions_equal_the_covariance_form() -> None:
    a, b = gaussian(30, 50, 0), gaussian(35, 50, 1)
    assert frechet_distance_of_features(a, b) == pytest.approx(distance(a, b), rel=1e-6)


def test_unusable_moments_are_refused() -> None:
    with pytest.raises(UserError, match="not of the same encoder"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(np.array([np.nan, 0]), np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(UserError, match="at least two images"):
        frechet_distance_of_features(np.ones((1, 2)), np.ones((5, 2)))
    with pytest.raises(UserError, match="cannot be one set"):
        moments_of_parts([np.ones((2, 2)), np.ones((2, 3))])
