"""The loop: stages, interruptions, refusals, the early stop."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.config import UserError, as_table, build
from benchmarks.models import read_training
from metrics.base import make
from tests.trainers.tiny_run import assert_same, killed_at, log_lines, settings
from trainers import canary as canary_module
from trainers import loop as loop_module
from trainers import start as start_module
from trainers.checkpoint import load_state
from trainers.config import RunConfig, merge, read_run, stage_methods
from trainers.loop import Loop
from trainers.pause import Paused
from trainers.rewards import load_rewards

pytestmark = pytest.mark.usefixtures("closed_form_rewards")


def second(**changes: Any) -> dict[str, Any]:
    """Return changes of the second stage's settings."""
    return {"stages": {"reinforce": {"settings": changes}}}


@pytest.mark.parametrize(("training", "fake_score"), [("lora", ""), ("full", ""), ("full", "lora")])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, training: str, fake_score: str
) -> None:
    roles = {"training": training, "fake_score_training": fake_score}
    run = settings(pipeline_folder, prompt_file, backbone=roles)
    whole = Loop("rtdmd", run, tmp_path / "whole").train()
    for kill in (1, 3, 4):  # before any checkpoint, after one, and in the second stage
        killed_at(Loop("rtdmd", run, tmp_path / "killed"), kill)
    again = Loop("rtdmd", run, tmp_path / "killed").train()
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert_same(*states)
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file


def test_how_often_checkpoints_are_written_may_change_and_decides_nothing(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = settings(pipeline_folder, prompt_file)
    Loop("rtdmd", run, tmp_path / "whole").train()
    killed_at(Loop("rtdmd", run, tmp_path / "killed"), 3)
    killed_at(Loop("rtdmd", replace(run, checkpoint_every=1), tmp_path / "killed"), 4)
    Loop("rtdmd", replace(run, checkpoint_every=100), tmp_path / "killed").train()
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")
    assert_same(*(torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "killed")))


