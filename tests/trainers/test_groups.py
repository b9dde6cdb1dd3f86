from collections.abc import Callable

import torch
from torch import Tensor

from trainers.draws import Draws
from trainers.groups import group_noise, repeat_members, spread

CPU = torch.device("cpu")
INDEPENDENT = torch.tensor([[True, True, False, False], [True, False, True, False]])  # start, then steps 1 to 3


def make(
    seed: int = 0, epoch: int = 0, texts: tuple[str, str] = ("a", "b"), rank: int = 0
) -> Callable[[int], Tensor]:
    return group_noise(texts, 3, (2, 2), INDEPENDENT, Draws(seed, rank, 2), epoch, CPU)


def test_processes_choose_from_their_shares_what_one_chooses_from_the_whole() -> None:
    for batch, count, processes in ((12, 6, 3), (16, 4, 2), (6, 6, 3), (10, 4, 2)):
        share, own = batch // processes, count // processes
        parts = [spread(range(rank * share, (rank + 1) * share), own) for rank in range(processes)]
        assert [row for part in parts for row in part] == spread(range(batch), count)


def test_members_share_noise_exactly_where_the_step_is_not_trained() -> None:
    noise = make()
    for k in range(4):
        groups = noise(k).view(2, 3, 2, 2)
        for p in range(2):
            members = groups[p].flatten(1)
            for i, j in ((0, 1), (0, 2), (1, 2)):
                assert torch.equal(members[i], members[j]) != bool(INDEPENDENT[p, k])
        assert not torch.equal(groups[0], groups[1])  # prompts differ


def test_shared_noise_is_the_same_on_every_process_and_differs_by_epoch_step_and_seed() -> None:
    assert torch.equal(make()(3), make(rank=1)(3))
    assert not torch.equal(make(rank=1)(0), make()(0))  # independent noise is the process's own
    shared = make()(3)
    for other in (make(epoch=1)(3), make(seed=1)(3), make(texts=("c", "d"))(3)):
        assert not torch.equal(shared, other)
    assert not torch.equal(shared[:3], make()(2)[:3])


def test_noise_is_unit_gaussian() -> None:
    noise = group_noise(["a"], 4, (200, 200), torch.tensor([[False, True]]), Draws(0), 0, CPU)
    for k in (0, 1):
        assert abs(noise(k).mean()) < 0.02 and abs(noise(k).std() - 1) < 0.02


def test_members_follow_their_prompt() -> None:
    assert repeat_members(["a", "b"], 2) == ["a", "a", "b", "b"]
