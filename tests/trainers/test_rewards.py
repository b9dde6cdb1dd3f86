"""Rewards: images without a value, and pictures that come again."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import metrics
from metrics.base import Prompt, UserError
from metrics.loaded import LoadedMetric
from tests.trainers.closed_form import ClosedFormMetric
from trainers import subgrpo
from trainers.rewards import REMEMBERED, RewardBank, RewardConfig, load_rewards, without_gaps

PROMPTS = [Prompt(text=text) for text in "aabb"]
NAN = float("nan")


class Reader(ClosedFormMetric):
    """Reads its scores from the first pixel; 1 means that nothing can be read."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        score = images[:, 0, 0, 0]
        return torch.where(score == 1, NAN, score)


def bank(channel_differentiable: bool = False) -> RewardBank:
    return RewardBank([RewardConfig(id="reader")], {"reader": Reader("reader", 0, channel_differentiable)})  # type: ignore[dict-item]


def images(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)


def test_an_image_without_a_value_has_the_mean_of_its_prompts_others() -> None:
    scores = bank().score(images(0.25, 1, 0.5, 0.75), PROMPTS)
    assert scores["reader"].tolist() == [0.25, 0.25, 0.5, 0.75]


def test_where_a_prompt_has_none_the_mean_of_all_stands_in() -> None:
    assert without_gaps("r", torch.tensor([NAN, NAN, 1.0, 3.0]), PROMPTS).tolist() == [2, 2, 1, 3]


@pytest.mark.parametrize("kind", ["per_reward_global_std", "global_std", "group_std", "centred"])
def test_its_advantage_is_0_and_that_of_its_group_stays(kind: subgrpo.Advantage) -> None:
    prompts = [Prompt(text="a")] * 8
    for seed in range(50):
        scores = torch.rand(8, generator=torch.Generator().manual_seed(seed))
        filled = without_gaps("r", torch.cat([scores[:3], torch.tensor([NAN]), scores[4:]]), prompts)
        found = subgrpo.advantages({"r": filled}, {"r": 1.0}, 8, kind)
        assert abs(found[3]) < 1e-5 and abs(found.sum()) < 1e-5
        assert (found[0] < found[1]) == (scores[0] < scores[1])


@pytest.mark.parametrize("kind", ["per_reward_global_std", "global_std", "group_std", "centred"])
def test_beside_equal_values_its_group_has_no_contrast(kind: subgrpo.Advantage) -> None:
    prompts = [Prompt(text=text) for text in "ab" for _ in range(8)]
    for seed in range(50):
        value, *others = torch.rand(9, generator=torch.Generator().manual_seed(seed)).tolist()
        filled = without_gaps("r", torch.tensor([value, NAN, *[value] * 6, *others]), prompts)
        assert not subgrpo.advantages({"r": filled}, {"r": 1.0}, 8, kind)[:8].any()


def test_the_share_without_a_value_is_told_once() -> None:
    made = bank()
    made.score(images(0.25, 1, 0.5, 0.75), PROMPTS)
    assert made.take_missing() == {"reward_missing/reader": 0.25}
    assert made.take_missing() == {}
    made.score(images(0.25, 0.5), PROMPTS[:2])
    assert made.take_missing() == {}


def test_no_value_at_all_ends_the_training_with_the_reason() -> None:
    with pytest.raises(UserError, match="reward reader: none of 2 images has a value"):
        bank().score(images(1, 1), PROMPTS[:2])


def record(name: str) -> Prompt:
    return Prompt(text=f"a {name}", category="single_object", metadata={"include": [{"class": name, "count": 1}]})


def counting(monkeypatch: pytest.MonkeyPatch, metric: LoadedMetric) -> list[int]:
    """Return a list to which every measured batch adds its size."""
    sizes: list[int] = []
    plain = metric.metric.measure

    def measure(features: object, batch: object) -> object:
        sizes.append(len(batch.prompts))  # type: ignore[attr-defined]
        return plain(features, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(metric.metric, "measure", measure)
    return sizes


def test_a_picture_that_comes_again_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, plain = metrics.load("shapes_geneval", remembered=3), metrics.load("shapes_geneval")
    sizes = counting(monkeypatch, metric)
    grey, black = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64, 3), np.uint8)
    asked = [([grey, black], ["circle"] * 2), ([black, grey, grey], ["circle", "circle", "ring"]), ([grey], ["ring"])]
    for pictures, names in asked:
        prompts = [record(name) for name in names]
        assert metric(pictures, prompts).tolist() == plain(pictures, prompts).tolist()
    assert sizes == [2, 1]  # the third picture of the second batch is another prompt's
    metric([np.full((64, 64, 3), grey, np.uint8) for grey in (1, 2, 3)], [record("ring")] * 3)
    metric([grey], [record("ring")])
    assert sizes == [2, 1, 3, 1]  # forgotten: only the latest three are kept


def test_what_is_measured_of_a_whole_prompt_is_never_remembered() -> None:
    assert LoadedMetric("lpips_diversity", remembered=9)._remembered == 0
    assert (
        load_rewards([RewardConfig(id="shapes_geneval")], torch.device("cpu"))._metrics["shapes_geneval"]._remembered
        == REMEMBERED
    )
