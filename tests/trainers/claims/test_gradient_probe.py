"""The probe: gradients are counted, weights stay, and their variance is what its formula says."""

import pytest
import torch

from benchmarks.config import UserError, build
from metrics.base import Prompt
from tests.trainers.closed_form import FirstCoordinate, PointBackbone
from tests.trainers.tiny_run import assert_same
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
        "subset_scale": "paper",
        "advantage": "centred",
        "zero_advantage": "keep",
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
    g, taken = gradients(trainer, 6)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.roles.student.parameters, strict=True))
    expected = g.var(dim=0, correction=1).sum()
    assert taken[-1]["gradient_variance"] == pytest.approx(float(expected), rel=1e-6)
    assert "gradient_variance" not in taken[0] and float(expected) > 0


def gradients(trainer: GradientProbe, epochs: int) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Return (the gradients of so many epochs [E, D], their logs)."""
    count = trainer._take
    backward: list[torch.Tensor] = []

    def recording() -> float:
        backward.append(torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double().clone()
            for p in trainer.roles.student.parameters
        ]))  # fmt: skip
        return count()

    trainer.roles.student.update = recording  # type: ignore[method-assign]
    taken = [trainer.step(prompts(), iteration) for iteration in range(epochs)]
    return torch.stack(backward), taken


def test_both_estimators_expect_one_gradient() -> None:
    grpo, _ = gradients(probe(), 250)
    sub, _ = gradients(probe(rl="subgrpo", noise="shared", subset_size=1), 250)
    error = (grpo.var(dim=0) / len(grpo) + sub.var(dim=0) / len(sub)).sqrt()
    moved = grpo.mean(dim=0).abs() > 4 * error  # where there is a gradient to speak of
    assert moved.any()
    assert ((grpo.mean(dim=0) - sub.mean(dim=0)).abs() < 4 * error)[moved].all()
    unscaled = sub.mean(dim=0) / 3  # what it would be without (K-1)/M = 3 / 1
    assert ((grpo.mean(dim=0) - unscaled).abs() > 4 * error)[moved].any()


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


@pytest.mark.parametrize(
    "other",
    [
        {"dm_steps": "last"},
        {"det_term": True},
        {"subset_scale": "none"},
        {"advantage": "group_std"},
        {"zero_advantage": "drop"},
    ],
)
def test_what_would_not_compare_is_refused(other: dict[str, object]) -> None:
    (key,) = other
    with pytest.raises(UserError, match=f"set.*{key} = "):
        probe(**other)
