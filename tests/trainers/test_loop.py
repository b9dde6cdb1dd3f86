import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from benchmarks.config import UserError, build
from benchmarks.protocol import read_protocol
from leaderboards.schema import Training
from metrics.base import Prompt
from tests.trainers.closed_form import reward_bank
from trainers import loop as loop_module
from trainers.config import RunConfig, merge
from trainers.loop import Loop
from trainers.prompts import PromptStream


@pytest.fixture(autouse=True)
def closed_form_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "load_rewards", lambda settings, device: reward_bank(judge=True))


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


@pytest.mark.parametrize("training", ["lora", "full"])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, training: str
) -> None:
    run = settings(pipeline_folder, prompt_file, backbone={"training": training})
    whole = Loop("rtdmd", run, tmp_path / "whole").train()
    for kill in (1, 3, 4):  # before any checkpoint, after one, and in the second stage
        killed_at(Loop("rtdmd", run, tmp_path / "killed"), kill)
    again = Loop("rtdmd", run, tmp_path / "killed").train()
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert_same(*states)
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file


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


def test_a_finished_run_started_again_changes_nothing(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = settings(pipeline_folder, prompt_file)
    student = Loop("rtdmd", run, tmp_path / "run").train()
    before = (tmp_path / "run" / "log.jsonl").read_bytes(), (student / "training.json").read_bytes()
    Loop("rtdmd", run, tmp_path / "run").train()
    assert ((tmp_path / "run" / "log.jsonl").read_bytes(), (student / "training.json").read_bytes()) == before


def test_the_student_carries_its_protocol_and_training(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    student = Loop("rtdmd", settings(pipeline_folder, prompt_file), tmp_path / "run").train()
    StableDiffusion3Pipeline.from_pretrained(student, text_encoder_3=None, tokenizer_3=None)
    protocol = read_protocol(student)
    assert protocol is not None and (protocol.sampler, protocol.eta, protocol.guided) == ("cps", 0.9, False)
    assert protocol.call_arguments == {"max_sequence_length": 0}
    record = Training.model_validate_json((student / "training.json").read_text())
    assert record.method == "rtdmd" and record.rewards == ["redness", "judge"] and record.image_free
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert record.network_passes == state["passes"] > 0
    base = load_file(next((pipeline_folder / "transformer").glob("*.safetensors")))
    trained = load_file(next((student / "transformer").glob("*.safetensors")))
    assert base.keys() == trained.keys() and trained["proj_out.weight"].dtype == torch.float16
    assert any(not torch.equal(base[k].half(), trained[k]) for k in base)


def test_the_export_is_the_ema(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    run = settings(pipeline_folder, prompt_file, export={"dtype": "float32"}, backbone={"training": "full"})
    student = Loop("rtdmd", run, tmp_path / "run").train()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainer"]["student"]
    trained = load_file(next((student / "transformer").glob("*.safetensors")))
    assert any(torch.equal(state["average"][-1], tensor) for tensor in trained.values())
    assert not any(torch.equal(state["parameters"][-1], tensor) for tensor in trained.values())


def test_a_stage_ends_with_its_budget_of_passes(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    stages = {"cold_start": {"iterations": 0, "budget_passes": 200}, "reinforce": {"iterations": 1}}
    Loop("rtdmd", settings(pipeline_folder, prompt_file, stages=stages), tmp_path / "run").train()
    cold = [line["passes"] for line in log_lines(tmp_path / "run") if line["stage"] == "cold_start"]
    assert cold[-2] < 200 <= cold[-1]


def test_settings_of_a_run_cannot_change_between_two_starts(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    Loop("rtdmd", settings(pipeline_folder, prompt_file), tmp_path / "run")
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"guidance": 2.0}}, "unknown key 'guidance'; did you mean 'guidance_scale'"),
        ({"stages": {"reinforce": {"settings": {"reinforce": {"groups": "two"}}}}}, "stages.reinforce.*groups"),
        ({"stages": {"cold_start": {"trainer": "rtdm"}}}, "unknown trainer 'rtdm'; did you mean 'rtdmd'"),
        ({"prompts": {"source": "nowhere.jsonl"}}, "nowhere.jsonl: no such prompt file"),
        ({"trainer": {"cold_start": {"batch_size": 99}}}, "99 different prompts per iteration, but .* only 9"),
    ],
)
def test_mistakes_are_named_before_any_work(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Loop("rtdmd", settings(pipeline_folder, prompt_file, **changes), tmp_path / "run").train()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"stages": {"a": {}}}, "a stage needs an end"),
        ({"stages": {}}, "no stages"),
        ({"stages": {"a": {"iterations": 1}}, "rewards": [{"id": "x"}, {"id": "x"}]}, "listed twice"),
        ({"stages": {"a": {"iterations": 1}}, "sed": 3}, "unknown key 'sed'; did you mean 'seed'"),
    ],
)
def test_run_config_refuses_what_makes_no_sense(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(RunConfig, {"name": "x", "backbone": {"path": "p"}, **table}, "x.toml")


def stream_of(categories: dict[str, int], seed: int = 0) -> PromptStream:
    prompts = [Prompt(text=f"{c} {n}", category=c) for c, count in categories.items() for n in range(count)]
    return PromptStream(prompts, "category", seed)


def test_prompt_stream_is_balanced_complete_and_never_repeats_within_a_batch() -> None:
    stream = stream_of({"few": 3, "many": 30})
    batches = [stream.take(6) for _ in range(20)]
    assert all(len({p.text for p in batch}) == 6 for batch in batches)
    assert all(2 <= sum(p.category == "few" for p in batch) <= 4 for batch in batches)
    assert {p.text for batch in batches[:12] for p in batch} == {f"few {n}" for n in range(3)} | {
        f"many {n}" for n in range(30)
    }


def test_prompt_stream_continues_from_its_position() -> None:
    one, two = stream_of({"a": 7, "b": 5}), stream_of({"a": 7, "b": 5})
    for _ in range(5):
        one.take(4)
    two.position = one.position
    assert [one.take(4) for _ in range(9)] == [two.take(4) for _ in range(9)]
    assert stream_of({"a": 50}, seed=1).take(10) != stream_of({"a": 50}).take(10)
