"""Metrics: what is measured on an image, as a column of a leaderboard or as a reward of a trainer.

score = metrics.load("micro_clip")
score(images, prompts)                     # [B]; PIL images, paths or arrays
score.reward(images_BCHW, prompts)         # [B], differentiable where the metric's card says so
"""

from metrics.base import Prompt, UserError, available
from metrics.loaded import LoadedMetric


def load(identity: str, device: str = "cpu", remembered: int = 0) -> LoadedMetric:
    """Return a metric by id, ready to call. Weights are read at the first call.

    remembered: of how many pictures the rows are kept, for those that come again.
    Raises UserError where the id is unknown (naming the nearest one).
    """
    return LoadedMetric(identity, device, remembered=remembered)


__all__ = ["LoadedMetric", "Prompt", "UserError", "available", "load"]
