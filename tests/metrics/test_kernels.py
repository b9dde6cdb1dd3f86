import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.base import UserError
from metrics.kernels import cmmd, cubic_kernel, kid, kid_of_subsets

X, Y = np.eye(2), np.ones((2, 2))


def dense_kid(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    off = [k.sum() - np.trace(k) for k in (cubic_kernel(x, x), cubic_kernel(y, y))]
    return off[0] / n / (n - 1) + off[1] / m / (m - 1) - 2 * cubic_kernel(x, y).mean()


def test_known_values_of_kid() -> None:
    assert kid(X, Y) == pytest.approx(2.25)
    assert kid(X, X) == pytest.approx(-2.375)


@settings(max_examples=20)
@given(n=st.integers(2, 9), m=st.integers(2, 9), block=st.sampled_from([1, 5, 4096]), seed=st.integers(0, 99))
def test_blocks_and_order_do_not_matter(n: int, m: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, 5)), generator.normal(size=(m, 5))
    assert kid(x, y, block) == pytest.approx(dense_kid(x, y), abs=1e-10)
    assert kid(generator.permutation(x), y, block) == pytest.approx(kid(x, y), abs=1e-10)
    assert cmmd(x / np.linalg.norm(x, axis=1)[:, None], y, block) == pytest.approx(
        cmmd(x / np.linalg.norm(x, axis=1)[:, None], y), abs=1e-9
    )


def test_rotation_leaves_both_alone() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 20, 6))
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    assert kid(x @ rotation, y @ rotation) == pytest.approx(kid(x, y), rel=1e-9)
    x, y = (each / np.linalg.norm(each, axis=1)[:, None] for each in (x, y))
    assert cmmd(x @ rotation, y @ rotation) == pytest.approx(cmmd(x, y), abs=1e-10) and cmmd(x, y) > 0.1


def test_subsets_of_the_whole_set_are_the_whole_set() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 12, 4))
    mean, deviation = kid_of_subsets(x, y, subsets=3, size=12)
    assert mean == pytest.approx(kid(x, y))
    assert deviation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("cosine", "expected"), [(1, 0), (0.5, 9.9750416), (0, 19.9003325), (-1, 39.6026534)])
def test_cmmd_of_point_masses(cosine: float, expected: float) -> None:
    x, y = np.array([[1.0, 0]]), np.array([[cosine, np.sqrt(1 - cosine**2)]])
    assert cmmd(x, y) == pytest.approx(expected, abs=1e-7)
    assert cmmd(np.repeat(x, 3, axis=0), y) == pytest.approx(expected, abs=1e-7)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least two"):
        kid(X[:1], Y)
    with pytest.raises(UserError, match="at least one"):
        cmmd(X[:0], Y)
    with pytest.raises(UserError, match="1000 images"):
        kid_of_subsets(X, Y)
