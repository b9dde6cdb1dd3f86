"""DynaDG and DynaRS: their ends, their middles, and the laws they stand for."""

import pytest
import torch

from benchmarks.config import UserError, build
from trainers.dynamic import DynaDgConfig, DynaRsConfig, Kind


def test_the_lean_falls_along_half_a_cosine_to_0() -> None:
    c = DynaDgConfig(scale=0.5, updates=1000)
    assert c.lean(0) == 0.5 and c.lean(500) == pytest.approx(0.25) and c.lean(250) == pytest.approx(0.426777)
    assert c.lean(1000) == 0.0 and c.lean(5000) == 0.0


def test_a_fixed_lean_stays_and_an_off_one_asks_for_no_adapter() -> None:
    fixed, off = DynaDgConfig(kind="fixed", scale=0.75), DynaDgConfig(kind="off")
    assert fixed.lean(0) == fixed.lean(10**6) == 0.75
    assert off.lean(0) is None


@pytest.mark.parametrize(("i", "mean", "variance"), [(0, 0.7273, None), (500, 0.6667, None), (1000, 0.5, 1 / 12)])
def test_levels_follow_the_annealed_beta_law(i: int, mean: float, variance: float | None) -> None:
    law = DynaRsConfig(updates=1000).law(i)
    t = law.sample(100_000, torch.Generator().manual_seed(0))
    assert t.mean().item() == pytest.approx(mean, abs=0.005)
    a, b = {0: (4, 1.5), 500: (2.5, 1.25), 1000: (1, 1)}[i]
    expected = variance or a * b / ((a + b) ** 2 * (a + b + 1))
    assert t.var().item() == pytest.approx(expected, abs=0.005)
    assert t.min() >= 0.001 and t.max() <= 1


def test_the_law_can_be_uniform_or_stay_biased() -> None:
    off, fixed = DynaRsConfig(kind="off").law(0), DynaRsConfig(kind="fixed").law(10**6)
    assert (off.kind, off.low, off.high) == ("uniform", 0.001, 1.0)
    assert (fixed.kind, fixed.a, fixed.b) == ("beta", 4.0, 1.5)


@pytest.mark.parametrize("kind", ["off", "dynamic", "fixed"])
def test_t_is_a_level_or_a_share_of_the_timesteps_as_the_config_says(kind: Kind) -> None:
    assert DynaRsConfig(kind=kind).law(3).on == "levels"
    assert DynaRsConfig(kind=kind, on="timesteps").law(3).on == "timesteps"


def test_values_out_of_range_are_refused_by_name() -> None:
    for config, table, name in ((DynaDgConfig, {"scale": -1.0}, "scale"), (DynaRsConfig, {"beta": 0.0}, "beta")):
        with pytest.raises(UserError, match=name):
            build(config, table, "x.toml")
