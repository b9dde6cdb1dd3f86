"""A blind vote between two models: a page of same-seed pairs, and win rates from what its readers answered.

    page    one HTML file, pictures inside; it knows neither names nor sides, only the number of a pair
    key     which model stands left in every pair; drawn from the seed, kept beside the page, not for the voters
    votes   CSV as the page saves it: ballot, voter, pair, question, choice (left, right, tie)
    rate    (wins of a + ties / 2) / votes, averaged over the votes of a pair, then over the pairs of a prompt, then
            over prompts; interval by bootstrap over prompts, as for any other mean

Source: the user studies of few-step papers, pairwise preferences of people over pictures of the same prompt.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from leaderboards.comparison import samples_of
from leaderboards.schema import Digest, Name, ResultError, Strict, first_fault
from leaderboards.statistics import Estimate, estimate
from leaderboards.store import Entry, Sample

QUESTIONS = ("Which picture fits the text better?", "Which picture looks better?")
HEADER = ["ballot", "voter", "pair", "question", "choice"]
MAX_BYTES = 2**24
Choice = Literal["left", "right", "tie"]


class Pair(Strict):
    """Two pictures of one prompt and seed."""

    task: str
    prompt_id: str
    seed: int
    a_left: bool


class Key(Strict):
    """What unblinds a ballot."""

    schema_version: Literal[1] = 1
    a: Name
    b: Name
    suite: Name
    ballot: Digest  # of models, weights, pairs, sides and questions; every vote repeats it
    questions: list[str] = Field(min_length=1)
    pairs: list[Pair] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One answer of one person."""

    voter: str
    pair: int
    question: int
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the votes say of one question."""

    question: str
    a_wins: Estimate  # in [0, 1]
    votes: int
    ties: int
    voters: int
    agreement: float | None  # share of pairs of votes on one picture pair that agree; None = no pair voted on twice

    @property
    def verdict(self) -> str:
        """Which of the two is preferred: where the whole interval lies on one side of one half."""
        if self.a_wins.low is None or self.a_wins.high is None:
            return "cannot tell"
        return "a preferred" if self.a_wins.low > 0.5 else "b preferred" if self.a_wins.high < 0.5 else "undecided"


def make_ballot(
    a: Entry, b: Entry, questions: Sequence[str] = QUESTIONS, seed: int = 0
) -> tuple[Key, list[dict[str, Any]]]:
    """Return the key and the page's pairs, in an order and with sides drawn from the seed.

    Raises ResultError where the two have no pictures of a prompt and seed in common, or are the same result."""
    if a.path == b.path:
        raise ResultError(f"vote: {a.result.model.name} against itself")
    found = []
    for task in sorted({sample.task for sample in a.samples}):
        for of_a, of_b in samples_of([a, b], task).values():
            others = {sample.seed: sample for sample in of_b}
            found += [(one, others[one.seed]) for one in of_a if one.seed in others]
    if not found:
        raise ResultError(
            f"vote: {a.result.model.name} and {b.result.model.name} have no pictures of the same prompt and seed"
        )
    pairs, shown = [], []
    for ours, theirs in sorted(found, key=lambda pair: _lot(seed, "place", pair[0])):
        a_left = _lot(seed, "side", ours) % 2 == 0
        pairs.append(Pair(task=ours.task, prompt_id=ours.prompt_id, seed=ours.seed, a_left=a_left))
        first, second = (ours, theirs) if a_left else (theirs, ours)
        shown.append({"text": ours.prompt, "left": first.png, "right": second.png})
    names = {"a": a.result.model.name, "b": b.result.model.name, "suite": a.result.suite}
    weights = [entry.result.model.weights_digest for entry in (a, b)]
    told = json.dumps([names, weights, list(questions), [pair.model_dump() for pair in pairs]], sort_keys=True)
    ballot = hashlib.sha256(told.encode()).hexdigest()
    return Key(
        a=names["a"], b=names["b"], suite=names["suite"], ballot=ballot, questions=list(questions), pairs=pairs
    ), shown


def _lot(seed: int, what: str, sample: Sample) -> int:
    """Draw a number for one picture, the same on every machine and whatever other pictures there are."""
    told = json.dumps([seed, what, sample.task, sample.prompt_id, sample.seed])
    return int(hashlib.sha256(told.encode()).hexdigest(), 16)


def read_key(path: Path) -> Key:
    """Read the key beside a ballot. Raises ResultError."""
    try:
        return Key.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'key')}") from error


def read_outcomes(key_path: Path, votes: Sequence[Path], a: Entry, b: Entry) -> tuple[Key, list[Outcome]]:
    """Return the key of a ballot and what its votes say. Raises ResultError where it is one of other models."""
    key = read_key(key_path)
    if (key.a, key.b) != (a.result.model.name, b.result.model.name):
        raise ResultError(f"{key_path}: is the key of {key.a} against {key.b}; name them in this order")
    return key, tally([vote for path in votes for vote in read_votes(path, key)], key)


def read_votes(path: Path, key: Key) -> list[Vote]:
    """Read one CSV as the page saves it. Raises ResultError naming the line that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ResultError(f"{path}: larger than {MAX_BYTES // 2**20} MiB: not votes of one person")
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"{path}: not a CSV of votes: {error}") from error
    if not lines or lines[0] != HEADER:
        raise ResultError(f"{path}: the first line must be {','.join(HEADER)}")
    return [_vote(line, key, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]


def tally(votes: Sequence[Vote], key: Key) -> list[Outcome]:
    """Return what the votes say, by question. A voter's later answer replaces an earlier one.

    Raises ResultError where there is no vote."""
    if not votes:
        raise ResultError("no votes: let somebody answer the page, then read its CSV")
    last = {(one.question, one.voter, one.pair): one for one in votes}
    return [
        _outcome(text, [one for (asked, _, _), one in sorted(last.items()) if asked == number], key)
        for number, text in enumerate(key.questions)
        if any(asked == number for asked, _, _ in last)
    ]


def _vote(line: list[str], key: Key, where: str) -> Vote:
    if len(line) != len(HEADER):
        raise ResultError(f"{where}: {len(line)} columns, {len(HEADER)} wanted")
    ballot, voter, pair, question, choice = line
    if ballot != key.ballot:
        raise ResultError(f"{where}: a vote on another ballot ({ballot[:12]}…, the key is of {key.ballot[:12]}…)")
    if not pair.isdecimal() or int(pair) >= len(key.pairs):
        raise ResultError(f"{where}: no pair {pair!r}; there are {len(key.pairs)}")
    if not question.isdecimal() or int(question) >= len(key.questions):
        raise ResultError(f"{where}: no question {question!r}; there are {len(key.questions)}")
    if choice not in ("left", "right", "tie"):
        raise ResultError(f"{where}: choice {choice!r}; expected left, right or tie")
    return Vote(voter=voter, pair=int(pair), question=int(question), choice=choice)  # type: ignore[arg-type]


def _outcome(question: str, votes: Sequence[Vote], key: Key) -> Outcome:
    by_pair: dict[int, list[float]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(_win_of_a(vote, key))
    pairs = [key.pairs[number] for number in by_pair]
    means = np.array([sum(wins) / len(wins) for wins in by_pair.values()])
    # A prompt belongs to a task: equal ids of two tasks are two prompts.
    prompts = [f"{pair.task}/{pair.prompt_id}" for pair in pairs]
    return Outcome(
        question=question,
        a_wins=estimate(means, prompts, [""] * len(pairs), "prompts"),
        votes=len(votes),
        ties=sum(vote.choice == "tie" for vote in votes),
        voters=len({vote.voter for vote in votes}),
        agreement=_agreement(by_pair.values()),
    )


def _win_of_a(vote: Vote, key: Key) -> float:
    if vote.choice == "tie":
        return 0.5
    return float((vote.choice == "left") == key.pairs[vote.pair].a_left)


def _agreement(answers: Iterable[Sequence[float]]) -> float | None:
    """Return the share of all pairs of votes on one picture pair that are equal."""
    same = total = 0
    for wins in answers:
        same += sum(count * (count - 1) for count in Counter(wins).values())
        total += len(wins) * (len(wins) - 1)
    return same / total if total else None
