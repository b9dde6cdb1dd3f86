"""A training run small enough for a test: RTDMD's two stages on a tiny random SD3; its log, its kill, its state."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import build
from trainers.config import RunConfig, merge
from trainers.loop import Loop


def settings(pipeline: Path, source: Path, **changes: Any) -> RunConfig:
    table = {
        "name": "tiny",
        "device": "cpu",
        "checkpoint_every": 2,
        "log_every": 1,
        "backbone": {"path": str(pipeline), "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(source), "balance": "category"},
        "trainer": {
            "cold_start": {"batch_size": 2, "fake_score_updates": 2},
            "reinforce": {"groups": 2, "group_size": 2},
            "ema": {"decay": 0.9},
        },
        "stages": {
            "cold_start": {"iterations": 5},
            "reinforce": {"iterations": 3, "settings": {"phase": "reinforce", "student": {"lr": 5e-4}}},
        },
    }
    return build(RunConfig, merge(table, changes), "tiny.toml")


def log_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "volatile"} for line in lines]


class Killed(Exception):
    pass


def killed_at(loop: Loop, iteration: int) -> None:
    """Train until the given iteration of the run has been logged, then stop as a kill would."""
    log, lines = loop._log, []

    def stop(*arguments: Any) -> None:
        log(*arguments)
        lines.append(1)
        if len(lines) == iteration:
            raise Killed

    loop._log = stop  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.train()


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two
