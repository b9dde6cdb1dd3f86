"""What an answerer is, and how benchmarks ask it.

    answer(images, questions, candidates) -> one Answer per pair

An answerer reads a picture and a question and tells its likeliest first word, and the probability of the first token
of each candidate string. Its identity belongs to the metric's: another answerer is another metric, whose weights'
digest (of an endpoint: the model's name) stands in the evidence.

Axes: B images of a batch, P pairs of image and question, K candidates of one pair.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metrics import dpg, geneval2
from metrics.base import Prompt, UserError

YES_OR_NO = ("yes", "Yes", " yes", " Yes", "no", "No", " no", " No")


@dataclass(frozen=True)
class Answer:
    """text: the likeliest first token, decoded; masses: P(first token) of each candidate, None where not known."""

    text: str
    masses: tuple[float, ...] | None = None


class Answerer(Protocol):
    """Pure: the same pictures and questions give the same answers, whatever the batch."""

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Return P answers to P pairs. images: uint8 RGB [H, W, 3].

        Raises: UserError where a pair has no answer, with how many and why."""
        ...


@dataclass(frozen=True)
class FunctionAnswerer:
    """A deterministic answerer made of a function (image, question, candidates) -> Answer: for tests and oracles."""

    function: Callable[[np.ndarray, str, Sequence[str]], Answer]

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Return the function's answers."""
        return [self.function(*pair) for pair in zip(images, questions, candidates, strict=True)]


def ask_dpg(answerer: Answerer, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[dict[int, str]]:
    """Return "yes" or "no" to each question of each image's prompt: whichever has more mass, or stands in the text.

    Raises: UserError as `Answerer.answer` does, and for malformed questions.
    """
    asked = [(index, question) for index, p in enumerate(prompts) for question in dpg.questions_of(p)]
    answers = answerer.answer(
        [images[index] for index, _ in asked],
        [f"{question.text} Answer with yes or no only." for _, question in asked],
        [YES_OR_NO] * len(asked),
    )
    found: list[dict[int, str]] = [{} for _ in prompts]
    for (index, question), answer in zip(asked, answers, strict=True):
        found[index][question.id] = yes_or_no(answer)
    return found


def yes_or_no(answer: Answer) -> str:
    """Return "yes" where its spellings have more mass than those of "no"; by the first word where none is known.

    Raises: UserError where it is neither: such an answer says nothing of the picture."""
    if answer.masses is None:
        first = re.findall(r"\w+", answer.text.lower())[:1]
        said = (first == ["yes"], first == ["no"])
    else:
        half = len(YES_OR_NO) // 2
        yes, no = sum(answer.masses[:half]), sum(answer.masses[half:])
        said = (yes > no, no > 0)
    if not any(said):
        raise UserError(f"an answer that is neither yes nor no: {answer.text[:60]!r}")
    return "yes" if said[0] else "no"


def ask_geneval2(
    answerer: Answerer, images: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> list[list[geneval2.Asked]]:
    """Return what was said to each question of each image's prompt, with the mass of the right answer.

    Raises: UserError as `Answerer.answer` does, for malformed questions, and where an answerer knows no masses.
    """
    asked = [(index, question) for index, p in enumerate(prompts) for question in geneval2.questions_of(p)]
    answers = answerer.answer(
        [images[index] for index, _ in asked],
        [f"{question.text} Answer in one word." for _, question in asked],
        [question.spellings for _, question in asked],
    )
    found: list[list[geneval2.Asked]] = [[] for _ in prompts]
    for (index, _), answer in zip(asked, answers, strict=True):
        if answer.masses is None:
            raise UserError(
                "GenEval2 needs probabilities: this answerer tells text only (an endpoint needs logprobs)"
            )
        found[index].append(geneval2.Asked(answer.text, sum(answer.masses)))
    return found
