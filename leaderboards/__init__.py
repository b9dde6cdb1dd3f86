"""Leaderboards: results with their evidence, what may be said of them, and the pages that say it."""

from leaderboards.schema import Result, ResultError, read_result
from leaderboards.statistics import Estimate, Scores, breakdown, compare, estimate, holm, rank_bands
from leaderboards.store import Board, Sample, publish, read_board

__all__ = [
    "Board",
    "Estimate",
    "Result",
    "ResultError",
    "Sample",
    "Scores",
    "breakdown",
    "compare",
    "estimate",
    "holm",
    "publish",
    "rank_bands",
    "read_board",
    "read_result",
]
