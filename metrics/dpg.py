"""DPG-Bench: a long prompt is cut into questions; a picture's score is the share of them answered "yes".

A question that depends on others ("is the cat black?" on "is there a cat?") counts as "no" where one of those is.
Per tile (picture): walk the questions in the file's order; where a parent's score is 0 at that moment, the question's
becomes 0. Then

    tile = sum of scores / number of questions      prompt = mean over tiles      DPG = mean over prompts

Source: Hu et al. 2024, arXiv:2403.05135 (ELLA), and its program dpg_bench/compute_dpg_bench.py. Papers print 100 x.

    dpg             corrected: every question, every tile; its categories after the walk
    dpg.official    what the program computes in one process. Its loader drops the table's first question, so that the
                    prompt of that question fails where a later one depends on it, and is left out of every mean; its
                    pictures are counted as those without a value.
                    Categories come from the last tile alone, before the walk: they exceed the overall score.

Several processes of the program mix up its categories (each orders a set by its own hash seed); that is not imitated.
A cascade follows the file's order: a child that stands before its parent is judged by the parent's own answer.
Axes: B images of one batch, N images of the set.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from metrics.base import Batch, Card, Features, Prompt, ReadsRecords, Rows, UserError, register
from metrics.questions import QuestionSummary, group_questions

FIRST_ROW = 0  # of the table: the one that the official loader drops


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of the table. category: "entity - whole" (level 2); its part before the hyphen is level 1."""

    id: int
    text: str
    parents: tuple[int, ...]
    category: str
    row: int = -1  # its place in the table; -1 = not known

    @property
    def broad(self) -> str:
        """The level-1 category."""
        return self.category.partition("-")[0].strip()


def questions_of(prompt: Prompt) -> list[Question]:
    """Return a prompt's questions in the table's order.

    Raises: UserError where there are none, an id stands twice, a parent does not exist or dependencies are cyclic."""
    where = f"DPG prompt {prompt.id or prompt.text!r}"
    records = prompt.metadata.get("questions")
    if not isinstance(records, Sequence) or not records:
        raise UserError(f"{where}: no questions; python -m benchmarks.prompts fetch dpg brings them")
    questions = [_question(record, where) for record in records]
    ids = [question.id for question in questions]
    if len(set(ids)) != len(ids):
        twice = next(identity for identity in ids if ids.count(identity) > 1)
        raise UserError(f"{where}: question {twice} stands twice")
    known = {question.id: question for question in questions}
    for question in questions:
        for parent in question.parents:
            if parent not in known:
                raise UserError(f"{where}: question {question.id} depends on {parent}, which does not exist")
    _refuse_cycles(known, where)
    return questions


def _question(record: Any, where: str) -> Question:
    match record:
        case {"id": int(identity), "question": str(text), "dependency": str(dependency), "tuple": str(about)}:
            try:
                parents = tuple(parent for part in dependency.split(",") if (parent := int(part)))
            except ValueError as error:
                raise UserError(f"{where}: dependency {dependency!r} is no list of numbers") from error
            category = about.partition("(")[0].strip()
            return Question(
                id=identity, text=text, parents=parents, category=category, row=int(record.get("row", -1))
            )
    raise UserError(f"{where}: a question needs id, question, dependency and tuple, found {record!r}")


def _refuse_cycles(known: Mapping[int, Question], where: str) -> None:
    """Raise UserError where a question depends on itself, by way of others or not."""
    settled: set[int] = set()
    while len(settled) < len(known):
        ready = {q.id for q in known.values() if q.id not in settled and settled.issuperset(q.parents)}
        if not ready:
            cyclic = sorted(known.keys() - settled)
            raise UserError(f"{where}: questions {', '.join(map(str, cyclic))} depend on each other in a circle")
        settled |= ready


def walk(questions: Sequence[Question], raw: Mapping[int, float]) -> dict[int, float]:
    """Return the scores of one tile after the walk over dependencies, by id, from the raw ones (1 = "yes").

    Raises: KeyError where a parent has no raw score."""
    scores = {question.id: raw[question.id] for question in questions}
    for question in questions:
        if any(scores[parent] == 0 for parent in question.parents):
            scores[question.id] = 0.0
    return scores


def tile_score(questions: Sequence[Question], raw: Mapping[int, float]) -> float:
    """Return the score of one tile in [0, 1]; errors as of `walk`."""
    return sum(walk(questions, raw).values()) / len(questions)


