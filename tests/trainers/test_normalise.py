"""Rewards on one scale by running statistics: what they are, who reads them, and that a run goes on with them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, as_table, build
from benchmarks.models import read_training
from metrics.base import Prompt
from tests.trainers.closed_form import ClosedFormMetric, FirstCoordinate, PointBackbone, bank_of
from tests.trainers.tiny_run import assert_same, killed_at, log_lines, settings
from trainers import dpo as dpo_module
from trainers.base import Trainer, World, find
from trainers.checkpoint import load_state
from trainers.config import RunConfig
from trainers.loop import Loop
from trainers.refl import hinge_loss
from trainers.rewards import RewardBank, RewardConfig

PROMPTS = [Prompt(text=str(n)) for n in range(32)]
SCORES = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([0.2, 0.6])}  # deviations 2 and 0.2


def bank(**of_a: Any) -> RewardBank:
    """Return a bank of a, which is normalised, and b, which is not."""
    rewards = [RewardConfig(id="a", weight=2.0, normalise="running", **of_a), RewardConfig(id="b", scale=4.0)]
    return RewardBank(rewards, {name: FirstCoordinate(name, 0, True) for name in "ab"})  # type: ignore[misc]


def test_mean_and_deviation_stand_for_the_scale() -> None:
    one = bank()
    one.observe(SCORES)
    z = torch.tensor([-1.0, 1.0]) * 2 / (2 + 1e-4)
    assert torch.allclose(one.levelled(SCORES)["a"], z) and torch.equal(one.levelled(SCORES)["b"], SCORES["b"] / 4)
    assert torch.allclose(one.total(SCORES), 2 * z + SCORES["b"] / 4)
    assert torch.equal(one.scaled(SCORES)["a"], SCORES["a"])  # of advantages
    one.observe({"a": torch.tensor([9.0, 9.0])})  # no b: a batch of which only a was asked
    mean = (0.99 * 3 + 9) / 1.99
    assert one.levelled({"a": torch.tensor([mean])})["a"].item() == pytest.approx(0, abs=1e-6)


def test_the_decay_is_the_rewards_own() -> None:
    one = bank(decay=0.0)  # the last batch alone
    for scores in (SCORES, {"a": torch.tensor([10.0, 20.0])}):
        one.observe(scores)
    assert one.levelled({"a": torch.tensor([20.0])})["a"].item() == pytest.approx(1, rel=1e-4)


def test_the_batches_of_all_processes_count() -> None:
    one, two, whole = bank(), bank(), bank()
    one.gather = two.gather = lambda rows: torch.tensor([1.0, 5.0])
    one.observe({"a": torch.tensor([1.0])})
    two.observe({"a": torch.tensor([5.0])})
    whole.observe(SCORES)
    assert one.state_dict() == two.state_dict() == whole.state_dict() and whole.state_dict().keys() == {"a"}


def test_the_hinge_is_of_deviations_and_no_gradient_passes_through_the_statistics() -> None:
    one, score = bank(margin=0.5), SCORES["a"].clone().requires_grad_()
    one.observe({"a": score})
    loss = hinge_loss({"a": score}, one, margin=0.7)
    loss.backward()
    assert loss.item() == pytest.approx(2 * (0.5 + 1) / 2, rel=1e-3)
    assert score.grad is not None and score.grad.tolist() == pytest.approx([-2 / 2 / 2, 0], rel=1e-3)


def trainer_of(method: str, table: dict[str, Any], rewards: RewardBank) -> Any:
    torch.manual_seed(0)
    kind = find(method)
    return kind(build(kind.Config, table, "test"), PointBackbone((0.0, 0.0), 0.5), rewards, World())


def points(**changes: Any) -> RewardBank:
    """Return x_1, normalised, as the only reward."""
    one = RewardConfig(**{"id": "x1", "normalise": "running", **changes})
    return RewardBank([one], {"x1": FirstCoordinate("x1", 0, True)})  # type: ignore[dict-item]


REINFORCE = {"groups": 4, "group_size": 8, "rl": "none", "dm_steps": "none", "det_weight": 2.0, "det_margin": 50.0}


@pytest.mark.parametrize("microbatch", [0, 8])
def test_the_direct_term_is_of_the_normalised_total_and_a_batch_counts_once(microbatch: int) -> None:
    """Of the first batch the mean of (r - m) / sigma is 0, so w relu(50 - R) is 50 w in the mean."""
    rewards = points()
    table = {"phase": "reinforce", "reinforce": REINFORCE | {"microbatch": microbatch}}
    logs = trainer_of("rtdmd", table, rewards).step(PROMPTS[:4], 0)
    assert logs["det_loss"] == pytest.approx(100, rel=1e-5) and abs(logs["reward/x1"]) > 1e-4
    assert rewards.state_dict()["x1"][0] == pytest.approx(0.01)  # the weight of one batch at decay 0.99


def test_pairs_are_chosen_by_the_normalised_total(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    choose = dpo_module.choose_pairs
    monkeypatch.setattr(dpo_module, "choose_pairs", lambda total, size: seen.append(total) or choose(total, size))
    trainer_of("dpo", {"dpo": {"groups": 4, "group_size": 8}}, points(weight=3.0)).step(PROMPTS[:4], 0)
    assert seen[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert seen[0].std(correction=0).item() == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("text", ["prompt", "srpo"])
def test_refl_holds_the_normalised_reward_to_its_margin_and_logs_the_raw_one(text: str) -> None:
    rewards = points(margin=50.0)
    logs = trainer_of("refl", {"batch_size": 32, "refl": {"text": text}}, rewards).step(PROMPTS, 0)
    assert logs["rl_loss"] == pytest.approx(50, rel=1e-5)
    name = {"prompt": "reward", "srpo": "srpo"}[text]
    m, sigma = (logs[f"{kind}/x1"] for kind in (name, f"{name}_std"))
    count, total, squares = rewards.state_dict()["x1"]
    assert (total / count, math.sqrt(squares / count - m**2)) == pytest.approx((m, sigma), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "table", "read"),
    [
        ("refl", {}, {"margin", "normalise"}),
        ("dpo", {}, {"normalise"}),
        ("grpo", {}, set()),
        ("rtdmd", {}, set()),
        ("rtdmd", {"phase": "reinforce"}, {"normalise"}),
        ("rtdmd", {"phase": "reinforce", "reinforce": {"det_term": False}}, set()),
        ("dmdr", {"phase": "rt_dm"}, set()),
        ("dmdr", {"phase": "joint"}, {"margin", "normalise"}),
        ("dmdr", {"phase": "joint", "rl": "srpo"}, {"margin", "normalise"}),
        ("dmdr", {"phase": "joint", "rl": "dpo"}, {"normalise"}),
        ("dmdr", {"phase": "joint", "rl": "grpo", "batch_size": 4}, set()),
        ("dmd", {}, set()),
    ],
)
def test_methods_tell_which_settings_of_a_reward_they_read(
    method: str, table: dict[str, Any], read: set[str]
) -> None:
    plain = {"dynadg": {"kind": "off"}, "fake_scale": 1.0} if method == "dmdr" else {}
    made: Trainer = trainer_of(method, plain | table, points(normalise="none"))
    assert set(made.reward_settings) == read


@pytest.mark.parametrize("kind", ["linear", "raw_exp"])
def test_weights_of_raw_rewards_refuse_normalised_ones(kind: str) -> None:
    table = {"phase": "rt_dm", "rt_dm": {"kind": kind}, "dynadg": {"kind": "off"}, "fake_scale": 1.0}
    with pytest.raises(UserError, match=rf'rt_dm.kind = "{kind}" is of raw rewards, and x1 is normalised'):
        trainer_of("dmdr", table, points())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"normalise": "running", "scale": 26.0}, "in the place of scale: leave one of them out"),
        ({"decay": 0.9}, 'decay is of normalise = "running"'),
        ({"normalise": "running", "decay": 1.0}, r"decay must lie in \[0, 1\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(RewardConfig, {"id": "x"} | table, "x.toml")


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reward of a run is the mean of the red channel, with the run's own settings."""
    metric = ClosedFormMetric("redness", 0, True)
    monkeypatch.setattr("trainers.start.load_rewards", lambda rewards, device: bank_of(metric, rewards))


