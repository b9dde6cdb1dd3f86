import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.base import Prompt, UserError
from metrics.diversity import (
    PairwiseDiversity,
    VendiDiversity,
    gated_distance_shares,
    mean_pairwise_distance,
    pairwise_distance_shares,
)


def by_pairs(embeddings_ND: np.ndarray) -> float:
    unit = embeddings_ND / np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(len(unit)) for j in range(i)]
    return float(np.mean([1 - unit[i] @ unit[j] for i, j in pairs]))


@given(n=st.integers(2, 12), d=st.integers(1, 9), seed=st.integers(0, 2**31), spread=st.sampled_from([1, 1e-3]))
def test_linear_form_equals_the_pair_loop(n: int, d: int, seed: int, spread: float) -> None:
    embeddings = 1 + spread * np.random.default_rng(seed).normal(size=(n, d))
    assert abs(mean_pairwise_distance(embeddings) - by_pairs(embeddings)) < 1e-10


def test_shares_are_each_images_mean_distance_to_the_others() -> None:
    unit = np.random.default_rng(0).normal(size=(5, 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    expected = (distances.sum(axis=1) - np.diag(distances)) / 4
    assert np.allclose(pairwise_distance_shares(unit), expected, atol=1e-12)


def test_known_values() -> None:
    assert mean_pairwise_distance(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)
    assert mean_pairwise_distance(np.eye(3)) == pytest.approx(1)
    assert mean_pairwise_distance(np.array([[1.0], [-2.0]])) == pytest.approx(2)
    assert mean_pairwise_distance(np.eye(2)[[0, 0, 1, 1]]) == pytest.approx(2 / 3)
    simplex = np.eye(5) - 1 / 5  # five points around the origin, all equally far apart: the most there can be
    assert mean_pairwise_distance(simplex) == pytest.approx(5 / 4)


@given(n=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_order_rotation_and_length_of_features_do_not_matter_and_twins_lower_it(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(n, 6))
    before = mean_pairwise_distance(embeddings)
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    lengths = generator.uniform(0.01, 50, (n, 1))
    assert mean_pairwise_distance(generator.permutation(embeddings)) == pytest.approx(before, abs=1e-12)
    assert mean_pairwise_distance(embeddings @ rotation) == pytest.approx(before, abs=1e-12)
    assert mean_pairwise_distance(embeddings * lengths) == pytest.approx(before, abs=1e-12)
    assert mean_pairwise_distance(np.repeat(embeddings, 2, axis=0)) < before


def test_prompts_weigh_the_same_however_many_images_they_have() -> None:
    alike, apart = np.ones((16, 4)), np.eye(4)
    prompts = [Prompt(text="alike", id="a")] * 16 + [Prompt(text="apart", id="b")] * 4
    shares = summarise(np.concatenate([alike, apart]), prompts)
    assert np.mean([shares[:16].mean(), shares[16:].mean()]) == pytest.approx(0.5)


def test_one_image_has_no_diversity() -> None:
    with pytest.raises(UserError, match="at least two"):
        mean_pairwise_distance(np.ones((1, 3)))


def summarise(embeddings: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
    summary = PairwiseDiversity().summarise({"embedding": torch.from_numpy(embeddings)}, prompts)
    assert summary.per_image_N is not None
    return summary.per_image_N


def test_prompts_are_kept_apart_in_any_order_of_images() -> None:
    embeddings = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    prompts = [Prompt(text=text, id=text) for text in "abababa"]
    shares = summarise(embeddings, prompts)
    assert shares[::2].mean() == pytest.approx(by_pairs(embeddings[::2].astype(np.float64)), abs=1e-6)
    assert shares[1::2].mean() == pytest.approx(by_pairs(embeddings[1::2].astype(np.float64)), abs=1e-6)
    order = np.random.default_rng(2).permutation(7)
    assert np.allclose(summarise(embeddings[order], [prompts[i] for i in order]), shares[order], atol=1e-7)


def test_a_prompt_with_one_image_is_an_error_that_names_it(toy_metrics: dict[str, type]) -> None:
    prompts = [Prompt(text="x", id="one"), Prompt(text="y", id="two"), Prompt(text="y", id="two")]
    with pytest.raises(UserError, match="toy_diversity: prompt 'one' has one image"):
        toy_metrics["toy_diversity"]().summarise({"embedding": torch.ones(3, 2)}, prompts)


def test_gated_diversity_counts_pairs_of_which_both_pass() -> None:
    embeddings = np.random.default_rng(3).normal(size=(5, 4))
    passes = np.array([True, False, True, True, False])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [(1 - unit[i] @ unit[j]) * passes[i] * passes[j] for i in range(5) for j in range(i)]
    assert gated_distance_shares(embeddings, passes).mean() == pytest.approx(np.mean(pairs), abs=1e-12)
    everything = gated_distance_shares(embeddings, np.ones(5, bool))
    assert np.allclose(everything, pairwise_distance_shares(embeddings), atol=1e-12)
    assert gated_distance_shares(embeddings, np.arange(5) == 2).tolist() == [0] * 5
    with pytest.raises(UserError, match="at least two"):
        gated_distance_shares(embeddings[:1], passes[:1])


def test_vendi_is_the_number_of_different_images_of_each_prompt() -> None:
    class Toy(VendiDiversity):
        features = ("toy",)

    embeddings = torch.eye(4)[[0, 1, 2, 3, 3, 3]]
    prompts = [Prompt(text=text) for text in "aaabbb"]
    found = Toy().summarise({"embedding": embeddings}, prompts).per_image_N
    assert found is not None and found.tolist() == pytest.approx([3, 3, 3, 1, 1, 1])
