"""What a run tells of itself: its log, and the record that goes with the student."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

from benchmarks.config import UserError, build
from benchmarks.models import read_training
from benchmarks.overlap import trained_on
from benchmarks.prompts import PromptSet, read_prompts
from benchmarks.protocol import read_protocol
from metrics.base import Prompt
from tests.trainers.closed_form import ClosedFormMetric, bank_of
from tests.trainers.tiny_run import Killed, log_lines, settings
from trainers.base import find
from trainers.config import RunConfig
from trainers.loop import Loop

pytestmark = pytest.mark.usefixtures("closed_form_rewards")


@pytest.mark.parametrize("kill", [0, 2])
def test_the_log_holds_what_only_some_iterations_do(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path, kill: int
) -> None:
    """The student is updated in iterations 0, 2 and 4; a line is written after 4 of each stage and at its end, 5."""
    changes = {"log_every": 4, "checkpoint_every": 1, "stages": {"reinforce": {"iterations": 5}}}
    run = settings(pipeline_folder, prompt_file, **changes)
    seen: list[int] = []
    for interrupted in range(kill):
        loop = Loop("rtdmd", run, tmp_path / "run")
        step = loop._step

        def stop(*arguments: Any, at: int = 3 + 5 * interrupted, step: Any = step) -> dict[str, float]:
            seen.append(1)
            if len(seen) > at:
                raise Killed
            return step(*arguments)

        loop._step = stop  # type: ignore[method-assign]
        with pytest.raises(Killed):
            loop.train()
        seen.pop()
    Loop("rtdmd", run, tmp_path / "run").train()
    lines = [line for line in log_lines(tmp_path / "run") if "fake_score_loss" in line]
    assert [(line["stage"], line["iteration"]) for line in lines] == [
        ("cold_start", 4), ("cold_start", 5), ("reinforce", 4), ("reinforce", 5)
    ]  # fmt: skip
    first, _, second, last = lines
    assert all(line["passes"] > before["passes"] for before, line in pairwise(lines))
    assert {"reward_std/redness", "dmd_loss"} <= last.keys()  # what the last iteration did, and no stage before
    assert {"dmd_loss", "student_norm"} <= first.keys() and not any(key.startswith("reward") for key in first)
    assert {"reward_std/redness", "dmd_loss"} <= second.keys()
    assert log_lines(tmp_path / "run") == whole_log(run, tmp_path)


def whole_log(run: RunConfig, folder: Path) -> list[dict[str, Any]]:
    Loop("rtdmd", run, folder / "whole").train()
    return log_lines(folder / "whole")


def test_a_reward_that_is_only_watched_was_not_trained_on(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    matched = {"stages": {"reinforce": {"settings": {"phase": "cold_start"}}}}
    student = Loop("rtdmd", settings(pipeline_folder, prompt_file, **matched), tmp_path / "run").train()
    assert json.loads((student / "training.json").read_text())["rewards"] == []


@pytest.mark.parametrize(
    ("last", "reward_is_free", "expected"),
    [
        ({"settings": {"phase": "reinforce"}}, True, True),
        ({"settings": {"phase": "reinforce"}}, False, False),
        ({"settings": {"phase": "cold_start"}}, False, True),  # what is only watched does not count
        ({"trainer": "dmd2", "settings": {"batch_size": 2, "pictures": "pictures"}}, True, False),
    ],
)
def test_a_record_tells_whether_rewards_or_a_stage_needed_pictures(
    pipeline_folder: Path,
    prompt_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: dict[str, Any],
    reward_is_free: bool,
    expected: bool,
) -> None:
    metric = ClosedFormMetric("redness", 0, True)
    metric.card = replace(metric.card, image_free=reward_is_free)
    monkeypatch.setattr("trainers.start.load_rewards", lambda rewards, device: bank_of(metric, rewards))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "pictures" / "red.png")
    stages = {"cold_start": {"iterations": 1}, "reinforce": {"iterations": 1}, "last": {"iterations": 1} | last}
    stages["reinforce"]["settings"] = {"phase": "cold_start"}
    run = settings(pipeline_folder, prompt_file, stages=stages, rewards=[{"id": "redness"}])
    assert read_training(Loop("rtdmd", run, tmp_path / "run").train())[0].image_free is expected


@pytest.mark.parametrize(
    ("method", "table", "rewarded"),
    [
        ("rtdmd", {"phase": "cold_start"}, False),
        ("rtdmd", {"phase": "reinforce"}, True),
        ("rtdmd", {"phase": "reinforce", "reinforce": {"rl": "none"}}, True),  # the direct term is left
        ("rtdmd", {"phase": "reinforce", "reinforce": {"rl": "none", "det_term": False}}, False),
        ("dmdr", {"phase": "joint"}, True),
        ("dmdr", {"phase": "rt_dm"}, True),
        ("dmdr", {"phase": "rt_dm", "rt_dm": {"kind": "none"}}, False),
        ("dmd", {}, False),
        ("dmd2", {}, False),
        ("dp_dmd", {}, False),
        ("tdm", {}, False),
        ("refl", {}, True),
        ("grpo", {}, True),
        ("dpo", {}, True),
    ],
)
def test_methods_tell_whether_a_term_knows_the_rewards(method: str, table: dict[str, Any], rewarded: bool) -> None:
    trainer = find(method)
    assert trainer.trains_on_rewards(build(trainer.Config, table, "test")) is rewarded


def test_the_student_carries_its_protocol_and_training(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    student = Loop("rtdmd", settings(pipeline_folder, prompt_file), tmp_path / "run").train()
    StableDiffusion3Pipeline.from_pretrained(student, text_encoder_3=None, tokenizer_3=None)
    protocol = read_protocol(student)
    assert protocol is not None and (protocol.sampler, protocol.eta, protocol.guided) == ("cps", 0.9, False)
    assert protocol.call_arguments == {"max_sequence_length": 0}
    record, base = read_training(student)
    assert base == pipeline_folder.name
    assert record.method == "rtdmd" and record.rewards == ["redness", "judge"] and record.image_free
    seen = read_prompts(prompt_file)
    assert record.prompts_digest == seen.digest
    assert trained_on(student, seen) == [prompt.id for prompt in seen.prompts]
    unseen = PromptSet("unseen", (Prompt(text="nobody trained on this", id="x"),))
    assert trained_on(student, unseen) == []
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert record.network_passes == state["passes"] > 0
    base = load_file(next((pipeline_folder / "transformer").glob("*.safetensors")))
    trained = load_file(next((student / "transformer").glob("*.safetensors")))
    assert base.keys() == trained.keys() and trained["proj_out.weight"].dtype == torch.float16
    assert any(not torch.equal(base[k].half(), trained[k]) for k in base)


def test_a_distance_that_is_trained_on_is_listed_with_the_rewards_and_is_no_stop(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """A student trained on micro CLIP's features is not judged by micro CLIP as if it had never seen it."""
    stage = {
        "trainer": "dmd_lpips", "iterations": 1,
        "settings": {
            "batch_size": 2, "fake_score_updates": 1, "guidance_scale": 1.0,
            "sampler": {"sampler": "euler", "num_inference_steps": 2},
            "lpips": {"distance": "micro_perceptual", "batch_size": 2},
            "teacher_samples": {"count": 2, "steps": 2, "folder": str(tmp_path / "samples")},
        },
    }  # fmt: skip
    changes = {"stages": {"cold_start": {"iterations": 1}, "reinforce": {"iterations": 1}, "distil": stage}}
    student = Loop("rtdmd", settings(pipeline_folder, prompt_file, **changes), tmp_path / "run").train()
    record, _ = read_training(student)
    assert record.rewards == ["redness", "judge", "micro_clip"]
    stop = {"prompts": str(prompt_file), "metrics": ["micro_clip"], "stop": {"metric": "micro_clip"}}
    with pytest.raises(UserError, match=r"canary\.stop\.metric 'micro_clip' is trained on"):
        Loop("rtdmd", settings(pipeline_folder, prompt_file, canary=stop, **changes), tmp_path / "other")
