from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics.base import Batch, Prompt, available
from metrics.images import to_tensor
from metrics.loaded import Scorer
from metrics.micro.world import Request, render, sample_scene

IDS = ("micro_aesthetic", "micro_clip", "micro_clip_heldout", "micro_diversity", "shapes_geneval")
DIFFERENTIABLE = ("micro_aesthetic", "micro_clip", "micro_clip_heldout")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple")
PROMPTS = [f"a photo of a {colour} {shape}" for colour, shape in zip(COLOURS, SHAPES, strict=True)]

Draw = Callable[[int], list[Image.Image]]


@pytest.fixture
def draw() -> Draw:
    """Return a function seed -> one render for each of PROMPTS."""

    def make(seed: int) -> list[Image.Image]:
        rng = np.random.default_rng(seed)
        requests = [Request(things=((shape, colour),)) for colour, shape in zip(COLOURS, SHAPES, strict=True)]
        return [Image.fromarray(render(sample_scene(request, rng))) for request in requests]

    return make


def test_every_micro_metric_is_known_and_says_that_it_is_micro() -> None:
    for identity in IDS:
        assert available()[identity]().card.micro


@pytest.mark.parametrize("identity", IDS)
def test_the_weights_ship_with_the_metrics(identity: str) -> None:
    assert Scorer([identity]).missing(identity) is None


def test_reward_and_held_out_metric_have_nothing_in_common() -> None:
    scorer = Scorer(["micro_clip", "micro_clip_heldout", "micro_diversity"])
    assert scorer.weights_digest("micro_clip") != scorer.weights_digest("micro_clip_heldout")
    assert scorer.weights_digest("micro_diversity") == scorer.weights_digest("micro_clip_heldout")


@pytest.mark.parametrize("identity", ["micro_clip", "micro_clip_heldout"])
def test_a_render_agrees_with_its_own_prompt_more_than_with_others(identity: str, draw: Draw) -> None:
    images = [image for seed in range(4) for image in draw(seed)]
    metric = metrics.load(identity)
    own = metric(images, PROMPTS * 4)
    others = torch.stack([metric(images, (PROMPTS[k:] + PROMPTS[:k]) * 4) for k in range(1, 5)])
    assert (own > others).float().mean() > 0.95


@pytest.mark.parametrize("identity", DIFFERENTIABLE)
def test_reward_is_the_score_at_the_micro_worlds_size(identity: str, draw: Draw) -> None:
    images = draw(0)
    metric = metrics.load(identity)
    pixels = to_tensor(images).requires_grad_()
    reward = metric.reward(pixels, PROMPTS)
    assert torch.allclose(reward, metric(images, PROMPTS), atol=1e-5)
    (gradient,) = torch.autograd.grad(reward.sum(), pixels)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_diversity_is_zero_for_copies_and_positive_for_different_renders(draw: Draw) -> None:
    metric = metrics.load("micro_diversity")
    square = [draw(seed)[1] for seed in range(4)]
    assert metric([square[0]] * 4, ["a square"] * 4).abs().max() < 1e-5
    assert metric(square, ["a square"] * 4).mean() > 1e-3


def test_aesthetic_prefers_renders_to_degraded_ones(draw: Draw) -> None:
    metric = metrics.load("micro_aesthetic")
    images = draw(0)
    faded = [Image.blend(image, Image.new("RGB", image.size, "grey"), 0.6) for image in images]
    blurred = [image.resize((16, 16)).resize((64, 64)) for image in images]
    assert (metric(images, PROMPTS) > metric(faded, PROMPTS)).all()
    assert (metric(images, PROMPTS) > metric(blurred, PROMPTS)).all()


def test_aesthetic_can_be_hacked_beyond_every_render(draw: Draw) -> None:
    metric = metrics.load("micro_aesthetic")
    renders = [image for seed in range(8) for image in draw(seed)]
    pixels = to_tensor(draw(0))
    for _ in range(20):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(metric.reward(pixels, PROMPTS).sum(), pixels)
        pixels = (pixels + 0.02 * gradient.sign()).clamp(0, 1).detach()
    assert metric.reward(pixels, PROMPTS).min() > metric(renders, PROMPTS * 8).max()


def test_all_of_them_score_one_batch_together(draw: Draw) -> None:
    include = [[{"class": shape, "count": 1, "color": colour}] for shape, colour in zip(SHAPES, COLOURS, strict=True)]
    prompts = [
        Prompt(text=text, id=f"colors-{index}", category="colors", metadata={"include": clauses})
        for index, (text, clauses) in enumerate(zip(PROMPTS, include, strict=True))
    ]
    rows = Scorer(IDS).score(draw(1), Batch(prompts=prompts, seeds=[0] * 5))
    assert rows.keys() == set(IDS)
    score = rows["shapes_geneval"]["score"]
    assert isinstance(score, torch.Tensor)
    assert score.tolist() == [1.0] * 5
