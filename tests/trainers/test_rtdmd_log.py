"""RTDMD's results stay what they are: both stages on the micro world, a few iterations, beside the log on record.

    python -m tests.trainers.test_rtdmd_log     puts the present log on record: after a change that is meant to change
                                                results, or new weights of the micro world

Every value of the log is compared to 1 part in 1,000. Other processors, threads and kernels round otherwise; a run in
float64 stands for all of them here, and keeps to a tenth of that.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from benchmarks.config import build
from tests.trainers.tiny_run import log_lines
from trainers.config import RunConfig, merge
from trainers.loop import Loop

RECORD = Path(__file__).resolve().parents[1] / "golden" / "rtdmd_log.json"
ROUNDING = 1e-4  # relative, and of values whose sum over an epoch is 0 but for rounding (rl_loss) absolute
TOLERANCE = 10 * ROUNDING
GENTLE = {"lr": 1e-3, "eps": 1e-4}  # of Adam: keeps rounding from becoming a direction
# Weights at which each term of stage II is a good part of the gradient
REINFORCE = {"groups": 2, "group_size": 4, "det_weight": 0.5, "dm_weight": 0.1}
PAPER = {
    "logprob": "exact", "advantage": "group_std", "subset_scale": "paper", "subset_per": "prompt", "dm_steps": "all",
    "rl_weight": 1e-3,
}  # fmt: skip
TABLE: dict[str, Any] = {
    "name": "short", "device": "cpu", "log_every": 1,
    "backbone": {"path": "benchmarks/micro/pipeline", "lora": {"rank": 8, "alpha": 16}},
    "prompts": {"source": "micro", "balance": "category"},
    "rewards": [{"id": "micro_clip", "weight": 2.0}, {"id": "micro_aesthetic", "scale": 10.0}],
    "trainer": {
        "ac_dmd": {"gamma": 0.1}, "cold_start": {"batch_size": 4, "fake_score_updates": 2},
        "student": GENTLE, "fake_score": GENTLE, "ema": {"decay": 0.5},
    },
    "stages": {
        "cold_start": {"iterations": 4},
        "reinforce": {"iterations": 2, "settings": {"phase": "reinforce", "reinforce": REINFORCE}},
        "paper": {"iterations": 2, "settings": {"phase": "reinforce", "reinforce": REINFORCE | PAPER}},
    },
}  # fmt: skip


def short_log(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Train in a new folder; return the lines of the log."""
    Loop("rtdmd", build(RunConfig, merge(TABLE, changes), "test"), folder / "run").train()
    return log_lines(folder / "run")


def by_place(log: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return every value of a log under its stage, iteration and name."""
    return {
        f"{line['stage']} {line['iteration']} {name}": value
        for line in log
        for name, value in line.items()
        if name not in ("stage", "iteration")
    }


def departures(log: Iterable[dict[str, Any]], record: Iterable[dict[str, Any]], tolerance: float) -> list[str]:
    """Return the values that differ from those on record, each with its place."""
    mine, wanted = by_place(log), by_place(record)
    assert mine.keys() == wanted.keys()
    near = {place: pytest.approx(value, rel=tolerance, abs=tolerance / 10) for place, value in wanted.items()}
    return [f"{place}: {mine[place]}, on record {wanted[place]}" for place in wanted if mine[place] != near[place]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return short_log(tmp_path_factory.mktemp("log"))


def test_both_stages_log_what_is_on_record(log: list[dict[str, Any]]) -> None:
    assert departures(log, json.loads(RECORD.read_text()), TOLERANCE) == []


def test_rounding_stays_a_tenth_of_the_tolerance(log: list[dict[str, Any]], tmp_path: Path) -> None:
    assert departures(short_log(tmp_path, backbone={"precision": "float64"}), log, ROUNDING) == []


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        lines = [json.dumps(line) for line in short_log(Path(place))]
    RECORD.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