class Dpg(ReadsRecords):
    """Corrected DPG-Bench. Features: per image a mapping, question id -> answer; "yes" scores, nothing else does."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where a prompt's questions are missing or malformed."""
        questions_of(prompt)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": of each tile, "answers": JSON {question id: answer}}, B of each.

        Raises: UserError where a prompt's questions are malformed or one has no answer.
        """
        answered: Sequence[Mapping[int, str]] = features[self.features[0]]
        scores = []
        for prompt, answers in zip(batch.prompts, answered, strict=True):
            questions = questions_of(prompt)
            scores.append(tile_score(questions, raw_scores(prompt, questions, answers)))
        return {"score": torch.tensor(scores, dtype=torch.float32), "answers": [_as_json(a) for a in answered]}

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> QuestionSummary:
        """Return the tiles' scores, and the categories over all tiles' questions after the walk."""
        score_N = rows["score"]
        assert isinstance(score_N, torch.Tensor)

        def pairs(answers: Mapping[int, str], prompt: Prompt) -> Iterator[tuple[str, float]]:
            questions = questions_of(prompt)
            scores = walk(questions, raw_scores(prompt, questions, answers))
            for question in questions:
                yield question.broad, scores[question.id]
                yield question.category, scores[question.id]

        tiles = zip(stored_answers(rows), prompts, strict=True)
        return QuestionSummary(
            per_image_N=score_N.detach().float().cpu().numpy(), groups=group_questions([[*pairs(*t)] for t in tiles])
        )


class OfficialDpg(Dpg):
    """DPG-Bench as the authors' program computes it in one process."""

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> QuestionSummary:
        """Return the tiles' scores and the categories of raw last-tile answers; tiles of prompts that the program
        drops are NaN: left out, and counted. Raises UserError where it drops every prompt."""
        answers = stored_answers(rows)
        scored = np.array([_official_tile(p, a) for p, a in zip(prompts, answers, strict=True)], dtype=np.float32)
        if np.isnan(scored).all():
            raise UserError(f"{self.card.id}: the program drops every prompt of this set")
        last = {prompt.id: index for index, prompt in enumerate(prompts)}  # rows of one prompt are in order of tiles
        pairs: list[list[tuple[str, float]]] = [[] for _ in prompts]
        for index in last.values():
            if not np.isnan(scored[index]):
                questions = [q for q in questions_of(prompts[index]) if q.row != FIRST_ROW]
                raw = raw_scores(prompts[index], questions, answers[index])
                pairs[index] = [(name, raw[q.id]) for q in questions for name in (q.broad, q.category)]
        return QuestionSummary(per_image_N=scored, groups=group_questions(pairs))


def _official_tile(prompt: Prompt, answers: Mapping[int, str]) -> float:
    """Return one tile's score as the program computes it, NaN where it drops the prompt."""
    questions = [question for question in questions_of(prompt) if question.row != FIRST_ROW]
    left = {question.id for question in questions}
    if not questions or any(parent not in left for question in questions for parent in question.parents):
        return float("nan")
    return tile_score(questions, raw_scores(prompt, questions, answers))


def raw_scores(prompt: Prompt, questions: Sequence[Question], answers: Mapping[int, str]) -> dict[int, float]:
    """Return 1 for exactly "yes" and 0 for anything else, by question id; the program neither strips nor lowers.

    Raises: UserError naming the first question without an answer."""
    unanswered = [question.id for question in questions if question.id not in answers]
    if unanswered:
        raise UserError(
            f"DPG prompt {prompt.id or prompt.text!r}: {len(unanswered)} of {len(questions)} questions have no "
            f"answer (first: {unanswered[0]})"
        )
    return {question.id: float(answers[question.id] == "yes") for question in questions}


def stored_answers(rows: Rows) -> list[dict[int, str]]:
    """Return the answers of N images from their evidence."""
    return [{int(key): value for key, value in json.loads(text).items()} for text in rows["answers"]]


def _as_json(answers: Mapping[int, str]) -> str:
    return json.dumps({str(key): answers[key] for key in sorted(answers)}, ensure_ascii=False)


CARD = Card(
    id="dpg",
    version=1,
    title="DPG-Bench",
    unit="share of questions",
    higher_is_better=True,
    range=(0.0, 1.0),
    source="Hu et al. 2024, arXiv:2403.05135 (ELLA), program dpg_bench; every question and every picture counted",
    description="How many of a dense prompt's statements a picture shows, by questions to a vision-language model; "
    "what depends on a missing thing is missing too. Prompts weigh the same, however many questions they have.",
    variant="corrected",
    perceiver="qwen3-vl-8b",
    preprocessing="8-bit RGB at its own size; the model's processor resizes",
    comparable="With dpg of the same answerer only. A better reader moves every model by points. Published tables "
    "are mPLUG's answers, which dpg.recorded takes. Categories of papers come from one picture of four, and from "
    "several processes they are mixed up; none of them can be compared.",
    fooled_by="An answerer that says yes too readily. Aesthetics and style count nothing.",
    reported_scale="DMDR and others: x100, answered by mPLUG-large",
    citation="Hu et al.: ELLA: Equip Diffusion Models with LLM for Enhanced Semantic Alignment, 2024, "
    "arXiv:2403.05135",
)
OFFICIAL: Mapping[str, Any] = {
    "variant": "official",
    "source": "Hu et al. 2024, arXiv:2403.05135 (ELLA): dpg_bench/compute_dpg_bench.py in one process",
    "description": "DPG-Bench with the program's faults: the table's first question is dropped, with its prompt "
    "where another question depends on it; categories are raw answers to the last picture only.",
}


@register
class DpgCorrected(Dpg):
    card = CARD
    features = ("vqa/qwen3-vl-8b:dpg",)


@register
class DpgOfficial(OfficialDpg):
    card = replace(CARD, id="dpg.official", title="DPG-Bench (official)", **OFFICIAL)
    features = ("vqa/qwen3-vl-8b:dpg",)


@register
class DpgQwen25(Dpg):
    card = replace(CARD, id="dpg.qwen25", title="DPG-Bench (Qwen2.5-VL)", perceiver="qwen2.5-vl-7b")
    features = ("vqa/qwen2.5-vl-7b:dpg",)


@register
class DpgEndpoint(Dpg):
    card = replace(CARD, id="dpg.endpoint", title="DPG-Bench (endpoint)", perceiver="endpoint")
    features = ("vqa/endpoint:dpg",)


@register
class DpgRecorded(OfficialDpg):
    card = replace(CARD, id="dpg.recorded", title="DPG-Bench (recorded answers)", perceiver="recorded", **OFFICIAL)
    features = ("recorded:answers",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return the rows of recorded answers, found by prompt id and seed (tile); errors as of `Dpg.measure`."""
        tables = features[self.features[0]]
        answers = [
            table.of(prompt, seed) for table, prompt, seed in zip(tables, batch.prompts, batch.seeds, strict=True)
        ]
        return super().measure({self.features[0]: answers}, batch)
