import pytest

from benchmarks.config import UserError, as_table, build
from trainers.base import find
from trainers.dmd_gan import DmdGan, DmdGanConfig
from trainers.dp_dmd import DpDmdConfig, DpDmdRecipe
from trainers.schedules import laid_out


def test_everything_but_the_gan_term_is_dp_dmds() -> None:
    ours, theirs = DmdGanConfig(), DpDmdConfig()
    assert {name for name in as_table(DpDmdRecipe()) if getattr(ours, name) != getattr(theirs, name)} == set()
    assert laid_out(ours.sampler, ours.student_schedule).sigmas[-1] == pytest.approx(0.0089, abs=1e-4)
    assert ours.x0_source == "full_rollout" and find("dmd_gan") is DmdGan


def test_a_stochastic_sampler_is_refused() -> None:
    with pytest.raises(UserError, match="full_rollout"):
        build(DmdGanConfig, {"sampler": {"sampler": "cps"}}, "x.toml")
