"""GenEval2 (Soft-TIFA): every atom of a prompt is a question; a model's own probability of the right answer is its
score.

    s_i = sum over the answer's spellings of P(first token)
    AM = mean(s_i)     GM = exp(mean(log s_i)), 0 where one is 0

Spellings: of a number "two", "Two", " two", " Two", "2", " 2"; of all else "Yes", "yes", " yes", " Yes", whatever the
listed answer. Only the first token of each spelling counts and equal ones count twice, as upstream: with Qwen's
tokenizer " 2" begins with a token that is a blank.

    geneval2          GM over prompts (upstream's soft_tifa_gm; RTDMD's column)
    geneval2.am       AM over prompts (soft_tifa_am)
    geneval2.tifa     hard: 1 where the likeliest token, decoded, in lower case, is one of the spellings

By atomicity: the prompt's category; by skill: groups of questions.
Source: GenEval2, program evaluation.py (Kamath et al. 2025), model Qwen3-VL-8B-Instruct. Upstream prints 100 x.
Axes: B images, Q questions of one prompt.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from metrics.base import Batch, Card, Features, Prompt, ReadsRecords, Rows, UserError, register
from metrics.questions import QuestionSummary, group_questions

DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
}
YES = ("Yes", "yes", " yes", " Yes")
SKILLS = ("object", "attribute", "count", "position", "verb")


@dataclass(frozen=True)
class Asked:
    """What an answerer said to one question: its likeliest token's text and the mass of the right answer."""

    text: str
    mass: float


@dataclass(frozen=True, kw_only=True)
class Question:
    """One atom of a prompt."""

    text: str
    answer: str
    skill: str

    @property
    def spellings(self) -> tuple[str, ...]:
        """The spellings of the right answer."""
        if not self.text.startswith("How many"):  # upstream goes by the question, not by its skill
            return YES
        word = self.answer
        digit = DIGITS.get(word, "other")
        return (word, word.capitalize(), f" {word}", f" {word.capitalize()}", digit, f" {digit}")


def questions_of(prompt: Prompt) -> list[Question]:
    """Return a prompt's questions. Raises UserError where they are missing or do not pair up with their skills."""
    where = f"GenEval2 prompt {prompt.id or prompt.text!r}"
    asked, skills = prompt.metadata.get("vqa_list"), prompt.metadata.get("skills")
    if not isinstance(asked, Sequence) or not isinstance(skills, Sequence) or not asked:
        raise UserError(f"{where}: 'vqa_list' and 'skills' are missing; is this GenEval2's file?")
    if len(asked) != len(skills):
        raise UserError(f"{where}: {len(asked)} questions, {len(skills)} skills; they must pair up")
    questions = []
    for pair, skill in zip(asked, skills, strict=True):
        match pair:
            case [str(text), str(answer)] if text and answer and skill in SKILLS:
                questions.append(Question(text=text, answer=answer, skill=skill))
            case _:
                raise UserError(f"{where}: {pair!r} with skill {skill!r} is no [question, answer] of a known skill")
    return questions


def arithmetic_mean(scores_Q: Sequence[float]) -> float:
    """Return AM of one prompt's question scores."""
    return sum(scores_Q) / len(scores_Q)


def geometric_mean(scores_Q: Sequence[float]) -> float:
    """Return GM of one prompt's question scores, 0 where one of them is 0."""
    if min(scores_Q) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, scores_Q)) / len(scores_Q))


