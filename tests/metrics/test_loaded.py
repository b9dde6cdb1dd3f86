from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics import base
from metrics.base import Batch, Prompt, UserError
from metrics.images import to_tensor
from metrics.loaded import LoadedMetric, Scorer

pytestmark = pytest.mark.usefixtures("toy_metrics")

TEXTS = ["a red circle", "two blue squares", "a ring", "a red circle", "a cross", "a ring"]
IDS = ["toy_clip", "toy_clip_heldout", "toy_diversity"]


def batch(texts: Sequence[str] = TEXTS) -> Batch:
    return Batch(prompts=[Prompt(text=text, id=text) for text in texts], seeds=range(len(texts)))


def scores(rows: base.Rows) -> torch.Tensor:
    column = rows["score"]
    assert isinstance(column, torch.Tensor)
    return column


def test_the_order_of_images_permutes_the_scores(pictures: list[Image.Image]) -> None:
    scorer = Scorer(["toy_clip", "toy_clip_heldout"])
    order = [3, 1, 5, 0, 4, 2]
    plain = scorer.score(pictures, batch())
    permuted = scorer.score([pictures[i] for i in order], batch([TEXTS[i] for i in order]))
    for identity, rows in plain.items():
        assert torch.allclose(scores(permuted[identity]), scores(rows)[order], atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_batch_size_does_not_change_a_score(pictures: list[Image.Image], size: int) -> None:
    for identity in ("toy_clip", "toy_clip_heldout"):
        whole = LoadedMetric(identity)(pictures, TEXTS)
        assert whole.std() > 1e-3
        assert torch.allclose(LoadedMetric(identity, batch_size=size)(pictures, TEXTS), whole, atol=1e-6)


def test_other_metrics_present_do_not_change_a_bit(pictures: list[Image.Image]) -> None:
    together = Scorer(IDS).score(pictures, batch())
    for identity in IDS:
        alone = Scorer([identity]).score(pictures, batch())[identity]
        assert alone.keys() == together[identity].keys()
        for name, column in alone.items():
            assert torch.equal(torch.as_tensor(column), torch.as_tensor(together[identity][name]))


def test_what_was_scored_before_does_not_change_a_bit(pictures: list[Image.Image]) -> None:
    used = Scorer(IDS)
    used.score(pictures[:2], batch(["two blue squares", "a cross"]))
    fresh = Scorer(IDS)
    for identity in ("toy_clip", "toy_clip_heldout"):
        after = used.score(pictures, batch())[identity]
        assert torch.equal(scores(after), scores(fresh.score(pictures, batch())[identity]))


def test_pictures_in_any_form_score_the_same(pictures: list[Image.Image], tmp_path: Path) -> None:
    metric = metrics.load("toy_clip")
    same = [pictures[0]] * 4
    pictures[0].save(tmp_path / "0.png")
    array = np.asarray(pictures[0])
    forms = [tmp_path / "0.png", str(tmp_path / "0.png"), array, array / 255]
    assert torch.equal(metric(forms, TEXTS[:4]), metric(same, TEXTS[:4]))
    assert torch.equal(metric(to_tensor(same), TEXTS[:4]), metric(same, TEXTS[:4]))


@pytest.mark.parametrize("identity", ["toy_clip", "toy_clip_heldout"])
def test_reward_equals_score_where_nothing_is_resized(identity: str, noise_picture) -> None:
    images = [noise_picture(32, 32, seed) for seed in range(6)]
    metric = metrics.load(identity)
    reward = metric.reward(to_tensor(images).requires_grad_(), TEXTS)
    assert torch.allclose(reward, metric(images, TEXTS), atol=1e-6)


@pytest.mark.parametrize("identity", ["toy_clip", "toy_clip_heldout"])
def test_reward_follows_score_through_resizing(identity: str, noise_picture) -> None:
    images = [noise_picture(64, 48, seed) for seed in range(6)]
    metric = metrics.load(identity)
    score = metric(images, TEXTS)
    reward = metric.reward(to_tensor(images), TEXTS)
    # Random towers amplify grey levels; the pictures themselves must matter far more than their resizing.
    assert (reward - score).abs().max() < 0.2 * score.std()


def test_reward_climbs_along_its_gradient(noise_picture) -> None:
    metric = metrics.load("toy_clip")
    pixels = to_tensor([noise_picture(32, 32, seed) for seed in range(3)]).requires_grad_()
    before = metric.reward(pixels, TEXTS[:3])
    (gradient,) = torch.autograd.grad(before.sum(), pixels)
    step = 1e-3 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    predicted = (step * gradient).flatten(1).sum(dim=1)
    gained = metric.reward((pixels + step).detach(), TEXTS[:3]) - before
    assert torch.allclose(gained, predicted, rtol=0.05, atol=1e-6)


def test_rewards_of_several_prompts_are_those_of_each_with_the_sum_of_their_gradients(noise_picture) -> None:
    metric, others = metrics.load("toy_clip"), TEXTS[3:]
    pixels = to_tensor([noise_picture(32, 32, seed) for seed in range(3)]).requires_grad_()
    praised, dispraised = metric.rewards(pixels, [TEXTS[:3], others])
    (together,) = torch.autograd.grad((1.1 * praised - dispraised).sum(), pixels)
    apart = metric.reward(pixels, TEXTS[:3]), metric.reward(pixels, others)
    (expected,) = torch.autograd.grad((1.1 * apart[0] - apart[1]).sum(), pixels)
    assert torch.equal(praised, apart[0]) and torch.equal(dispraised, apart[1])
    assert torch.allclose(together, expected, atol=1e-6) and expected.abs().max() > 1e-4
    with pytest.raises(UserError, match="3 images, 2 prompts"):
        metric.rewards(pixels, [TEXTS[:3], TEXTS[:2]])


def test_group_metrics_return_each_images_share(pictures: list[Image.Image]) -> None:
    prompts = [TEXTS[0]] * 3 + [TEXTS[1]] * 3
    shares = LoadedMetric("toy_diversity", batch_size=2)(pictures, prompts)
    alone = LoadedMetric("toy_diversity")(pictures[:3], prompts[:3])
    assert torch.allclose(shares[:3], alone, atol=1e-6)
    assert LoadedMetric("toy_diversity")([pictures[0]] * 2, [TEXTS[0]] * 2).abs().max() < 1e-6


def test_a_metric_without_gradient_says_so() -> None:
    with pytest.raises(UserError, match="toy_diversity is not differentiable"):
        metrics.load("toy_diversity").reward(torch.rand(2, 3, 32, 32), TEXTS[:2])


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 4, 32, 32)])
def test_reward_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="toy_clip: images"):
        metrics.load("toy_clip").reward(torch.rand(shape), TEXTS[:2])


