"""What a run is trained on: a stream of prompts, and stages with prompts of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import UserError, build
from benchmarks.models import read_training
from benchmarks.overlap import trained_on
from benchmarks.prompts import PromptSet, read_prompts
from metrics.base import Prompt
from tests.trainers.closed_form import reward_bank
from tests.trainers.tiny_run import killed_at, settings
from trainers import start as start_module
from trainers.base import Logs
from trainers.config import RunConfig, merge
from trainers.dmd import Dmd
from trainers.loop import Loop
from trainers.pause import Paused
from trainers.prompts import PromptsConfig, PromptStream, TrainingPrompts
from trainers.refl import Refl
from trainers.rewards import RewardBank


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


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("".join(f"other {n}\n" for n in range(5)))
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that plain DMD and ReFL are trained on, in order."""
    texts: list[str] = []
    for trainer in (Dmd, Refl):
        step = trainer.step

        def spy(self: Any, prompts: Sequence[Prompt], iteration: int, step: Any = step) -> Logs:
            texts.extend(prompt.text for prompt in prompts)
            return step(self, prompts, iteration)  # type: ignore[no-any-return]

        monkeypatch.setattr(trainer, "step", spy)
    return texts


def three_stages(pipeline: Path, source: Path, other: Path | str, **changes: Any) -> RunConfig:
    """A run whose second stage has prompts of its own."""
    stage = {"iterations": 2}
    table: Mapping[str, Any] = {
        "name": "tiny",
        "device": "cpu",
        "checkpoint_every": 1,
        "backbone": {"path": str(pipeline), "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(source)},
        "trainer": {"batch_size": 2},
        "stages": {"first": stage, "second": stage | {"prompts": {"source": str(other)}}, "third": stage},
    }
    return build(RunConfig, merge(table, changes), "tiny.toml")


def test_a_stage_may_have_prompts_of_its_own_and_others_go_on_where_they_ended(
    pipeline_folder: Path, prompt_file: Path, other_file: Path, tmp_path: Path, seen: list[str]
) -> None:
    student = Loop("dmd", three_stages(pipeline_folder, prompt_file, other_file), tmp_path / "run").train()
    whole = list(seen)
    assert all(text.startswith("other ") == (4 <= place < 8) for place, text in enumerate(whole))
    seen.clear()
    one = {"second": {"iterations": 2, "prompts": None}}
    Loop("dmd", three_stages(pipeline_folder, prompt_file, other_file, stages=one), tmp_path / "one").train()
    assert seen[:8] == whole[:4] + whole[8:]
    others = read_prompts(other_file)
    record, _ = read_training(student)
    both = PromptSet("", (*read_prompts(prompt_file).prompts, *others.prompts))
    assert record is not None and record.prompts_digest == both.digest
    assert trained_on(student, both) == [prompt.id for prompt in both.prompts]


@pytest.mark.parametrize("pauses", [1, 2, 3])
def test_an_interrupted_run_reads_on_in_the_stages_own_prompts(
    pipeline_folder: Path, prompt_file: Path, other_file: Path, tmp_path: Path, seen: list[str], pauses: int
) -> None:
    run = three_stages(pipeline_folder, prompt_file, other_file)
    Loop("dmd", run, tmp_path / "whole").train()
    whole = list(seen)
    seen.clear()
    for _ in range(pauses):  # within each of the stages
        with pytest.raises(Paused):
            Loop("dmd", run, tmp_path / "run").train(until=0)
    Loop("dmd", run, tmp_path / "run").train()
    assert seen == whole
    states = [torch.load(tmp_path / name / "checkpoint.pt")["prompt_positions"] for name in ("whole", "run")]
    assert states[0] == states[1] == [8, 4]


def test_rewards_judge_the_prompts_of_stages_that_are_trained_on_them(
    pipeline_folder: Path, prompt_file: Path, other_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(start_module, "load_rewards", lambda settings, device: reward_bank())
    monkeypatch.setattr(RewardBank, "check", lambda self, prompts: asked.extend(prompt.text for prompt in prompts))
    run = three_stages(pipeline_folder, prompt_file, other_file, stages={"second": {"trainer": "refl"}})
    Loop("dmd", run, tmp_path / "run")
    assert asked == [f"other {n}" for n in range(5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second": {"prompts": {"source": "no.txt"}}}, r"x\.toml: stages\.second\.prompts\.source: no\.txt"),
        ({"second": {"prompts": {"sorce": "no.txt"}}}, r"unknown key 'stages\.second\.prompts\.sorce'; did you mean"),
        ({"second": {"settings": {"batch_size": 6}}}, r"stages\.second: 6 different prompts .* has only 5"),
    ],
)
def test_a_stages_prompts_are_refused_where_they_stand(
    pipeline_folder: Path, prompt_file: Path, other_file: Path, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run = three_stages(pipeline_folder, prompt_file, other_file, stages=changes)
        Loop("dmd", run, tmp_path / "run", where="x.toml")
    assert not (tmp_path / "run").exists()


def test_a_state_of_a_run_with_other_later_streams_moves_the_shared_ones(prompt_file: Path) -> None:
    """As where a stage's end is taken over from a run whose next stage has prompts of its own."""
    one, other = PromptsConfig(source=str(prompt_file)), PromptsConfig(source=str(prompt_file), balance="category")
    for mine, its in (((one,), (one, other)), ((one, other), (one,))):
        donor, recipient = TrainingPrompts(0), TrainingPrompts(0)
        streams = [[prompts.open(one) for one in several] for prompts, several in ((donor, its), (recipient, mine))]
        streams[0][0].take(3)
        recipient.load_state_dict(donor.state_dict())
        assert [stream.position for stream in streams[1]] == [3, 0][: len(mine)]


@pytest.mark.usefixtures("closed_form_rewards")
def test_a_run_does_not_go_on_with_other_prompts(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    lines = prompt_file.read_text().splitlines(keepends=True)
    source.write_text("".join(lines))
    run = settings(pipeline_folder, source)
    killed_at(Loop("rtdmd", run, tmp_path / "run"), 3)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    source.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"run: prompts.source '.*prompts.jsonl' has other prompts than when the run"):
        Loop("rtdmd", run, tmp_path / "run").train()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    source.write_text("".join(lines))
    Loop("rtdmd", run, tmp_path / "run").train()
