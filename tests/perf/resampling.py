"""Speed of the statistics, at the size of GenEval: 553 prompts in six categories, four images each.

    python -m tests.perf.resampling

    pair    one paired comparison with 9,999 resamples: at most 1 s
    pairs   every two of 20 models on 15 metrics: at most 30 s
Exit code 1 where a bar is missed.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from leaderboards.pairs import compare_all
from leaderboards.statistics import Scores, compare

PROMPTS, IMAGES, MODELS, METRICS = 553, 4, 20, 15


def main() -> int:
    """Print both figures; return the exit code."""
    draw = np.random.default_rng(0)
    prompt_ids = [f"prompt-{index}" for index in range(PROMPTS) for _ in range(IMAGES)]
    categories = [f"category-{index % 6}" for index in range(PROMPTS) for _ in range(IMAGES)]
    seeds = list(range(IMAGES)) * PROMPTS

    def scores() -> Scores:
        values_N = draw.random(PROMPTS * IMAGES)
        return Scores(values_N=values_N, prompt_ids=prompt_ids, seeds=seeds, categories=categories)

    models = [[scores() for _ in range(MODELS)] for _ in range(METRICS)]
    pair = seconds(lambda: compare(*models[0][:2], "categories"))
    pairs = seconds(lambda: [compare_all(group, "categories") for group in models])
    print(f"pair   {pair:.2f} s (bar 1)\npairs  {pairs:.1f} s (bar 30)")
    return 0 if pair <= 1 and pairs <= 30 else 1


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