def test_images_and_prompts_must_pair_up(pictures: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="6 images, 2 prompts"):
        metrics.load("toy_clip")(pictures, TEXTS[:2])
    with pytest.raises(UserError, match="0 images, 0 prompts"):
        metrics.load("toy_clip")([], [])
    with pytest.raises(UserError, match="a list of prompts"):
        metrics.load("toy_clip")(pictures[:1], "a")
    with pytest.raises(UserError, match="6 images, 2 prompts"):
        Scorer(["toy_clip"]).score(pictures, batch(TEXTS[:2]))


def test_a_bad_picture_is_named_by_its_position_in_the_whole_call(pictures: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="image 4: mode 'CMYK'"):
        LoadedMetric("toy_clip", batch_size=3)([*pictures[:4], Image.new("CMYK", (32, 32)), pictures[5]], TEXTS)


def test_an_unknown_metric_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'toy_clip'"):
        metrics.load("toy_clp")
    with pytest.raises(UserError, match="did you mean 'toy_clip'"):
        Scorer(["toy_clip", "toy_clp"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_names_metric_and_image(
    toy_metrics: dict[str, type], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def broken(self: object, features: base.Features, batch: Batch) -> base.Rows:
        return {"score": torch.tensor([0.1, 0.2, value, 0.3, 0.4, 0.5])}

    monkeypatch.setattr(toy_metrics["toy_clip"], "measure", broken)
    scorer = Scorer(["toy_clip", "toy_clip_heldout"])
    features = scorer.features(pictures, batch())
    with pytest.raises(UserError, match="toy_clip: score of the image of prompt 'a ring', seed 2, is not finite"):
        scorer.measure("toy_clip", features, batch())
    assert scorer.measure("toy_clip_heldout", features, batch()).keys() == {"score"}
    with pytest.raises(UserError, match="is not finite"):
        metrics.load("toy_clip").reward(to_tensor([pictures[0]] * 6), TEXTS)


def test_weights_have_one_digest_whichever_metrics_share_them() -> None:
    scorer = Scorer(IDS)
    digests = [scorer.weights_digest(identity) for identity in IDS]
    assert len(digests[0]) == 64
    assert digests[0] != digests[1] == digests[2]


def test_missing_weights_are_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    from metrics import features
    from metrics.encoders import transformers_clip
    from metrics.weights import WeightFolder

    gone = WeightFolder(path=tmp_path / "gone", mend="run: fetch toy")
    monkeypatch.setitem(features._FACTORIES, "toy/clip", lambda device: transformers_clip.encoders(gone, device))
    scorer = Scorer(["toy_clip", "toy_clip_heldout"])
    assert "run: fetch toy" in str(scorer.missing("toy_clip"))
    assert scorer.missing("toy_clip_heldout") is None
    with pytest.raises(UserError, match="run: fetch toy"):
        scorer.score(pictures, batch())


def test_prompts_that_an_encoder_cuts_are_marked_in_the_rows(
    monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    from dataclasses import replace

    from metrics import features

    asked: list[str] = []

    def long(text: str) -> bool:
        asked.append(text)
        return len(text) > 12

    whole = features._FACTORIES["toy/clip"]

    def encoders(device: torch.device) -> dict[str, features.Encoder]:
        made = whole(device)
        return {**made, "text": replace(made["text"], truncates=long)}

    monkeypatch.setitem(features._FACTORIES, "toy/clip", encoders)
    rows = Scorer(["toy_clip", "toy_clip_heldout"]).score(pictures, batch())
    assert torch.as_tensor(rows["toy_clip"]["prompt_truncated"]).tolist() == [len(text) > 12 for text in TEXTS]
    assert sorted(asked) == sorted(set(TEXTS))
    assert "prompt_truncated" not in rows["toy_clip_heldout"]


def test_announced_prompts_give_the_same_scores(pictures: list[Image.Image]) -> None:
    announced, plain = Scorer(IDS, texts=TEXTS), Scorer(IDS)
    prepared = announced.prepare(pictures)
    for identity in ("toy_clip", "toy_clip_heldout"):
        first = announced.measure(identity, announced.features(prepared, batch()), batch())
        assert torch.equal(scores(first), scores(plain.score(pictures, batch())[identity]))