def run_of(pipeline: Path, source: Path, trainer: dict[str, Any], reward: dict[str, Any]) -> RunConfig:
    table = as_table(settings(pipeline, source)) | {
        "trainer": trainer, "stages": {"only": {"iterations": 4}}, "rewards": [{"id": "redness"} | reward],
    }  # fmt: skip
    return build(RunConfig, table, "tiny.toml")


@pytest.mark.usefixtures("redness")
def test_an_interrupted_run_goes_on_with_the_statistics_bit_for_bit(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    run = run_of(pipeline_folder, prompt_file, {"batch_size": 2}, {"normalise": "running", "margin": 1.5})
    student = Loop("refl", run, tmp_path / "whole").train()
    killed_at(Loop("refl", run, tmp_path / "killed"), 3)
    Loop("refl", run, tmp_path / "killed").train()
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "whole")
    states = [load_state(tmp_path / name) for name in ("killed", "whole")]
    assert states[0] and states[1] and states[1]["rewards"].keys() == {"redness"}
    assert_same(*states)
    record, _ = read_training(student)
    assert record is not None and record.rewards == ["redness"]
    told = record.config["rewards"]
    assert isinstance(told, list) and isinstance(told[0], dict)
    assert (told[0]["margin"], told[0]["normalise"], told[0]["decay"]) == (1.5, "running", 0.99)


@pytest.mark.usefixtures("redness")
@pytest.mark.usefixtures("redness")
@pytest.mark.parametrize(
    ("method", "trainer", "reward", "message"),
    [
        ("dpo", {"dpo": {"groups": 2}}, {"margin": 0.5}, "rewards: redness: no stage reads margin .ReFL's hinge"),
        ("grpo", {"grpo": {"groups": 2}}, {"normalise": "running"}, "no stage reads normalise .*advantages"),
        ("dmd", {"batch_size": 2}, {"margin": 0.5}, "no stage reads margin"),  # a reward of the canary
        (
            "rtdmd",
            {"phase": "reinforce", "reinforce": {"groups": 2, "group_size": 2}},
            {"margin": 0.5},
            "no stage reads margin .*RTDMD's direct term, reinforce.det_margin, is of R",
        ),
    ],
)
def test_a_setting_of_a_reward_that_nobody_reads_is_refused_by_name(
    pipeline_folder: Path,
    prompt_file: Path,
    tmp_path: Path,
    method: str,
    trainer: dict[str, Any],
    reward: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        Loop(method, run_of(pipeline_folder, prompt_file, trainer, reward), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.usefixtures("redness")
def test_one_stage_that_reads_a_setting_is_enough(pipeline_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    run = run_of(pipeline_folder, prompt_file, {"batch_size": 2}, {"margin": 0.5, "normalise": "running"})
    stages = {"cold": {"iterations": 1}, "rl": {"iterations": 1, "trainer": "refl"}}
    Loop("dmd", build(RunConfig, as_table(run) | {"stages": stages}, "tiny.toml"), tmp_path / "run")
