"""What to train next: the work that decides most comes first.

    1. headline claims, seed by seed, until each of their arms has as many seeds as any claim needs
    2. the further seeds of headline claims
    3. the other claims, whichever the least network passes would decide next, all its seeds
    4. arms that only figures show

An arm that is not trained has no seeds and comes before what is compared with it. The order depends on the plan
alone, so that every call goes on where the one before stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trainers.claims.plan import ClaimConfig, Study

UNTRAINED = -1  # the seed of an arm without training


@dataclass(frozen=True, order=True)
class Item:
    """One arm from one seed of training."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return self.arm if self.seed == UNTRAINED else f"{self.arm}-s{self.seed}"


def ordered(study: Study) -> list[Item]:
    """Return all that the study needs, each once, in the order of its work."""
    return list(dict.fromkeys(_needs(study)))


def items_of(study: Study, arms: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    """Return arms × seeds, seed by seed."""
    return [Item(arm, seed if study.budget(arm) else UNTRAINED) for seed in seeds for arm in arms]


def _needs(study: Study) -> Iterator[Item]:
    plan = study.plan
    headlines = [claim for claim in plan.claims if claim.headline]
    arms = list(dict.fromkeys(arm for claim in headlines for arm in claim.arms))
    yield from items_of(study, arms, range(plan.seeds))
    yield from items_of(study, arms, range(plan.seeds, plan.headline_seeds))
    taken = set(arms)
    rest = [claim for claim in plan.claims if not claim.headline]
    while rest:
        claim = min(rest, key=lambda one: _missing(study, one, taken))
        rest.remove(claim)
        taken |= set(claim.arms)
        yield from items_of(study, claim.arms, range(plan.needed(claim)))
    yield from items_of(study, [arm for figure in plan.figures for arm in figure.arms], range(plan.seeds))


def _missing(study: Study, claim: ClaimConfig, taken: set[str]) -> int:
    return sum(study.budget(arm) for arm in set(claim.arms) - taken)


def work_off(
    items: Sequence[Item],
    state: Callable[[Item], str],
    seconds: Callable[[Item], float],
    left: Callable[[], float],
    free: Callable[[Item], bool],
    run: Callable[[Item], None],
) -> list[Item]:
    """Run items, always the first that can be, as long as they fit into the time left; return those not done.

    state: "done", "begun" or "to do". What is begun goes on whether or not the time suffices to end it (it stops by
    itself, and continues at the next call); what is not yet begun must fit, or a later, shorter one is taken.
    free: whether an item need not wait for another call's work; what waits is asked again after every run."""

    def fits(item: Item) -> bool:
        return item not in tried and free(item) and (state(item) == "begun" or seconds(item) <= left())

    tried: set[Item] = set()
    waiting = [item for item in items if state(item) != "done"]
    while left() > 0 and (chosen := next(filter(fits, waiting), None)):
        run(chosen)
        tried.add(chosen)
        waiting = [item for item in waiting if state(item) != "done"]
    return waiting
