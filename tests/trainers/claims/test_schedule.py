"""What is trained first, what fits into the hours, and how a second call goes on."""

from collections import Counter

import pytest

from trainers.claims.plan import FOLDER, Study, read_study
from trainers.claims.schedule import UNTRAINED, Item, ordered, work_off


@pytest.fixture(scope="module")
def shipped() -> Study:
    return read_study(FOLDER / "micro.toml")


def test_three_seeds_of_the_headline_claims_come_before_the_fourth_of_anything(shipped: Study) -> None:
    items = ordered(shipped)
    arms = {arm for claim in shipped.plan.claims if claim.headline for arm in claim.arms}
    first = items[: 3 * len(arms)]
    assert {item.arm for item in first} == arms
    assert [item.seed for item in first] == sorted(item.seed for item in first)  # round-robin over seeds
    assert {item.seed for item in first} == {0, 1, 2}
    assert {(item.arm, item.seed) for item in items[3 * len(arms) : 5 * len(arms)]} == {
        (a, s) for a in arms for s in (3, 4)
    }


def test_each_claim_gets_its_seeds_and_nothing_is_done_twice(shipped: Study) -> None:
    items = ordered(shipped)
    assert max(Counter(items).values()) == 1
    for claim in shipped.plan.claims:
        for arm in claim.arms:
            seeds = range(shipped.plan.needed(claim)) if shipped.budget(arm) else (UNTRAINED,)
            assert {Item(arm, seed) for seed in seeds} <= set(items)
    assert {item.arm for item in items} == shipped.plan.arms.keys()


def test_the_claims_that_the_least_passes_decide_come_first(shipped: Study) -> None:
    items, taken, costs = ordered(shipped), set[str](), []
    for claim in shipped.plan.claims:
        taken |= set(claim.arms) if claim.headline else set()
    places = {item.arm: place for place, item in reversed(list(enumerate(items)))}
    rest = sorted(
        (c for c in shipped.plan.claims if not c.headline), key=lambda c: max(places[arm] for arm in c.arms)
    )
    for claim in rest:
        costs.append(sum(shipped.budget(arm) for arm in set(claim.arms) - taken))
        taken |= set(claim.arms)
    assert costs[0] == 0 and costs[-1] >= 150_000
    new = [cost for cost in costs if cost]
    assert new.index(200_000) > new.index(20_000 + 20_000)


class Clock:
    def __init__(self, left: float, takes: dict[str, float], states: dict[str, str] | None = None) -> None:
        self.left, self.takes, self.states, self.ran = left, takes, states or {}, list[str]()
        self.waits: dict[str, int] = {}  # arm -> the number of runs after which it is free

    def run(self, item: Item) -> None:
        self.ran.append(item.arm)
        used = min(self.left, self.takes[item.arm])
        self.left, self.takes[item.arm] = self.left - used, self.takes[item.arm] - used
        self.states[item.arm] = "begun" if self.takes[item.arm] else "done"

    def work(self) -> list[str]:
        items = [Item(arm, 0) for arm in self.takes]
        waiting = work_off(
            items,
            lambda i: self.states.get(i.arm, "to do"),
            lambda i: self.takes[i.arm],
            left=lambda: self.left,
            free=lambda i: len(self.ran) >= self.waits.get(i.arm, 0),
            run=self.run,
        )
        return [item.arm for item in waiting]


def test_what_does_not_fit_is_not_begun_and_a_shorter_one_takes_its_place() -> None:
    clock = Clock(10, {"a": 4, "long": 7, "b": 5, "c": 2})
    assert clock.work() == ["long", "c"]
    assert clock.ran == ["a", "b"] and clock.left == 1


def test_what_is_begun_goes_on_at_the_next_call_and_what_is_done_stays() -> None:
    clock = Clock(3, {"a": 2, "half": 9, "b": 2}, {"a": "done", "half": "begun"})
    assert clock.work() == ["half", "b"] and clock.ran == ["half"]
    clock.left = 8
    assert clock.work() == [] and clock.ran == ["half", "half", "b"]


def test_no_hours_mean_no_work() -> None:
    clock = Clock(0, {"a": 0, "half": 1}, {"half": "begun"})
    assert clock.work() == ["a", "half"] and clock.ran == []


def test_what_waits_for_another_call_is_run_as_soon_as_it_is_free() -> None:
    clock = Clock(10, {"a": 1, "waits": 1, "b": 1, "c": 1})
    clock.waits = {"a": 99, "waits": 1}
    assert clock.work() == ["a"] and clock.ran == ["b", "waits", "c"]


def test_what_does_not_come_to_its_end_is_tried_once() -> None:
    clock = Clock(10, {"a": 1, "b": 1})
    attempts: list[str] = []

    def run(item: Item) -> None:
        attempts.append(item.arm)

    items = [Item("a", 0), Item("b", 0)]
    assert work_off(items, lambda _: "to do", lambda _: 1.0, lambda: clock.left, lambda _: True, run) == items
    assert attempts == ["a", "b"]
