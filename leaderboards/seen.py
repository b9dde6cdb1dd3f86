"""What a metric saw in a sample picture: boxes, reasons, questions with their answers. A reader may look at it; no
value is computed from it. It comes from files of others, so that its size is bounded.
"""

from typing import Annotated

from pydantic import Field

from leaderboards.schema import Count, Strict

MOST_BOXES, MOST_LINES = 16, 64
Text = Annotated[str, Field(max_length=2000)]
Percent = Annotated[float, Field(ge=0, le=100)]  # of the picture's width or height


class Box(Strict):
    """A detection: what it is said to be, and where."""

    label: Text
    left: Percent
    top: Percent
    width: Percent
    height: Percent


class Seen(Strict):
    """What one metric left of one picture besides its number."""

    boxes: list[Box] = Field(default=[], max_length=MOST_BOXES)
    n_weaker: Count = 0  # boxes that are not told: those of the lowest scores
    reasons: list[Text] = Field(default=[], max_length=MOST_LINES)
    table: list[Annotated[list[Text], Field(max_length=8)]] = Field(default=[], max_length=MOST_LINES)

    def __bool__(self) -> bool:
        return bool(self.boxes or self.reasons or self.table)
