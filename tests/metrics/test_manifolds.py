import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.base import UserError
from metrics.manifolds import precision, recall, squared_radii

REFERENCE, GENERATED = np.array([[0.0], [1], [2], [3]]), np.array([[0.5], [2.5], [10], [11]])


def test_known_values() -> None:
    for k in (1, 3):
        assert precision(GENERATED, REFERENCE, k=k) == 0.5
        assert recall(GENERATED, REFERENCE, k=k) == 1.0


def test_identical_sets_cover_each_other_and_far_ones_do_not() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    assert precision(points, points) == recall(points, points) == 1
    assert precision(points, points + 1e3) == recall(points, points + 1e3) == 0


def dense_radii(points: np.ndarray, k: int) -> np.ndarray:
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    return np.sort(squares, axis=1)[:, k]


@settings(max_examples=25)
@given(n=st.integers(5, 12), m=st.integers(5, 12), block=st.sampled_from([1, 3, 5, 4096]), seed=st.integers(0, 99))
def test_blocks_order_and_swap(n: int, m: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, 2)), generator.normal(size=(m, 2)) + 0.5
    assert np.allclose(squared_radii(x, 3, block), dense_radii(x, 3), atol=1e-12)
    inside = ((x[:, None] - y[None]) ** 2).sum(axis=2) <= dense_radii(y, 3)
    assert precision(x, y, block=block) == inside.any(axis=1).mean()
    assert recall(x, y, block=block) == precision(y, x)
    assert precision(generator.permutation(x), generator.permutation(y), block=block) == precision(x, y)


def test_rotation_leaves_both_alone_and_twins_shrink_the_balls() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(40, 5)), generator.normal(size=(50, 5)) + 0.7
    rotation = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    shares = precision(x, y), recall(x, y)
    assert min(shares) > 0 and max(shares) < 1
    assert (precision(x @ rotation, y @ rotation), recall(x @ rotation, y @ rotation)) == shares
    assert (squared_radii(np.repeat(x, 2, axis=0))[::2] < squared_radii(x)).all()


def test_the_border_of_a_ball_belongs_to_it() -> None:
    assert precision(np.array([[2.0], [3.0]]), np.array([[0.0], [1.0]]), k=1) == 0.5


def test_a_twin_is_a_neighbour_but_a_point_is_not_its_own() -> None:
    assert squared_radii(np.array([[0.0], [0], [5]]), k=1).tolist() == [0, 0, 25]


def test_float32_features_far_from_zero_keep_their_neighbours() -> None:
    points = (np.random.default_rng(0).normal(size=(30, 4)) + 100).astype(np.float32)
    assert np.allclose(squared_radii(points), dense_radii(points.astype(np.float64), 3), rtol=1e-8)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(UserError, match="more than 3"):
        precision(GENERATED, REFERENCE[:3])
