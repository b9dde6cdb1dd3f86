"""Times of several ways to do one thing, taken in turns, so that a busy moment of the machine hits all of them."""

import time
from collections.abc import Callable, Mapping


def best_in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the least seconds of each way over some rounds: what disturbs a run only adds to it."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in taken.items()}
