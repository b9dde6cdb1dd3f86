import pytest
import torch
from torch import nn

from benchmarks.config import UserError, build
from trainers.learner import EmaConfig, Learner, OptimiserConfig


def learner(ema: EmaConfig | None = None, **settings: object) -> tuple[nn.Parameter, Learner]:
    parameter = nn.Parameter(torch.zeros(3))
    return parameter, Learner([parameter], OptimiserConfig(**settings), ema)  # type: ignore[arg-type]


def test_ema_of_constant_moves_has_its_closed_form() -> None:
    parameter, one = learner(EmaConfig(decay=0.9))
    with torch.no_grad():
        parameter.fill_(1.0)
    for iteration in range(7):
        one.average(iteration)
    with one.averaged():
        assert torch.allclose(parameter, torch.full((3,), 1 - 0.9**7))
    assert torch.equal(parameter, torch.ones(3))  # the raw weights come back


def test_ema_warms_up_and_skips_iterations() -> None:
    """By the number of updates, of which there may be none or several for one iteration."""
    parameter, one = learner(EmaConfig(decay=0.9, every=8, warmup=True))
    with torch.no_grad():
        parameter.fill_(1.0)
    kept = 1.0
    for iteration in range(24):
        for _ in range(iteration // 8):  # without a gradient: the weights stay 1
            one.update()
        one.average(iteration)
        if (iteration + 1) % 8 == 0:
            n = one.updates
            kept *= min((1 + n) / (10 + n), 0.9)
        with one.averaged():
            assert torch.allclose(parameter, torch.full((3,), 1 - kept))
    assert one.updates == 24


def test_no_ema_exports_the_raw_weights() -> None:
    parameter, one = learner(EmaConfig(decay=0.0))
    with torch.no_grad():
        parameter.fill_(2.0)
    one.average(0)
    with one.averaged():
        assert torch.equal(parameter, torch.full((3,), 2.0))


def test_gradients_are_clipped_together_and_cleared() -> None:
    parameter, one = learner(max_grad_norm=1.0, lr=1.0)
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    assert one.update() == pytest.approx(5.0)
    assert parameter.grad is None and parameter[2] == 0 and parameter[0] < 0


def test_what_the_optimiser_sees_is_clipped() -> None:
    """AdamW's first step is lr g / (|g| + eps): with eps = 1 the length of g shows."""
    parameter, one = learner(max_grad_norm=1.0, lr=1.0, eps=1.0)
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    one.update()
    assert parameter.tolist() == pytest.approx([-0.6 / 1.6, -0.8 / 1.8, 0.0], rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing_and_names_its_role(value: float, limit: float) -> None:
    parameter, settings = nn.Parameter(torch.ones(3)), OptimiserConfig(max_grad_norm=limit)
    one = Learner([parameter], settings, EmaConfig(), role="fake_score")
    parameter.grad = torch.tensor([1.0, value, 0.0])
    with pytest.raises(UserError, match=r"^the fake score's gradient is not finite; lower trainer\.fake_score\.lr,"):
        one.update()
    assert parameter.tolist() == [1.0, 1.0, 1.0] and one.updates == 0


def test_rate_warms_up_linearly() -> None:
    steps = []
    for warmup in (0, 4):
        parameter, one = learner(lr=0.1, warmup_updates=warmup, max_grad_norm=0.0)
        parameter.grad = torch.ones(3)
        one.update()
        steps.append(-parameter[0].item())
    assert steps[1] == pytest.approx(steps[0] / 4)


def test_gradients_are_reduced_over_processes_before_the_step() -> None:
    first, second, untouched = (nn.Parameter(torch.zeros(2)) for _ in range(3))

    def mean_with_a_process_that_has_none(x: torch.Tensor) -> torch.Tensor:
        missing_there = x.numel() == 3  # the first question: which gradients are missing; there, all are
        return (x + 1) / 2 if missing_there else x / 2

    settings = OptimiserConfig(max_grad_norm=0.0, weight_decay=0.1)
    one = Learner([first, second, untouched], settings, reduce=mean_with_a_process_that_has_none)
    first.grad, second.grad = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 3.0])
    untouched.data.fill_(1.0)
    assert one.update() == pytest.approx(2.5)  # of (2, 0) and (0, 1.5)
    assert (first != 0).tolist() == [True, False] and (second != 0).tolist() == [False, True]
    assert untouched.tolist() == [1.0, 1.0]  # no process has a gradient: not even its decay is due


def test_gradients_travel_in_buckets_that_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.learner.BUCKET", 4)
    parameters, sent = [nn.Parameter(torch.zeros(n)) for n in (2, 2, 3, 9, 1)], []

    def reduce(x: torch.Tensor) -> torch.Tensor:
        sent.append(x.numel())
        return x.clone()

    one = Learner(parameters, OptimiserConfig(max_grad_norm=0.0), reduce=reduce)
    for number, parameter in enumerate(parameters, 1):
        parameter.grad = torch.full_like(parameter, number)
    assert one.update() == pytest.approx((2 * 1 + 2 * 4 + 3 * 9 + 9 * 16 + 25) ** 0.5)
    assert sent == [5, 4, 3, 9, 1]


def test_resuming_continues_bit_for_bit() -> None:
    def train(one: Learner, parameter: nn.Parameter, first: int, last: int) -> None:
        for iteration in range(first, last):
            parameter.grad = torch.sin(torch.arange(3.0) + iteration)
            one.update()
            one.average(iteration)

    ema = EmaConfig(decay=0.9, warmup=True)
    whole, uninterrupted = learner(ema)
    train(uninterrupted, whole, 0, 9)
    half, first = learner(ema)
    train(first, half, 0, 4)
    again, second = learner(ema)
    second.load_state_dict(first.state_dict())
    train(second, again, 4, 9)
    assert torch.equal(whole, again)
    with uninterrupted.averaged(), second.averaged():
        assert torch.equal(whole, again)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="lr must be above 0"):
        build(OptimiserConfig, {"lr": -1.0}, "x.toml")
    with pytest.raises(UserError, match="decay"):
        build(EmaConfig, {"decay": 1.0}, "x.toml")
