import pytest
import torch
from torch import Tensor

from trainers.draws import Draws

X = torch.zeros(6, 2, 2)


def everything(draws: Draws) -> list[Tensor]:
    return [
        draws.normal_like(X[: 6 // draws.processes]),
        draws.uniform(0.0, 1.0, X[: 6 // draws.processes]),
        draws.subsets(6 // draws.processes, 4, 2),
        draws.by_row(6 // draws.processes, "key", 7).normal_like(X[: 6 // draws.processes]),
    ]


def test_processes_draw_the_rows_of_one() -> None:
    whole = everything(Draws(5))
    parts = [everything(Draws(5, rank, 3)) for rank in range(3)]
    for alone, together in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(alone, torch.cat(together))


def test_processes_stay_in_step_and_share_what_is_shared() -> None:
    one, two = Draws(5, 0, 2), Draws(5, 1, 2)
    for draws in (one, two):
        everything(draws)
    assert one.index(1000) == two.index(1000) and torch.equal(one.subset(9, 4), two.subset(9, 4))
    assert torch.equal(one.own.get_state(), two.own.get_state())


def test_what_a_row_draws_of_its_own_knows_nothing_of_the_others() -> None:
    rows = torch.tensor([4, 1])
    whole, some = Draws(0).by_row(6, "a"), Draws(0).by_row(6, "a").select(rows)
    x = torch.zeros(6, 3)
    for _ in range(2):  # and goes on drawing
        assert torch.equal(whole.normal_like(x)[rows], some.normal_like(x[:2]))
        assert torch.equal(whole.uniform(0.2, 0.5, x)[rows], some.uniform(0.2, 0.5, x[:2]))
    assert not torch.equal(Draws(0).by_row(6, "a").normal_like(x), Draws(0).by_row(6, "b").normal_like(x))


def test_draws_of_rows_have_their_law() -> None:
    x = torch.zeros(2000, 4)
    draws = Draws(0).by_row(2000, "law")
    noise, levels = draws.normal_like(x), draws.uniform(0.2, 0.6, x)
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
    assert levels.shape == (2000, 1) and levels.min() >= 0.2 and levels.max() < 0.6
    assert levels.mean() == pytest.approx(0.4, abs=0.02)
