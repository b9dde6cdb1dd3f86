"""A trainer that a third party installs: found by entry point and by --plugin, trained and listed like a built-in."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import UserError
from benchmarks.models import read_training
from metrics import base as metrics_base
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers import base as trainers_base
from trainers import run as run_module
from trainers.base import SamplerConfig, World, available, find
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.run import Arguments, main

EXAMPLE = Path(__file__).resolve().parents[1] / "plugins" / "ode_regression"
MODULE = "fewstep_ode_regression"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example on the import path and not yet imported, as after `pip install`; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    sys.modules.pop(MODULE, None)
    trainers_base._TRAINERS.pop("ode_regression", None)


@pytest.mark.usefixtures("installed")
def test_entry_point_makes_it_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    table = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    ((group, entries),) = table.items()
    points = [EntryPoint(name, value, group) for name, value in entries.items()]
    monkeypatch.setattr(metrics_base, "entry_points", lambda group: [p for p in points if p.group == group])
    assert "ode_regression" in available()


@pytest.mark.usefixtures("installed")
def test_trained_benchmarked_and_listed_like_a_built_in(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(run_module, "publish", lambda *arguments: calls.append(arguments))
    changes = [
        f"backbone.path={pipeline_folder}", "backbone.lora.rank=2", f"prompts.source={prompt_file}",
        "trainer.batch_size=2", "trainer.teacher_steps=2", "stages.regress.iterations=2",
    ]  # fmt: skip
    command: dict[str, Any] = {"config": EXAMPLE / "micro.toml", "out": tmp_path / "run", "set": tuple(changes)}
    with pytest.raises(UserError, match="unknown trainer 'ode_regression'"):
        main(Arguments(method="ode_regression", **command))
    main(Arguments(method="ode_regression", plugin=(MODULE,), **command))
    record, _ = read_training(tmp_path / "run" / "student")
    assert record.method == "ode_regression" and record.network_passes > 0
    assert calls[0][:3] == (tmp_path / "run" / "student", "micro", "ode-regression-micro")


@pytest.mark.usefixtures("installed")
def test_it_learns_its_teachers_pairs() -> None:
    importlib.import_module(MODULE)
    trainer_class = find("ode_regression")
    torch.manual_seed(0)
    rate = OptimiserConfig(lr=1e-2, max_grad_norm=0.0)
    config = trainer_class.Config(
        sampler=SamplerConfig(sampler="euler", num_inference_steps=2), guidance_scale=1.0, batch_size=64,
        student=rate, ema=EmaConfig(decay=0.0),
    )  # fmt: skip
    backbone = PointBackbone((1.0, -0.5), 0.5)
    trainer = trainer_class(config, backbone, RewardBank([], {}), World())
    prompts = [Prompt(text=str(n)) for n in range(64)]
    losses = [trainer.step(prompts, iteration)["regression_loss"] for iteration in range(150)]
    assert sum(losses[-20:]) < 0.05 * sum(losses[:20])


def test_the_example_is_as_short_as_it_says() -> None:
    assert len((EXAMPLE / f"{MODULE}.py").read_text().splitlines()) <= 70
