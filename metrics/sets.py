"""Metrics that look at more than one picture at a time, and how they are fed.

    WholePrompts   all pictures of a prompt must be measured together, because their features are too large to keep
    SetMetric      one number for a whole set; its rows arrive in parts, in the order of the images, so that memory
                   depends on the size of a feature and not on the number of images

Axes: N images.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from metrics.base import PerImage, Prompt, Rows, Summary


class WholePrompts(PerImage):
    """Base of metrics whose `measure` needs all pictures of a prompt in one batch; every picture gets a score."""


@runtime_checkable
class SetMetric(Protocol):
    """A statistic of a whole set."""

    min_images: int  # below which the number means nothing, and the metric is skipped before anything is drawn

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the summary of rows that arrive in parts. Raises UserError where there is none."""
        ...


class OfSet:
    """Base of set metrics: `summarise` for rows that are all here already."""

    min_images: ClassVar[int] = 2

    def summarise_parts(self, parts: Iterable[Rows]) -> Summary:
        """Return the summary of rows that arrive in parts. Raises UserError where there is none."""
        raise NotImplementedError

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return the summary of N rows; prompts play no part. Raises UserError where there is none."""
        return self.summarise_parts([rows])
