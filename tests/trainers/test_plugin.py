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
from leaderboards.schema import read_result
from metrics import base as metrics_base
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers import base as trainers_base
from trainers.base import RolesTrainer, SamplerConfig, World, available, find
from trainers.config import read_run
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.run import Arguments, main, train

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


def short(pipeline: Path, source: Path) -> tuple[str, ...]:
    """Return what makes the example's run one of two iterations on a tiny model."""
    return (
        f"backbone.path={pipeline}", "backbone.lora.rank=2", f"prompts.source={source}",
        "trainer.batch_size=2", "trainer.teacher_steps=2", "stages.regress.iterations=2",
    )  # fmt: skip


@pytest.mark.usefixtures("installed")
def test_it_is_unknown_until_it_is_named_and_then_trained_like_a_built_in(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    settings = short(pipeline_folder, prompt_file)
    command: dict[str, Any] = {"config": EXAMPLE / "micro.toml", "out": tmp_path / "run", "set": settings}
    with pytest.raises(UserError, match="unknown trainer 'ode_regression'"):
        main(Arguments(method="ode_regression", **command))
    main(Arguments(method="ode_regression", plugin=(MODULE,), benchmark=False, **command))
    record, _ = read_training(tmp_path / "run" / "student")
    assert record is not None and record.method == "ode_regression" and record.network_passes > 0


@pytest.mark.usefixtures("installed")
def test_its_student_is_benchmarked_and_listed_like_a_built_ins(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    suite, results = tmp_path / "few.toml", tmp_path / "board" / "results"
    suite.write_text(f'[[tasks]]\nname = "few"\nprompts = "{prompt_file}"\nmetrics = ["micro_clip"]\n')
    run = read_run(EXAMPLE / "micro.toml", [*short(pipeline_folder, prompt_file), f"benchmark={suite}"])
    importlib.import_module(MODULE)
    train("ode_regression", run, tmp_path / "run", board=results)
    (path,) = results.rglob("ode-regression-micro.json")
    result = read_result(path)
    assert result.model.method == "ode_regression" and result.model.training is not None
    assert result.tasks[0].metrics["micro_clip"].status == "ok"
    assert "ode-regression-micro" in (tmp_path / "board" / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("installed")
def test_rewards_that_only_its_canary_reads_were_not_trained_on(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    watched = ('rewards=[{id = "micro_clip"}]', f"canary.prompts={prompt_file}")
    run = read_run(EXAMPLE / "micro.toml", [*short(pipeline_folder, prompt_file), *watched, "benchmark="])
    importlib.import_module(MODULE)
    record, _ = read_training(train("ode_regression", run, tmp_path / "run"))
    assert record is not None and record.rewards == [] and "micro_clip" in record.curves[-1]


def test_a_trainer_that_does_not_say_whether_it_trains_on_rewards_is_asked_to() -> None:
    class Silent(RolesTrainer):
        pass

    with pytest.raises(UserError, match="trainer Silent does not say whether it trains on rewards"):
        Silent.trains_on_rewards(None)


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
