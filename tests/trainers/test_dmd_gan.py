import pytest

from benchmarks.config import UserError, build
from trainers.base import find
from trainers.dmd_gan import DmdGan, DmdGanConfig
from trainers.dp_dmd import DpDmdConfig


def test_everything_but_the_gan_term_is_dp_dmds() -> None:
    ours, theirs = DmdGanConfig(), DpDmdConfig()
    shared = ["sampler", "guidance_scale", "batch_size", "fake_score_updates", "normaliser", "renoise"]
    for name in [*shared, "fake_score_renoise", "student", "fake_score", "ema"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.x0_source == "full_rollout" and find("dmd_gan") is DmdGan


def test_a_stochastic_sampler_is_refused() -> None:
    with pytest.raises(UserError, match="full_rollout"):
        build(DmdGanConfig, {"sampler": {"sampler": "cps"}}, "x.toml")