def test_a_finished_run_started_again_changes_nothing(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = settings(pipeline_folder, prompt_file)
    student = Loop("rtdmd", run, tmp_path / "run").train()
    before = (tmp_path / "run" / "log.jsonl").read_bytes(), (student / "training.json").read_bytes()
    Loop("rtdmd", run, tmp_path / "run").train()
    assert ((tmp_path / "run" / "log.jsonl").read_bytes(), (student / "training.json").read_bytes()) == before


def test_a_stage_ends_with_its_budget_of_passes(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    stages = {"cold_start": {"iterations": 0, "budget_passes": 200}, "reinforce": {"iterations": 1}}
    Loop("rtdmd", settings(pipeline_folder, prompt_file, stages=stages), tmp_path / "run").train()
    cold = [line["passes"] for line in log_lines(tmp_path / "run") if line["stage"] == "cold_start"]
    assert cold[-2] < 200 <= cold[-1]


def test_settings_of_a_run_cannot_change_between_two_starts(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    killed_at(Loop("rtdmd", settings(pipeline_folder, prompt_file), tmp_path / "run"), 3)
    Loop("rtdmd", settings(pipeline_folder, prompt_file, backbone={"name": "base"}), tmp_path / "run")
    changed = settings(pipeline_folder, prompt_file, trainer={"guidance_scale": 2.0})
    with pytest.raises(UserError, match=r"trainer.guidance_scale was None, now 2.0"):
        Loop("rtdmd", changed, tmp_path / "run")
    Loop("rtdmd", changed, tmp_path / "run", resume=False)


def test_a_damaged_checkpoint_is_one_clear_line(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    run = settings(pipeline_folder, prompt_file)
    Loop("rtdmd", run, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        Loop("rtdmd", run, tmp_path / "run").train()
    for foreign in ([1, 2], {"position": {}}):
        torch.save(foreign, tmp_path / "run" / "checkpoint.pt")
        with pytest.raises(UserError, match="not the checkpoint of a training"):
            Loop("rtdmd", run, tmp_path / "run").train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"guidance": 2.0}}, "unknown key 'guidance'; did you mean 'guidance_scale'"),
        ({"stages": {"reinforce": {"settings": {"reinforce": {"groups": "two"}}}}}, "stages.reinforce.*groups"),
        ({"stages": {"cold_start": {"trainer": "rtdm"}}}, "unknown trainer 'rtdm'; did you mean 'rtdmd'"),
        ({"prompts": {"source": "nowhere.jsonl"}}, "nowhere.jsonl: no such prompt file"),
        ({"trainer": {"cold_start": {"batch_size": 99}}}, "99 different prompts per iteration, but .* only 9"),
        (second(reinforce={"subset_size": 7}), "stages.reinforce: trainer.reinforce.subset_size is 7, but only 3"),
        (second(sampler={"sampler": "cps", "eta": 1.8}), "stages.reinforce: .*eta must lie in"),
    ],
)
def test_mistakes_are_named_before_any_work(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Loop("rtdmd", settings(pipeline_folder, prompt_file, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()  # what is mended may start here


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": []}, "stages.reinforce: trainer.reinforce.rl needs a reward"),
        (
            {"rewards": [{"id": "shapes_geneval"}], "prompts": {"source": "micro"}},
            "stages.reinforce: .*det_term needs a differentiable reward",
        ),
        ({"rewards": [{"id": "micro_fid"}]}, "micro_fid is a statistic of a whole set"),
        ({"rewards": [{"id": "hps_v2"}]}, "hps_v2: .*no weights"),
        (
            {
                "rewards": [{"id": "micro_clip"}],
                "canary": {"prompts": "benchmarks/micro/prompts_dev.jsonl", "metrics": ["hps_v2"]},
            },
            "canary: hps_v2: .*no weights",
        ),
    ],
)
def test_mistakes_in_rewards_are_named_before_any_work(
    pipeline_folder: Path,
    prompt_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(start_module, "load_rewards", load_rewards)
    with pytest.raises(UserError, match=message):
        Loop("rtdmd", settings(pipeline_folder, prompt_file, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_mistake_does_not_cost_the_run_that_is_there(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = settings(pipeline_folder, prompt_file)
    Loop("rtdmd", run, tmp_path / "run").train()
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    wrong = settings(pipeline_folder, prompt_file, **second(reinforce={"subset_size": 7}))
    with pytest.raises(UserError, match="subset_size"):
        Loop("rtdmd", wrong, tmp_path / "run", resume=False)
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before


def test_a_rehearsal_draws_nothing_that_the_run_would(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(pipeline_folder, prompt_file)
    Loop("rtdmd", run, tmp_path / "with").train()
    monkeypatch.setattr(start_module.Start, "rehearse", lambda self, protocol, processes: None)
    Loop("rtdmd", run, tmp_path / "without").train()
    for name in ("with", "without"):
        assert (tmp_path / name / "student").is_dir()
    states = [load_state(tmp_path / name) for name in ("with", "without")]
    assert states[0] and states[1]
    assert_same(states[0]["trainer"], states[1]["trainer"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"stages": {"a": {}}}, "a stage needs an end"),
        ({"stages": {}}, "no stages"),
        (
            {"stages": {"a": {"iterations": 1}}, "backbone": {"path": "p", "fake_score_training": "full"}},
            'fake_score_training = "full" has no full student beside it',
        ),
        ({"stages": {"a": {"iterations": 1}}, "rewards": [{"id": "x"}, {"id": "x"}]}, "listed twice"),
        ({"stages": {"a": {"iterations": 1}}, "sed": 3}, "unknown key 'sed'; did you mean 'seed'"),
        ({"stages": {"a": {"iterations": 1, "teacher_from": "previous"}}}, "the first stage has none before it"),
        (
            {
                "stages": {"a": {"iterations": 1}, "b": {"iterations": 1, "teacher_from": "previous"}},
                "export": {"weights": "lora"},
            },
            'export.weights = "lora" has no base',
        ),
        (
            {"stages": {"a": {"iterations": 1, "teacher_from": "previous", "student_from": "previous"}}},
            "leave student_from out",
        ),
        (
            {"stages": {"a": {"iterations": 1}}, "canary": {"prompts": "p", "stop": {"metric": "x"}}},
            "canary.stop.metric 'x' must be one of canary.metrics",
        ),
        (
            {
                "stages": {"a": {"iterations": 1}},
                "canary": {"prompts": "p", "metrics": ["clip_score"], "stop": {"metric": "clip_scor"}},
            },
            "must be one of canary.metrics; did you mean 'clip_score'",
        ),
        (
            {"stages": {"a": {"iterations": 1}}, "canary": {"metrics": ["y"], "stop": {"metric": "y"}}},
            "measured on canary.prompts",
        ),
        (
            {
                "stages": {"a": {"iterations": 1}},
                "rewards": [{"id": "x"}],
                "canary": {"prompts": "p", "stop": {"metric": "x"}},
            },
            "canary.stop.metric 'x' is trained on",
        ),
        (
            {
                "stages": {"a": {"iterations": 1}},
                "rewards": [{"id": "x"}],
                "canary": {"prompts": "p", "metrics": ["x"], "stop": {"metric": "x"}},
            },
            "canary.stop.metric 'x' is trained on",
        ),
    ],
)
def test_run_config_refuses_what_makes_no_sense(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(RunConfig, {"name": "x", "backbone": {"path": "p"}, **table}, "x.toml")


PLAIN = {"iterations": 2, "trainer": "dmd", "settings": {"batch_size": 2}}


def mixed(pipeline: Path, source: Path, **changes: Any) -> RunConfig:
    """A run whose stages have methods of their own: RTDMD's stage II, then plain DMD."""
    table = {
        "stages": {"cold_start": {"iterations": 2}, "reinforce": {"iterations": 2}, "distil": PLAIN},
        "trainer": {"guidance_scale": 2.0},
    }
    return settings(pipeline, source, **merge(table, changes))


def test_every_stage_records_its_method_and_what_it_took(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    student = Loop("rtdmd", mixed(pipeline_folder, prompt_file), tmp_path / "run").train()
    record, _ = read_training(student)
    assert [(stage.name, stage.method, stage.iterations) for stage in record.stages] == [
        ("cold_start", "rtdmd", 2), ("reinforce", "rtdmd", 2), ("distil", "dmd", 2)
    ]  # fmt: skip
    assert sum(stage.network_passes for stage in record.stages) == record.network_passes
    told = [stage.settings for stage in record.stages]
    assert [one["guidance_scale"] for one in told] == [2.0, 2.0, 2.0] and told[0]["phase"] == "cold_start"
    assert told[2]["batch_size"] == 2 and told[2]["normaliser"] == "x0_teacher"  # of which no file says a word
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resolved"] == {
        stage.name: stage.settings for stage in record.stages
    }


def test_shared_settings_count_in_the_stages_whose_method_knows_them(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    methods = stage_methods("rtdmd", mixed(pipeline_folder, prompt_file), "tiny.toml")
    assert [config.guidance_scale for _, config in methods.values()] == [2.0, 2.0, 2.0]
    assert methods["distil"][1].batch_size == 2  # dmd knows no [trainer.reinforce], and need not
    wrong = mixed(pipeline_folder, prompt_file, trainer={"batch_sice": 2})
    with pytest.raises(UserError, match=r"stages.cold_start: trainer: unknown key 'batch_sice'"):
        Loop("rtdmd", wrong, tmp_path / "wrong")


def test_a_student_can_become_the_teacher_of_the_next_stage(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = mixed(pipeline_folder, prompt_file, stages={"distil": {"teacher_from": "previous", "iterations": 3}})
    whole = Loop("rtdmd", run, tmp_path / "whole")
    base = whole.backbone.teacher_digest()
    student = whole.train()
    promoted = load_file(next((tmp_path / "whole/teacher-distil/transformer").glob("*.safetensors")))
    original = load_file(next((pipeline_folder / "transformer").glob("*.safetensors")))
    assert whole.backbone.teacher_digest() != base  # distilled from what reinforcement learning had made
    assert any(not torch.equal(original[name], promoted[name]) for name in original)
    # the student of two stages, as it would have been exported after them
    earlier = {name: stage for name, stage in run.stages.items() if name != "distil"}
    short = replace(run, stages=earlier, export=replace(run.export, dtype="float32"))
    trained = load_file(
        next((Loop("rtdmd", short, tmp_path / "short").train() / "transformer").glob("*.safetensors"))
    )
    assert all(torch.equal(trained[name], promoted[name]) for name in trained)
    # resumed from before the change of teachers and from after it, bit for bit
    for kill in (4, 5):
        killed_at(Loop("rtdmd", run, tmp_path / "killed"), kill)
    again = Loop("rtdmd", run, tmp_path / "killed").train()
    for file in sorted(path.relative_to(student) for path in student.rglob("*") if path.is_file()):
        assert (student / file).read_bytes() == (again / file).read_bytes(), file


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_fake_score_outlives_a_stage_that_trains_none_in_a_resumed_run_too(
    training: str, pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """The killed run meets the third stage with a backbone that has loaded everything anew."""
    table = {
        "name": "tiny", "device": "cpu", "checkpoint_every": 2, "log_every": 1,
        "backbone": {"path": str(pipeline_folder), "training": training, "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(prompt_file)},
        "stages": {
            "cold_start": {"trainer": "dmd", "iterations": 2, "settings": {"batch_size": 2}},
            "rl": {"trainer": "dpo", "iterations": 4, "settings": {"dpo": {"groups": 2, "group_size": 2}}},
            "distil": {"trainer": "dmd", "iterations": 2, "settings": {"batch_size": 2}},
        },
        "rewards": [{"id": "redness"}],
    }  # fmt: skip
    run = build(RunConfig, table, "tiny.toml")
    Loop("dmd", run, tmp_path / "whole").train()
    killed_at(Loop("dmd", run, tmp_path / "killed"), 5)  # at the last iteration of the stage without a fake score
    Loop("dmd", run, tmp_path / "killed").train()
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"trainer": "dmd", "settings": {"batch_size": 2, "fake_score": {"lr": 1e30}}}, "fake score"),
        ({"trainer": "dmd", "settings": {"batch_size": 2, "student": {"lr": 1e30}}}, "fake score"),  # it is first
        ({"trainer": "dpo", "settings": {"dpo": {"groups": 2, "group_size": 2}, "student": {"lr": 1e30}}}, "student"),
    ],
)
def test_a_diverged_training_ends_at_its_last_checkpoint_and_exports_nothing(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, stage: dict[str, Any], named: str
) -> None:
    """After the first update of such a rate the weights are finite still; what comes of them is not."""
    table = {"cold_start": {"iterations": 1}, "reinforce": {"iterations": 1}, "last": {"iterations": 9, **stage}}
    run = settings(pipeline_folder, prompt_file, checkpoint_every=100, stages=table)
    key = f"trainer.{named.replace(' ', '_')}.lr"
    told = f"^stages.last, iteration [23]: the {named}'s gradient is not finite; lower {key}"
    with pytest.raises(UserError, match=told):
        Loop("rtdmd", run, tmp_path / "run").train()
    assert not (tmp_path / "run" / "student").exists()
    state = load_state(tmp_path / "run")
    assert state and state["position"]["stage"] == "reinforce"
    assert all(weights.isfinite().all() for weights in state["trainer"]["student"]["parameters"])


def test_weights_that_the_last_update_ruined_are_not_exported(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """No gradient comes after it to show them."""
    stage = {"trainer": "dpo", "settings": {"dpo": {"groups": 2, "group_size": 2}, "student": {"lr": 1e39}}}
    table = {"cold_start": {"iterations": 1}, "reinforce": {"iterations": 1}, "last": {"iterations": 1, **stage}}
    run = settings(pipeline_folder, prompt_file, checkpoint_every=100, stages=table)
    told = "^stages.last, iteration 1: the student has weights that are not finite; lower trainer.student.lr"
    with pytest.raises(UserError, match=told):
        Loop("rtdmd", run, tmp_path / "run").train()
    assert not (tmp_path / "run" / "student").exists()
    state = load_state(tmp_path / "run")
    assert state and state["position"]["stage"] == "reinforce"


def test_a_stage_ends_early_when_a_held_out_metric_falls(
    pipeline_folder: Path,
    prompt_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The canary's values are told here: 0.9, 0.7, 0.7, ... of a held-out metric that may not fall by 0.1."""
    monkeypatch.setattr(
        loop_module.Canary, "measure", lambda self, trainer: ({"micro_clip": next(self.told)}, {"micro_clip": 0.1})
    )
    scored = SimpleNamespace(metrics={"micro_clip": make("micro_clip")}, missing=lambda identity: None)
    monkeypatch.setattr(canary_module, "Scorer", lambda names, device: scored)
    stop = {"metric": "micro_clip", "drop": 0.1, "patience": 2}
    run = settings(
        pipeline_folder, prompt_file,
        stages={"cold_start": {"iterations": 50}}, checkpoint_every=1,
        canary={"prompts": str(prompt_file), "metrics": ["micro_clip"], "every": 2, "stop": stop},
    )  # fmt: skip

    def loop(folder: str, told: list[float]) -> Loop:
        made = Loop("rtdmd", run, tmp_path / folder)
        made._canary.told = iter(told)  # type: ignore[attr-defined]
        return made

    student = loop("run", [0.9, 0.7, 0.7, 0.5, 0.5]).train()  # at 0, 2, 4: over; stage II at 2 and at its end, 3
    assert capsys.readouterr().err.endswith("cold_start: over after 4 iterations, for micro_clip has fallen\n")
    record, _ = read_training(student)
    assert [(s.iterations, s.stopped_by) for s in record.stages] == [(4, "micro_clip"), (3, "")]
    assert [point["iteration"] for point in record.curves] == [0, 2, 4, 6, 7]
    lines = log_lines(tmp_path / "run")
    assert any("stopped_by/micro_clip" in line for line in lines)
    assert sum("canary_std/micro_clip" in line for line in lines) == 5
    killed_at(loop("killed", [0.9, 0.7, 0.7]), 5)
    again = loop("killed", [0.7, 0.7, 0.5, 0.5]).train()  # what the resumed run has yet to measure
    assert (again / "training.json").read_bytes() == (student / "training.json").read_bytes()
    with pytest.raises(StopIteration):  # after the checkpoint of iteration 4, in the measurement that ends the stage
        loop("late", [0.9, 0.7]).train()
    again = loop("late", [0.7, 0.5, 0.5]).train()
    assert (again / "training.json").read_bytes() == (student / "training.json").read_bytes()
    assert log_lines(tmp_path / "late") == lines
    run = replace(run, log_every=3)
    loop("rest", [0.9, 0.7, 0.7, 0.5, 0.5]).train()
    trained = [line for line in log_lines(tmp_path / "rest") if "fake_score_loss" in line]
    assert [(line["stage"], line["iteration"]) for line in trained] == [
        ("cold_start", 3), ("cold_start", 4), ("reinforce", 3)
    ]  # fmt: skip
    # the end of a stage is the start of the next: from .9 to .7 there counts, if one measurement is enough
    short, later = {"iterations": 2}, {"iterations": 4, "settings": {"phase": "reinforce"}}
    table = as_table(run) | {"stages": {"cold_start": short, "reinforce": later}}
    table["canary"]["stop"]["patience"] = 1
    run = build(RunConfig, table, "")
    record, _ = read_training(loop("next", [0.9, 0.9, 0.7]).train())
    assert [(s.iterations, s.stopped_by) for s in record.stages] == [(2, ""), (2, "micro_clip")]
    table["stages"]["reinforce"] = later | {"student_from": "teacher"}
    run = build(RunConfig, table, "")  # who starts anew is not held to it
    record, _ = read_training(loop("anew", [0.9, 0.9, 0.7, 0.7]).train())
    assert [(s.iterations, s.stopped_by) for s in record.stages] == [(2, ""), (4, "")]


def test_a_run_may_extend_another_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base, over, circle = tmp_path / "base" / "base.toml", tmp_path / "over.toml", tmp_path / "circle.toml"
    base.write_text('name = "base"\nseed = 3\nbackbone.path = "p"\nstages.one = { iterations = 5 }\n')
    over.write_text('extends = "base/base.toml"\nname = "over"\nstages.one.trainer = "dmd"\n')
    run = read_run(over, ["stages.one.iterations=7"])
    assert (run.name, run.seed, run.stages["one"].iterations, run.stages["one"].trainer) == ("over", 3, 7, "dmd")
    circle.write_text('extends = "circle.toml"\n')
    with pytest.raises(UserError, match=r"circle.toml: extends itself"):
        read_run(circle)
    circle.write_text("extends = 3\n")
    with pytest.raises(UserError, match="extends must be the path of a TOML file"):
        read_run(circle)
    circle.write_text('extends = "nowhere.toml"\n')
    with pytest.raises(UserError, match=r"nowhere.toml: no such file"):
        read_run(circle)


def test_a_run_whose_time_is_up_pauses_and_ends_bit_for_bit_like_one_in_a_go(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = settings(pipeline_folder, prompt_file, checkpoint_every=100)
    whole = Loop("rtdmd", run, tmp_path / "whole").train()
    pauses = 0
    while True:  # no time at all: one iteration a call
        try:
            again = Loop("rtdmd", run, tmp_path / "paused").train(until=0.0)
            break
        except Paused:
            pauses += 1
    assert pauses == 6  # 5 + 3 iterations, of which two end a stage and need no pause
    assert log_lines(tmp_path / "paused") == log_lines(tmp_path / "whole")
    assert_same(*(torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "paused")))
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
