"""What a training step computes is its necessary network passes, in floating-point operations: nothing twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError
from metrics.base import Prompt
from tests.perf import training_step
from tests.perf.training_step import (
    Arguments,
    Bare,
    Call,
    Found,
    Times,
    bare_calls,
    cases,
    keep_prompts,
    main,
    measured,
    network_share,
    networks_of,
    operations_ratio,
    ready,
)
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, load
from trainers.base import available
from trainers.prompts import read_training_prompts
from trainers.rewards import RewardBank, RewardConfig, load_rewards

BATCH = 8  # samples of a step
GOOD = Times(step=1.08, passes=1.0, ratio=1.08, network=0.97)


@dataclass
class World:
    """The micro world with small pictures and few adapters, and as many prompts as a batch has."""

    backbone: Backbone
    rewards: RewardBank
    prompts: list[Prompt]
    known: dict[tuple[str, int], float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def world() -> World:
    few = LoraConfig(targets=("to_q", "to_k", "to_v"))
    settings = BackboneConfig(path="benchmarks/micro/pipeline", resolution=32, lora=few)
    backbone = load(settings, torch.device("cpu"))
    rewards, prompts = load_rewards([RewardConfig(id="micro_clip")], backbone.device), read_training_prompts("micro")
    keep_prompts(backbone, rewards, prompts[:BATCH])
    return World(backbone, rewards, list(prompts[:BATCH]))


@pytest.mark.parametrize("name", cases())
def test_step_computes_its_necessary_passes_and_no_more(name: str, world: World, tmp_path: Path) -> None:
    (case,) = cases([name]).values()
    step = ready(case, BATCH, world.backbone, world.rewards, world.prompts, tmp_path)
    calls = bare_calls(case, BATCH, world.backbone, world.rewards, world.prompts)
    assert operations_ratio(step, calls, case.get("round", 1), world.known) == pytest.approx(1, abs=0.01)


def test_every_method_has_a_case_and_dmdr_one_with_each_of_its_rewards() -> None:
    found = list(cases().values())
    ours = {name for name, trainer in available().items() if trainer.__module__ == f"trainers.{name}"}
    assert {case["trainer"] for case in found} == ours
    of_joint = [case["settings"].get("rl", "refl") for case in found if case["settings"].get("phase") == "joint"]
    assert sorted(of_joint) == ["dpo", "grpo", "refl", "srpo"]
    with_first_step = {case["trainer"] for case in found if "dp_first_step" in case["settings"]}
    assert with_first_step == {"dmdr", "rtdmd"}


@pytest.mark.parametrize(
    ("times", "code", "told"),
    [
        (None, 0, ""),  # counted only
        (GOOD, 0, "every ratio is at most 1.10, of passes that are networks by 95%"),
        (Times(1.1, 1.0, ratio=1.10, network=0.95), 0, "every ratio is at most 1.10"),
        (Times(1.2, 1.0, ratio=1.104, network=0.97), 1, "refl: a step takes 1.104 times its passes, at most 1.10"),
        (Times(1.0, 1.0, ratio=1.0, network=0.949), 1, "refl: networks take 94.9% of the bare passes' time"),
    ],
)
def test_a_missed_bar_is_told_and_is_the_exit_code(
    times: Times | None, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(_: Arguments) -> Iterator[Found]:
        yield Found("refl", 1.0, times)
        yield Found("dpo", 1.0, GOOD if times else None)  # a good case after a bad one mends nothing

    monkeypatch.setattr(training_step, "measured", found)
    assert main(Arguments(rounds=5 if times else 0)) == code
    shown = capsys.readouterr().out
    assert told in shown and shown.startswith("refl")
    assert ("not timed" in shown) == (times is None) and ("network 97.0%" in shown) == (times is not None)


def test_a_round_is_timed_as_a_whole() -> None:
    with pytest.raises(UserError, match=r"--iterations 6: refl needs a multiple of 4"):
        next(measured(Arguments(methods=("dp_dmd", "refl"), iterations=6)))
    with pytest.raises(UserError, match=r"no \['refI'\]; did you mean 'refl'"):
        next(measured(Arguments(methods=("refI",))))


def test_networks_are_the_modules_entered_from_outside_of_any(world: World) -> None:
    bare, pipeline = Bare(world.backbone, world.rewards, world.prompts), world.backbone.pipeline  # type: ignore[attr-defined]
    assert networks_of(bare.of("student_forward")) == [pipeline.transformer]
    assert networks_of(bare.of("teacher_guided")) == [pipeline.transformer]
    rated = networks_of(bare.of("decode_and_rate"))
    assert pipeline.vae.decoder in rated and pipeline.transformer not in rated
    inner = {part for network in rated for part in network.modules() if part is not network}
    assert len(rated) > 1 and not inner & {*rated}  # of the reward as well


def test_the_share_of_networks_is_that_of_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: 2 s of forward, 3 of backward and 5 beside them; a second call is half as long."""
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    class Network(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.inner, self.seconds = nn.Linear(2, 2), seconds

        def forward(self, x: Tensor) -> Tensor:
            passes(self.seconds)
            y = self.inner(x)
            if y.requires_grad:
                y.register_hook(lambda _: passes(3))
            return y

    long, short = Network(2), Network(5)

    def train(_: int) -> None:
        passes(5)
        long(torch.ones(1, 2)).sum().backward()

    @torch.no_grad()
    def forward(_: int) -> None:
        short(torch.ones(1, 2))

    monkeypatch.setattr(training_step, "now", lambda: clock)
    calls = [Call("train", 1, 1, train), Call("forward", 1, 0.5, forward)]
    assert network_share(calls, iterations=4) == pytest.approx((5 + 0.5 * 5) / (10 + 0.5 * 5))
    assert Tensor.backward.__module__ == "torch._tensor"  # the clock is gone
