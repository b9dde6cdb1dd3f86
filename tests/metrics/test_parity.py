"""The command that prints the table of parity."""

from pathlib import Path

import pytest

from metrics import parity
from tests.parity import table
from tests.parity.common import Stage


def test_a_stage_outside_its_tolerance_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [Stage("score", 0.5e-6, 1e-6)]
    monkeypatch.setattr(table, "RUNS", {"toy": lambda: ("package 1.0", "ours", stages)})
    assert parity.main([]) == 0
    assert "every stage within its tolerance" in capsys.readouterr().out
    for bad in (2e-6, float("nan")):
        stages[0] = Stage("score", bad, 1e-6)
        assert parity.main(["toy"]) == 1
        out = capsys.readouterr().out
        assert "OUTSIDE" in out
        assert "1 stages outside" in out


def test_an_unknown_metric_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(["image_rewards"]) == 2
    assert "did you mean 'image_reward'?" in capsys.readouterr().err


def test_without_recorded_runs_the_command_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "TESTS", tmp_path)
    assert parity.main([]) == 2
    assert "run this in a clone" in capsys.readouterr().err


def test_every_metric_of_text_and_picture_has_a_recorded_run() -> None:
    assert {"clip_score", "aesthetic", "pick_score", "hps_v2", "hps_v21", "hps_v3", "image_reward"} <= set(table.RUNS)
