"""The trainings of the micro world, on the smallest scale: right objectives, and resumable."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.micro.aesthetic import degrade
from benchmarks.micro.autoencoder import build_autoencoder, decode, encode
from benchmarks.micro.captions import PER_PICTURE, Captioner, describe
from benchmarks.micro.check import auc
from benchmarks.micro.image_text import phrasings
from benchmarks.micro.judge import is_right
from benchmarks.micro.renders import KINDS, draw_combinations, kind_map, render_all
from benchmarks.micro.teacher import Data, Teacher, TeacherConfig, train_teacher, velocity_and_hidden
from benchmarks.micro.training import numpy_rng, save_checkpoint, warm_stable_decay
from metrics.geneval.metric import detect_shapes
from metrics.micro.prompts import Combination, seen_combinations, training_prompts
from metrics.micro.world import COLOURS, Request, sample_scene

SMALL = TeacherConfig(steps=4, batch_size=4, renders=12, compile=False, workers=1, checkpoint_every=2)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_autoencoder().eval()


def test_the_training_forward_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    networks = Teacher(SMALL).networks
    for parameter in networks.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # else the output is zero
    ids = torch.tensor([[38, 5, 7, 9] + [39] * 8] * 2)
    text, pooled = networks.condition(ids)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([0.2, 0.9])
    ours, _ = velocity_and_hidden(networks.transformer, x, t, text, pooled)
    theirs = networks.transformer(x, text, pooled, 1000 * t).sample
    assert theirs.abs().max() > 0.01
    assert torch.equal(ours, theirs)


def test_a_run_that_was_cut_continues_with_the_same_weights(vae, tmp_path: Path) -> None:
    config = SMALL
    whole = train_teacher(config, vae, tmp_path / "whole")
    data, teacher = Data(config, vae, tmp_path / "cut"), Teacher(config)
    for step in range(2):
        teacher.step(step, *data.batch(step))
    save_checkpoint(tmp_path / "cut" / "teacher.pt", 2, teacher.parts)
    continued = train_teacher(config, vae, tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_two_workers_take_the_steps_of_one(vae, tmp_path: Path) -> None:
    one = train_teacher(SMALL, vae, tmp_path / "one")
    two = train_teacher(replace(SMALL, workers=2), vae, tmp_path / "two")
    weights = [networks.transformer.pos_embed.proj.weight for networks in (one, two)]
    assert torch.allclose(*weights, atol=1e-4)


def test_normalised_latents_are_undone_by_the_decoder(vae) -> None:
    pictures, _ = render_all(draw_combinations(4, 0), 0, workers=1)
    plain = decode(vae, encode(vae, pictures))
    vae.register_to_config(shift_factor=0.3, scaling_factor=1.7)
    assert np.abs(decode(vae, encode(vae, pictures)).astype(int) - plain).max() <= 1


def test_renders_depend_on_seed_and_place_only() -> None:
    combinations = draw_combinations(6, 3)
    pictures, kinds = render_all(combinations, 3, workers=2)
    again, _ = render_all(combinations[:4], 3, workers=1)
    assert (pictures[:4] == again).all()
    assert kinds.max() < KINDS


def test_kind_maps_name_shape_and_colour_of_each_cell() -> None:
    scene = sample_scene(Request((("square", "green"), ("ring", "red"))), np.random.default_rng(0))
    kinds = kind_map(scene)
    numbers = {1 + 1 * 6 + list(COLOURS).index("green"), 1 + 4 * 6 + list(COLOURS).index("red"), 0}
    assert set(np.unique(kinds)) == numbers


def test_training_draws_seen_combinations_only() -> None:
    assert set(draw_combinations(500, 1)) <= set(seen_combinations())


def test_captions_are_labelled_by_the_judge_and_begin_with_the_own_prompt() -> None:
    captioner, combinations = Captioner(seen_combinations()), draw_combinations(12, 5)
    pictures, _ = render_all(combinations, 5, workers=1)
    labelled = captioner.label(pictures, combinations, seed=0)
    assert labelled.labels.shape == (12, PER_PICTURE)
    assert labelled.labels[:, 0].all()
    assert 0.1 < labelled.labels.float().mean() < 0.6
    assert [captioner.allowed[number] for number in labelled.captions[:, 0]] == combinations


def test_descriptions_of_a_picture_hold_its_truth() -> None:
    wanted = Combination("color_attr", (("circle", "red"), ("cross", "blue")))
    pictures, _ = render_all([wanted], 0, workers=1)
    found = detect_shapes(pictures)[0]
    true = {combination for combination in describe(found) if is_right(found, combination.record("{}"))}
    assert wanted in true
    assert Combination("two_object", (("cross", ""), ("circle", ""))) in true


def test_the_two_models_read_different_halves_of_the_training_prompts() -> None:
    seen, known = seen_combinations(), {record["prompt"] for record in training_prompts()}
    first, second = phrasings(seen, 11), phrasings(seen, 12)
    shared = sum(len(set(a) & set(b)) for a, b in zip(first, second, strict=True))
    assert shared <= len(seen)  # the middle one, where their number is odd
    assert all(a and b and {*a, *b} <= known for a, b in zip(first, second, strict=True))


def test_the_schedule_warms_up_stays_and_decays_to_zero() -> None:
    factors = [warm_stable_decay(step, 1000, warmup=100, decay=0.3) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[100] == factors[699] == 1.0
    assert factors[850] == pytest.approx(0.5)
    assert factors[1000] == 0.0


def test_auc_counts_ties_half() -> None:
    assert auc(np.arange(10) + 100.0, np.arange(10) * 1.0) == 1.0
    assert auc(np.ones(6), np.ones(7)) == 0.5
    assert auc(np.ones(4), np.zeros(9)) is None


def test_degraded_pictures_differ_from_clean_ones() -> None:
    picture, _ = render_all(draw_combinations(1, 0), 0, workers=1)
    assert all(np.abs(degrade(picture[0], numpy_rng(0, n)).astype(int) - picture[0]).mean() > 0.5 for n in range(6))
