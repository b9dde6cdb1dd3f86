"""VQ-R1: how good a vision-language model rates a picture from 1 to 5, asked for the rating alone.

    value = mean over the pictures whose answer holds a rating

The model, VisualQuality-R1, was trained by reinforcement learning to rank pictures by quality; it never sees the
prompt. The question is the authors', of their mode without reasoning. Departures from their script: greedy decoding
instead of unseeded sampling; an answer that is no number from 1 to 5 is excluded and counted instead of replaced by a
random one.

Source: Wu et al. 2025, arXiv:2505.14460 and the authors' README. Axes: B images of a batch, N images of a whole set.
"""

import re
from collections.abc import Sequence

import numpy as np

from metrics.base import Batch, Card, Features, Prompt, Rows, Summary, UserError, register

QUESTION = (
    "You are doing the image quality assessment task. Here is the question: What is your overall rating on the "
    "quality of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 "
    "representing very poor quality and 5 representing excellent quality. Please only output the final answer "
    "with only one score in <answer> </answer> tags."
)
LOWEST, HIGHEST = 1.0, 5.0
BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# Neither part of a longer number, of a fraction or of a word, nor signed: "4/5" says something else than 4.
NUMBER = re.compile(r"(?<![\w.,/+\-−])\d+(?:\.\d+)?(?![\w/]|[.,]\d)")


def read_rating(answer: str) -> float | None:
    """Return the rating in [1, 5] of an answer: the only number of its last answer block, or of the whole text
    where there is none. None where that is no rating: no number or several, a sign, a fraction, a number
    beyond the scale."""
    blocks = BLOCK.findall(answer)
    text = blocks[-1] if blocks else answer
    found = NUMBER.findall(text)
    if len(found) != 1 or len(re.findall(r"\d+(?:\.\d+)?", text)) != 1:
        return None
    rating = float(found[0])
    return rating if LOWEST <= rating <= HIGHEST else None


@register
class VisualQualityR1:
    card = Card(
        id="vq_r1",
        version=1,
        title="VQ-R1",
        unit="rating",
        higher_is_better=True,
        range=(LOWEST, HIGHEST),
        source="Wu et al. 2025, arXiv:2505.14460; the authors' question without reasoning, decoded greedily",
        description="How good a picture looks on a scale of 1 to 5, as a model rates it that was trained to rank "
        "pictures by quality. SD3.5-M with 60 passes has 4.66 on Pick-a-Pic prompts in DP-DMD's table.",
        variant="corrected",
        perceiver="TianheWu/VisualQuality-R1-7B",
        preprocessing="8-bit RGB at its own size; the model's processor rounds sides to 28 pixels within its limits",
        comparable="With vq_r1. A paper's column was sampled without a seed, where an unreadable answer gave "
        "a random "
        "whole number: close to this one, and never equal. bfloat16 on other hardware moves single ratings by some "
        "hundredths.",
        fooled_by="Gloss: ratings of generated pictures crowd between 4 and 5. It reads neither the prompt nor "
        "whether what is shown makes sense. Pictures without a readable rating are left out: read their number, too.",
        reported_scale="DP-DMD: as here",
        citation="Wu, Zou, Liang, Zhang, Ma: VisualQuality-R1: Reasoning-Induced Image Quality Assessment via "
        "Reinforcement Learning to Rank, 2025, arXiv:2505.14460",
    )
    features = ("vq-r1/7b:answer",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"answer": what the model said of each picture}: the evidence is the text."""
        return {"answer": list(features[self.features[0]])}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return the ratings [N], NaN where the answer holds none.

        Raises: UserError where no answer holds a rating."""
        ratings = [read_rating(str(answer)) for answer in rows["answer"]]
        if not any(rating is not None for rating in ratings):
            first = str(rows["answer"][0])[:60]
            raise UserError(
                f"vq_r1: none of {len(ratings)} answers holds a rating (first: {first!r}); check its weights"
            )
        values = [np.nan if rating is None else rating for rating in ratings]
        return Summary(per_image_N=np.array(values, np.float32))
