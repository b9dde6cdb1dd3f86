"""A sample of a prompt set that is too large to draw, the same one wherever it is taken.

    distinct prompts, blanks collapsed, sorted; without those of other sets; then `take` of them by
    numpy.random.default_rng(seed), none twice, in sorted order

The papers sample their prompts from ShareGPT-4o-Image and do not say which ones, or how many. Who samples the same
file by the same command gets the same list, and its digest stands in every result.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.config import UserError
from metrics.base import Prompt


def sample(prompts: Sequence[Prompt], left_out: Sequence[Prompt], take: int, seed: int) -> list[str]:
    """Return `take` texts of a set, none of which is among those left out. Raises UserError where there are fewer."""
    texts = sorted({_plain(prompt) for prompt in prompts} - {_plain(prompt) for prompt in left_out})
    if not 1 <= take <= len(texts):
        raise UserError(f"--take {take}: there are {len(texts)} distinct prompts to take from")
    chosen = np.random.default_rng(seed).choice(len(texts), take, replace=False)
    return [texts[index] for index in sorted(chosen)]


def _plain(prompt: Prompt) -> str:
    return " ".join(prompt.text.split())  # a line of the file is a prompt
