"""Metrics made of questions about a picture: what their summaries have beyond a value per image.

A benchmark of questions also reports groups of them (DPG-Bench's categories, GenEval2's skills). Questions of one
image belong to several groups and images have different numbers of them, so a group's value is a share of questions:

    value = sum over images of scores / sum over images of questions

Axes: N images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metrics.base import Summary


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of questions: per image the sum of their scores, and how many there are."""

    scores_N: np.ndarray  # float64
    questions_N: np.ndarray  # float64, whole numbers

    @property
    def value(self) -> float:
        """The mean over questions, each weighing the same, whatever image it belongs to."""
        return float(self.scores_N.sum() / self.questions_N.sum())


@dataclass(frozen=True, kw_only=True)
class QuestionSummary(Summary):
    """A summary with groups of questions by name, such as "entity" and "entity - whole"."""

    groups: Mapping[str, Group] = field(default_factory=dict)


def group_questions(images: Sequence[Iterable[tuple[str, float]]]) -> dict[str, Group]:
    """Return the groups of N images, each given as (name of a group, score of one of its questions), sorted by name.

    A question of two groups is given twice.
    """
    sums: dict[str, np.ndarray] = {}
    for index, pairs in enumerate(images):
        for name, score in pairs:
            if name not in sums:
                sums[name] = np.zeros((2, len(images)))
            sums[name][:, index] += score, 1
    return {name: Group(scores_N=sums[name][0], questions_N=sums[name][1]) for name in sorted(sums)}
