"""The simulation study itself: its data have the mean they claim; it tells a broken interval from a sound one."""

import numpy as np
import pytest

from leaderboards import resampling
from tests.studies import statistics as study


@pytest.mark.parametrize("kind", study.KINDS)
def test_data_have_the_mean_they_claim(kind: str) -> None:
    values_PS, truth = study.KINDS[kind](np.random.default_rng(0), 40_000)
    means_P = values_PS.mean(axis=1)
    assert means_P.mean() == pytest.approx(truth, abs=5 * means_P.std() / 200)


@pytest.mark.parametrize("what", study.QUESTIONS)
def test_sound_statistics_pass_a_small_study(what: str) -> None:
    found = study.rate("clustered_binary", 100, what, runs=120, replicates=199)
    assert abs(found.found - found.nominal) <= 3.5 * found.error


def test_an_interval_that_is_too_narrow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "LEVEL", 0.80)
    assert study.rate("skewed", 100, "coverage", runs=120, replicates=199).verdict == "OFF"
    assert study.rate("skewed", 30, "coverage", runs=60, replicates=199).verdict == "shown only"


def test_what_is_off_is_drawn_anew_once_in_narrower_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("skewed", 100, "coverage")
    monkeypatch.setitem(study.QUESTIONS, "coverage", (lambda data, prompts, replicates, run: run >= 20, 0.95))
    chance = study.judged(case, runs=20, replicates=9)  # wrong in all of 20, right in all of the 80 that follow
    assert [(one.runs, one.found) for one in chance] == [(20, 0.0), (80, 1.0)]
    assert chance[1].error == pytest.approx(chance[0].error / 2)
    monkeypatch.setitem(study.QUESTIONS, "coverage", (lambda data, prompts, replicates, run: False, 0.95))
    assert [one.verdict for one in study.judged(case, runs=20, replicates=9)] == ["OFF", "OFF"]
    monkeypatch.setitem(study.QUESTIONS, "coverage", (lambda data, prompts, replicates, run: run % 20 > 0, 0.95))
    assert [one.verdict for one in study.judged(case, runs=20, replicates=9)] == ["ok"]
