import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.config import UserError, as_table, build, read_toml
from tests.trainers.closed_form import reward_bank
from tests.trainers.tiny_run import assert_same, settings
from trainers import start as start_module
from trainers import study as study_module
from trainers.base import available, find
from trainers.checkpoint import claim_folder, keep_state, save_state
from trainers.config import read_run, stage_settings
from trainers.loop import Loop
from trainers.study import CONFIGS, Arguments, RowConfig, StudyConfig, donate_stage, main, row_settings, stages_digest


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*-*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    if path.stem.startswith("study-"):
        study = read_toml(StudyConfig, path)
        runs = [row_settings(study, path, row, 0) for row in study.rows if not row.model]
        method = study.method
    else:
        named = [name for name in available() if path.stem.startswith(f"{name.replace('_', '-')}-")]
        runs, method = [read_run(path)], max(named, key=len)
    for run in runs:
        stage_settings(
            run, {name: find(stage.trainer or method).Config for name, stage in run.stages.items()}, str(path)
        )
        if path.stem != "study-rtdmd":
            assert "shapes_geneval" not in [reward.id for reward in run.rewards]  # the judge is no default reward


def test_arms_of_the_study_have_equal_budgets() -> None:
    path = CONFIGS / "study-rtdmd.toml"
    study = read_toml(StudyConfig, path)
    runs = [row_settings(study, path, row, 1) for row in study.rows if not row.model]
    budgets = {tuple((s.budget_passes, s.iterations) for s in run.stages.values()) for run in runs}
    assert len(budgets) == 1 and len({run.name for run in runs}) == len(runs) and {run.seed for run in runs} == {1}


def test_only_what_decides_a_stage_is_in_its_digest(pipeline_folder: Path, prompt_file: Path) -> None:
    def digest(**changes: object) -> str:
        return stages_digest(
            {"method": "rtdmd", **as_table(settings(pipeline_folder, prompt_file, **changes))}, "cold_start"
        )

    later = {"reinforce": {"settings": {"reinforce": {"rl": "grpo"}}}}
    same = {"name": "its base", "compile": True}
    assert digest(name="other", benchmark="micro", stages=later, backbone=same) == digest()
    for change in ({"seed": 1}, {"trainer": {"guidance_scale": 2.0}}, {"stages": {"cold_start": {"iterations": 6}}}):
        assert digest(**change) != digest()


def test_a_shared_cold_start_changes_nothing_but_the_time(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "load_rewards", lambda settings, device: reward_bank())
    first = settings(pipeline_folder, prompt_file)
    arm = settings(pipeline_folder, prompt_file, stages={"reinforce": {"settings": {"reinforce": {"rl": "none"}}}})
    Loop("rtdmd", first, tmp_path / "pool" / "first").train()
    donate_stage("rtdmd", arm, tmp_path / "pool" / "arm")
    assert (tmp_path / "pool" / "arm" / "checkpoint.pt").exists()
    shared = Loop("rtdmd", arm, tmp_path / "pool" / "arm").train()
    alone = Loop("rtdmd", arm, tmp_path / "alone").train()
    states = [
        torch.load(f / "checkpoint.pt", weights_only=True) for f in (tmp_path / "pool" / "arm", tmp_path / "alone")
    ]
    assert_same(*states)
    weights = [next((folder / "transformer").glob("*.safetensors")).read_bytes() for folder in (shared, alone)]
    assert weights[0] == weights[1]


def test_a_cold_start_under_another_default_is_not_shared(tmp_path: Path) -> None:
    """A donor's file tells what was in force when it was trained; what comes after the shared stage may differ."""
    run = settings(tmp_path / "base", tmp_path / "prompts.jsonl")
    for folder, of_stage, key in (("a", "cold_start", "guidance_scale"), ("b", "reinforce", "phase")):
        donor = tmp_path / folder / "donor"
        claim_folder(donor, "rtdmd", replace(run, processes=1))
        save_state(donor, {"whole": True})
        keep_state(donor, "cold_start")
        table = json.loads((donor / "run.json").read_text())
        table["resolved"][of_stage][key] = "another"
        (donor / "run.json").write_text(json.dumps(table))
        donate_stage("rtdmd", run, tmp_path / folder / "arm")
        assert (tmp_path / folder / "arm" / "checkpoint.pt").exists() == (of_stage == "reinforce")


def test_finished_rows_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(study_module, "run_row", lambda s, p, row, seed, folder, board: (
        done.append(folder.name), folder.mkdir(parents=True)))  # fmt: skip
    arguments = Arguments(study="rtdmd", out=tmp_path, seeds=(0, 1), rows=("rtdmd", "micro-teacher-4-steps-guided"))
    main(arguments)
    assert done == ["micro-teacher-4-steps-guided", "rtdmd-s0", "rtdmd-s1"]  # an untrained row knows no seed
    shutil.rmtree(tmp_path / "rtdmd-s1")
    main(arguments)
    assert done[3:] == ["rtdmd-s1"]


def test_the_list_tells_what_is_done_in_this_folder_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study_module, "run_row", None)
    (tmp_path / "rtdmd-s1").mkdir()
    (tmp_path / "rtdmd-s1" / "done").touch()
    rows = ("micro-teacher-4-steps-guided", "rtdmd")
    assert main(Arguments(study="rtdmd", out=tmp_path, seeds=(0, 1), rows=rows, list=True)) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["micro-teacher-4-steps-guided: to do", "rtdmd-s0: to do", "rtdmd-s1: done"]
    assert shown.err.startswith(f"as {tmp_path} on this machine has it")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown study 'rtdm'; did you mean 'rtdmd'"):
        main(Arguments(study="rtdm"))
    with pytest.raises(UserError, match="--rows ac-dmdd: no such row; did you mean 'ac-dmd'"):
        main(Arguments(study="rtdmd", rows=("ac-dmdd",)))
    with pytest.raises(UserError, match="same name"):
        rows = [{"name": "a"}, {"name": "a"}]
        build(StudyConfig, {"method": "rtdmd", "base": "x.toml", "suite": "micro", "rows": rows}, "s.toml")
    assert RowConfig(name="x").guidance == -1.0
