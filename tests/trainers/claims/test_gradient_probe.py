"""The probe: gradients are counted, weights stay, and V is what its formula says."""

import pytest
import torch

from benchmarks.config import UserError, build
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone
from tests.trainers.test_loop import assert_same
from trainers.base import World
from trainers.claims.gradient_probe import GradientProbe
from trainers.rewards import RewardBank, RewardConfig
from trainers.rtdmd import RtdmdConfig

TABLE = {
    "phase": "reinforce",
    "reinforce": {
        "groups": 2,
        "group_size": 4,
        "det_term": False,
        "dm_steps": "none",
        "rl": "grpo",
        "noise": "independent",
    },
}


def probe(**reinforce: object) -> GradientProbe:
    torch.manual_seed(0)
    config = build(RtdmdConfig, TABLE | {"reinforce": TABLE["reinforce"] | reinforce}, "probe")  # type: ignore[operator]
    return GradientProbe(config, PointBackbone((0.5, 0.5), 0.5), first_coordinate(), World(seed=0))  # type: ignore[arg-type]


def first_coordinate() -> RewardBank:
    return RewardBank([RewardConfig(id="x")], {"x": FirstCoordinate("x", 0, True)})  # type: ignore[dict-item]


def prompts() -> list[Prompt]:
    return [Prompt(text="a"), Prompt(text="b")]


def test_the_weights_stay_and_the_variance_is_that_of_its_gradients() -> None:
    trainer = probe()
    before = [p.detach().clone() for p in trainer.roles.student.parameters]
    taken, count = [], trainer._take
    backward: list[torch.Tensor] = []

    def recording() -> float:
        backward.append(torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double().clone()
            for p in trainer.roles.student.parameters
        ]))  # fmt: skip
        return count()

    trainer.roles.student.update = recording  # type: ignore[method-assign]
    for iteration in range(6):
        taken.append(trainer.step(prompts(), iteration))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.roles.student.parameters, strict=True))
    g = torch.stack(backward)
    expected = g.var(dim=0, correction=1).sum() / g.mean(dim=0).square().sum()
    assert taken[-1]["gradient_variance"] == pytest.approx(float(expected), rel=1e-6)
    assert "gradient_variance" not in taken[0] and float(expected) > 0


def test_a_factor_on_the_loss_changes_nothing() -> None:
    values = []
    for weight in (1.0, 7.0):
        trainer = probe(rl_weight=weight)
        for iteration in range(4):
            logs = trainer.step(prompts(), iteration)
        values.append(logs["gradient_variance"])
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_it_resumes_where_it_stopped() -> None:
    whole, half = probe(), probe()
    for iteration in range(4):
        last = whole.step(prompts(), iteration)
        if iteration == 1:
            half.load_state_dict(whole.state_dict())
    for iteration in (2, 3):
        again = half.step(prompts(), iteration)
    assert again == last
    assert_same(whole.state_dict()["sum"], half.state_dict()["sum"])


def test_other_terms_than_the_rewards_are_refused() -> None:
    with pytest.raises(UserError, match='dm_steps = "none"'):
        probe(dm_steps="last")
