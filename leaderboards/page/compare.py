"""The comparison as one HTML file: paired differences with their intervals, and the prompts that changed most with
their pictures. No script, nothing loaded: a file to send to somebody.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leaderboards.about import read_about
from leaderboards.columns import Column, number
from leaderboards.comparison import Changed, Compared, Contrast, changed_most, samples_of
from leaderboards.hacking import MEANING, Report
from leaderboards.page import render
from leaderboards.store import Sample

MOST = 8  # prompts per metric, of all and of those with pictures


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Where an interval stands on a line from -1 to 1, in percent of its width; zero is in the middle."""

    left: float
    width: float
    at: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table of differences."""

    contrast: Contrast
    bar: Bar
    interval: str
    wins: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt that changed, with the pictures of every model as data URIs."""

    changed: Changed
    text: str
    pictures: Sequence[Sequence[str]]


def compare_page(compared: Compared, rewards: Mapping[str, Report]) -> str:
    """Return the page; the same results give the same bytes. Raises ResultError for damaged notes on the suite."""
    return render(
        "compare.html",
        first=compared.names[0],
        others=compared.names[1:],
        names=compared.names,
        groups=[(column, _lines(column, compared), _prompts(column, compared)) for column in compared.columns],
        rewards=[(name, report, MEANING[report.verdict]) for name, report in rewards.items()],
        number=number,
    )


def _lines(column: Column, compared: Compared) -> list[Line]:
    contrasts = [one for one in compared.contrasts if one.column == column]
    ends = [
        abs(end)
        for one in contrasts
        for end in (one.difference.low, one.difference.high, one.difference.difference)
        if end is not None
    ]
    reach = max(ends) or 1.0  # of one metric: different units do not share a scale
    return [
        Line(contrast=one, bar=_bar(one, reach), interval=interval(one), wins=f"{100 * one.wins.value:.1f} %")
        for one in contrasts
    ]


def interval(contrast: Contrast) -> str:
    """Write the interval of a difference: "0.012 to 0.044", or that there is none."""
    low, high = contrast.difference.low, contrast.difference.high
    return "no interval" if low is None else f"{number(low)} to {number(high)}"


def _bar(contrast: Contrast, reach: float) -> Bar:
    found = contrast.difference
    low, high = (found.difference if end is None else end for end in (found.low, found.high))
    left, right, at = (round(50 + 50 * end / reach, 1) for end in (low, high, found.difference))
    return Bar(left=left, width=round(right - left, 1), at=at)


def _prompts(column: Column, compared: Compared) -> list[Prompt]:
    """The prompts that changed most of all, and of those that have pictures of every model."""
    changed = [one for one in changed_most(compared.entries, column) if one.size > 0]
    samples = samples_of(compared.entries, column.task)
    texts = read_about(compared.entries[0].path.parent).texts(column.task)
    shown = changed[:MOST] + [one for one in changed[MOST:] if one.prompt_id in samples][:MOST]
    return [_prompt(one, texts.get(one.prompt_id, ""), samples.get(one.prompt_id, [])) for one in shown]


def _prompt(changed: Changed, text: str, pictures: Sequence[Sequence[Sample]]) -> Prompt:
    uris = [[f"data:image/png;base64,{base64.b64encode(one.png).decode()}" for one in each] for each in pictures]
    said = text or next((each[0].prompt for each in pictures), "")
    return Prompt(changed=changed, text=said, pictures=uris)
