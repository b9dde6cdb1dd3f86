from collections import Counter

import pytest
import torch

from metrics.texts import BATCH_SIZE, TextFeatures

CPU = torch.device("cpu")
TEXTS = [f"prompt {n}" for n in range(7)]


@pytest.fixture
def calls() -> Counter[int]:
    """How often the tower was asked for a batch of which size."""
    return Counter()


@pytest.fixture
def tower(calls: Counter[int]):
    """A tower at its worst: a row depends on the prompt, on its place and on its mates."""

    def forward(texts: list[str]) -> torch.Tensor:
        calls[len(texts)] += 1
        sums = [float(sum(map(ord, text))) for text in texts]
        return torch.tensor([[own, place, sum(sums)] for place, own in enumerate(sums)])

    return forward


def test_a_feature_does_not_depend_on_what_was_asked_first(tower) -> None:
    one, other = (TextFeatures([(tower, None)], CPU, TEXTS, batch_size=3) for _ in range(2))
    forwards = {text: one.of(tower, None, [text]) for text in TEXTS}
    other.of(tower, None, [TEXTS[6], TEXTS[2], TEXTS[6]])
    for text in reversed(TEXTS):
        assert torch.equal(other.of(tower, None, [text]), forwards[text])


def test_each_batch_is_encoded_once(tower, calls: Counter[int]) -> None:
    features = TextFeatures([(tower, None)], CPU, [*TEXTS, *TEXTS], batch_size=3)
    for _ in range(2):
        features.of(tower, None, [TEXTS[0], TEXTS[4], TEXTS[0]])
    assert calls == {3: 2}
    features.of(tower, None, TEXTS)
    assert calls == {3: 2, 1: 1}


def test_a_prompt_that_was_not_announced_is_encoded_alone(tower, calls: Counter[int]) -> None:
    features = TextFeatures([(tower, None)], CPU, TEXTS, batch_size=3)
    row = features.of(tower, None, ["other", TEXTS[0], "other"])
    assert calls == {1: 1, 3: 1}
    assert torch.equal(row[0], tower(["other"])[0])


def test_a_cpu_encodes_one_by_one_and_an_accelerator_in_batches(tower) -> None:
    assert max(map(len, TextFeatures([], CPU, TEXTS)._mates.values())) == 1
    assert max(map(len, TextFeatures([], torch.device("cuda"), TEXTS * 9)._mates.values())) == len(TEXTS)
    many = [str(n) for n in range(2 * BATCH_SIZE)]
    assert max(map(len, TextFeatures([], torch.device("cuda"), many)._mates.values())) == BATCH_SIZE


def test_what_is_kept_is_not_the_whole_batch() -> None:
    def wide(texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts), 1000, dtype=torch.float64)

    def first(output: torch.Tensor) -> torch.Tensor:
        return output[:, :2]

    features = TextFeatures([(wide, first)], CPU, TEXTS, batch_size=7)
    features.of(wide, first, TEXTS)
    (row, *_) = features._found[wide][first].values()
    assert row.dtype == torch.float32
    assert row.untyped_storage().nbytes() == 2 * 4


def test_a_real_tower_in_batches_gives_the_same_bytes_in_any_order(clip_folder) -> None:
    from metrics.encoders import transformers_clip

    forward = transformers_clip.encoders(clip_folder, CPU)["text"].forward
    texts = ["a red circle", "two", "a very long prompt that is cut", "ring", "a blue square"]
    ordered, shuffled, alone = (TextFeatures([(forward, None)], CPU, texts, batch_size=n) for n in (2, 2, 1))
    wanted = ordered.of(forward, None, texts)
    rows = {text: shuffled.of(forward, None, [text])[0] for text in (texts[3], texts[0], texts[4], *texts)}
    assert torch.equal(torch.stack([rows[text] for text in texts]), wanted)
    assert torch.allclose(alone.of(forward, None, texts), wanted, atol=1e-6)
