import numpy as np
import pytest

from metrics.base import UserError
from metrics.diversity import mean_pairwise_distance
from metrics.vendi import inception_score, unit_rows, vendi_score


def test_known_vendi_scores() -> None:
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1)
    assert vendi_score(np.eye(2)[[0, 0, 1, 1]]) == pytest.approx(2)
    equicorrelated = np.linalg.cholesky(0.5 * np.eye(4) + 0.5)
    assert vendi_score(equicorrelated) == pytest.approx(2.9257265600, abs=1e-9)
    assert vendi_score(np.eye(4), order=2) == vendi_score(np.eye(4), order=np.inf) == pytest.approx(4)


def test_primal_equals_dual_and_order_scale_and_rotation_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 5))
    wide = np.concatenate([x, np.zeros((12, 20))], axis=1)
    assert vendi_score(x) == pytest.approx(vendi_score(wide), abs=1e-9)
    rotation = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    scaled = generator.permutation(x * generator.uniform(0.1, 9, (12, 1))) @ rotation
    assert vendi_score(scaled) == pytest.approx(vendi_score(x), abs=1e-9)


def test_diversity_follows_from_the_vendi_kernel() -> None:
    x = np.random.default_rng(1).normal(size=(6, 9))
    unit = unit_rows(x)
    assert mean_pairwise_distance(x) == pytest.approx(6 / 5 * (1 - (unit @ unit.T).sum() / 36), abs=1e-12)


def one_hot(classes: np.ndarray, n_classes: int = 10) -> np.ndarray:
    return np.where(np.eye(n_classes)[classes] > 0, 0, -np.inf)


def test_known_inception_scores() -> None:
    assert inception_score(np.zeros((100, 7)))[0] == pytest.approx(1, abs=1e-12)
    balanced = one_hot(np.tile(np.arange(10), 10))
    assert inception_score(balanced, seed=None) == pytest.approx((10, 0))
    by_class = one_hot(np.repeat(np.arange(10), 10))
    assert inception_score(by_class, seed=None)[0] == pytest.approx(1)
    assert inception_score(by_class)[0] > 4  # shuffled: the classes of a split differ
    half = np.log(np.tile([[0.9, 0.1], [0.1, 0.9]], (20, 1)))
    assert inception_score(half, splits=2, seed=None)[0] == pytest.approx(1.444935, abs=1e-6)


def test_unusable_sets_are_refused() -> None:
    with pytest.raises(UserError, match="10 splits"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(UserError, match="no direction"):
        vendi_score(np.zeros((2, 3)))
