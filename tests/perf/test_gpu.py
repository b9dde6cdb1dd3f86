"""The figures of a GPU: what would be measured there, on shrunken models, by the same code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import UserError
from leaderboards.studies import Measured, Measurements, read_study
from tests.perf import gpu
from tests.perf.gpu import Arguments, Cell, cases, main, record, run_of, training
from tests.perf.sized import SIDE, sd3_transformer, sdxl_unet
from trainers.base import find
from trainers.config import stage_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_networks_have_the_published_sizes() -> None:
    with torch.device("meta"):
        sd3, unet = sd3_transformer(), sdxl_unet()
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert sum(p.numel() for p in sd3.parameters()) == pytest.approx(2.03e9, rel=0.01)


@pytest.mark.parametrize("name", cases())
def test_every_case_is_a_stage_of_its_preset_at_every_batch(name: str) -> None:
    case = cases()[name]
    for batch in gpu.BATCHES:
        method, run = run_of(case, Path("x"), batch, small=False)
        kind = find(run.stages[case.stage].trainer or method)
        settings = stage_settings(run, {case.stage: kind.Config}, name)[case.stage]
        phase = {"rtdmd-cold-start": "cold_start", "rtdmd-reinforce": "reinforce", "dmdr-joint": "joint"}
        assert getattr(settings, "phase", None) == phase.get(name.rpartition("-")[0])
        images = {
            "batch_size": getattr(settings, "batch_size", 0),
            "cold_start": settings.cold_start.batch_size if name.startswith("rtdmd-cold") else 0,
            "reinforce": settings.reinforce.groups * settings.reinforce.group_size if "reinforce-s" in name else 0,
            "grpo": settings.grpo.groups * settings.grpo.group_size if name.startswith("multi") else 0,
        }
        assert max(images.values()) == batch and run.backbone.resolution == SIDE
        updates = getattr(settings, "fake_score_updates", 1)
        if name.startswith("rtdmd-cold"):
            updates = settings.cold_start.fake_score_updates
        assert case.cycle == updates + name.startswith("dp-dmd")  # which counts them before the student's
    if case.published:
        assert case.published.beside().value == {"dmdr-joint-sd3m": 1.21, "multi-step-rl-sd3m": 10.57}[name]


def test_without_a_gpu_nothing_is_measured_and_it_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(Arguments(folder=place / "none", record=True)) == 0
    assert capsys.readouterr().out.startswith("not measured: no CUDA device on this machine")
    assert not (place / "none").exists()
    with pytest.raises(UserError, match="leave --record out"):
        main(Arguments(folder=place, small=True, record=True))
    with pytest.raises(UserError, match="did you mean 'dmdr-joint-sd3m'"):
        main(Arguments(folder=place, small=True, case=("dmdr-joint-sd3",)))


@pytest.mark.parametrize("name", ["dmdr-joint-sd3m", "rtdmd-reinforce-sdxl"])
def test_a_training_is_measured_by_iteration(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images an iteration, so that it takes seconds."""
    measure, taken = gpu.iterations, list[float]()

    def seen(*arguments: Any) -> tuple[list[float], int | None]:
        seconds, peak = measure(*arguments)
        taken.extend(seconds)
        return seconds, peak

    monkeypatch.setattr(gpu, "iterations", seen)
    monkeypatch.setattr(gpu, "BATCHES", (4,))
    case = replace(cases()[name], cycle=2)
    with gpu.random_rewards(place / "weights", small=True):
        rows = training(name, case, Arguments(folder=place, cycles=2, small=True), "cpu")
    assert [row.id for row in rows] == [f"{name}-seconds", f"{name}-update"]  # a CPU tells no peak
    assert len(taken) == 2 * 2  # cycles of two iterations
    mean, update = (row.value for row in rows)
    assert 0 < mean <= update and "4 images an iteration" in rows[0].setting and "shrunken" in rows[0].setting
    assert [one.value for one in rows[1].beside] == ([1.21] if name.startswith("dmdr") else [])


def test_drawing_is_measured_beside_the_pipeline(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(Arguments(folder=place, cycles=1, small=True, case=("generation-sd3m",))) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("generation-")]
    assert "pictures per second" in line and "4 pictures in batches of 2" in line


def test_a_batch_that_does_not_fit_is_halved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def tight(case: Any, model: Path, batch: int, *_: Any) -> tuple[list[float], int | None]:
        tried.append(batch)
        if batch > fitting:
            raise torch.OutOfMemoryError
        return [1.0, 3.0, 1.0, 3.0], 5 * 2**30

    monkeypatch.setattr(gpu, "iterations", tight)
    monkeypatch.setattr(gpu, "make_sized", lambda *_: place)
    case, fitting = replace(cases()["dp-dmd-sdxl"], cycle=2), 8
    rows = {row.id: row for row in training("dp-dmd-sdxl", case, Arguments(folder=place, cycles=2), "cpu")}
    assert tried == [16, 8]
    assert {name: row.value for name, row in rows.items()} == {
        "dp-dmd-sdxl-seconds": 2.0, "dp-dmd-sdxl-update": 3.0, "dp-dmd-sdxl-memory": 5.0,
    }  # fmt: skip
    assert all("8 images an iteration" in row.setting for row in rows.values())
    fitting = 2
    assert training("dp-dmd-sdxl", case, Arguments(folder=place, cycles=2), "cpu") == []


def test_figures_are_kept_by_id(tmp_path: Path) -> None:
    row = Measured(id="b", what="w", value=2.0, unit="s", repetitions=1, setting="s", versions={"torch": "1"})
    record([row], tmp_path / "gpu.json")
    record([row.model_copy(update={"id": "a"}), row.model_copy(update={"value": 3.0})], tmp_path / "gpu.json")
    study = read_study(tmp_path / "gpu.json")
    assert isinstance(study, Measurements) and [(one.id, one.value) for one in study.rows] == [("a", 2), ("b", 3)]
    record([], tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_cell_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="has no Time of 'Multi-Step RL'"):
        Cell(table="dmdr-v2-table1", system="Multi-Step RL", column="Time").beside()