class GenEval2(ReadsRecords):
    """Soft-TIFA by the geometric mean. Features: per image a list of `Asked`, one for each question."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]
    hard: ClassVar[bool] = False

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where a prompt's questions are missing or malformed."""
        questions_of(prompt)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": of each image, "masses": JSON of its questions' scores, "answers": JSON of the texts}.

        Raises: UserError where a prompt's questions are malformed or not all answered.
        """
        answered: Sequence[Sequence[Asked]] = features[self.features[0]]
        masses = [self._scores(prompt, asked) for prompt, asked in zip(batch.prompts, answered, strict=True)]
        return {
            "score": torch.tensor([self.total(scores) for scores in masses], dtype=torch.float32),
            "masses": [json.dumps(scores) for scores in masses],
            "answers": [json.dumps([one.text for one in asked], ensure_ascii=False) for asked in answered],
        }

    def total(self, scores_Q: Sequence[float]) -> float:
        """Return an image's score from those of its questions."""
        return geometric_mean(scores_Q)

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> QuestionSummary:
        """Return the images' scores, and the skills' means over all questions."""
        score_N = rows["score"]
        assert isinstance(score_N, torch.Tensor)
        pairs = [
            [(question.skill, score) for question, score in zip(questions_of(p), json.loads(str(text)), strict=True)]
            for p, text in zip(prompts, rows["masses"], strict=True)
        ]
        return QuestionSummary(per_image_N=score_N.detach().float().cpu().numpy(), groups=group_questions(pairs))

    def _scores(self, prompt: Prompt, asked: Sequence[Asked]) -> list[float]:
        questions = questions_of(prompt)
        if len(asked) != len(questions):
            raise UserError(f"GenEval2 prompt {prompt.id!r}: {len(questions)} questions, {len(asked)} answers")
        if self.hard:
            return [float(one.text.lower() in q.spellings) for q, one in zip(questions, asked, strict=True)]
        return [one.mass for one in asked]


class GenEval2Am(GenEval2):
    """Soft-TIFA, or hard TIFA, by the arithmetic mean."""

    def total(self, scores_Q: Sequence[float]) -> float:
        """Return an image's score from those of its questions."""
        return arithmetic_mean(scores_Q)


CARD = Card(
    id="geneval2",
    version=1,
    title="GenEval2 (Soft-TIFA GM)",
    unit="probability",
    higher_is_better=True,
    range=(0.0, math.inf),  # spellings that begin with one token are counted twice
    source="Kamath et al. 2025 (GenEval2), program evaluation.py: soft_tifa_gm, without its factor 100",
    description="How sure a vision-language model is of every atom of a prompt: objects, attributes, counts, "
    "positions, verbs. The geometric mean is near 0 as soon as one atom is missing.",
    perceiver="qwen3-vl-8b",
    preprocessing="8-bit RGB at its own size; the model's processor resizes",
    comparable="With GenEval2's table where the model is Qwen3-VL-8B in bfloat16. RTDMD casts it to float16; UniRL "
    "looks at the 20 likeliest tokens only. Another answerer is another metric.",
    fooled_by="What the answerer cannot count or see; calibration of its probabilities.",
    reported_scale="GenEval2: x100; RTDMD: as here",
    citation="Kamath et al.: GenEval 2: Addressing Benchmark Drift in Text-to-Image Evaluation, 2025",
)


@register
class GenEval2Gm(GenEval2):
    card = CARD
    features = ("vqa/qwen3-vl-8b:geneval2",)


@register
class GenEval2SoftAm(GenEval2Am):
    card = replace(
        CARD,
        id="geneval2.am",
        title="GenEval2 (Soft-TIFA AM)",
        source="Kamath et al. 2025 (GenEval2), program evaluation.py: soft_tifa_am, without its factor 100",
        description="Mean probability of the right answer over a prompt's atoms; a missing one costs its share only.",
    )
    features = ("vqa/qwen3-vl-8b:geneval2",)


@register
class GenEval2Tifa(GenEval2Am):
    card = replace(
        CARD,
        id="geneval2.tifa",
        title="GenEval2 (TIFA)",
        unit="share of questions",
        range=(0.0, 1.0),
        source="Kamath et al. 2025 (GenEval2), program evaluation.py: tifa, without its factor 100",
        description="Share of a prompt's atoms for which the likeliest answer is the right one.",
    )
    features = ("vqa/qwen3-vl-8b:geneval2",)
    hard = True


@register
class GenEval2Endpoint(GenEval2):
    card = replace(
        CARD,
        id="geneval2.endpoint",
        title="GenEval2 (endpoint)",
        variant="unirl",
        perceiver="endpoint",
        description="GenEval2 by a model behind an HTTP endpoint, which tells its 20 likeliest tokens only: an "
        "answer beyond them counts 0, as UniRL computes it.",
    )
    features = ("vqa/endpoint:geneval2",)
