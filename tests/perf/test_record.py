"""Ratios kept for the page: each id once, and readable by the leaderboard."""

from pathlib import Path

from leaderboards.studies import Speed, Speeds, read_study
from tests.perf.record import record


def speed(name: str, ratio: float) -> Speed:
    return Speed(id=name, what="drawing", ours="a", other="b", ratio=ratio, repetitions=3)


def test_a_ratio_measured_again_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    record([speed("b", 0.9), speed("a", 1.1)], path)
    record([speed("b", 0.95)], path)
    found = read_study(path)
    assert isinstance(found, Speeds)
    assert [(row.id, row.ratio) for row in found.rows] == [("a", 1.1), ("b", 0.95)]
