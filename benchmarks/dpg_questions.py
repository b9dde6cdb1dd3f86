"""The questions of DPG-Bench (dpg_bench.csv): read, checked, and joined to its prompts.

One row per question; the rows of one prompt stand together. Every column is text: ids mix numbers and words.
Source: ELLA's repository (Apache-2.0), dpg_bench/dpg_bench.csv.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.config import UserError
from benchmarks.prompts import PromptSet
from metrics import dpg
from metrics.base import Prompt

COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


def git_blob_id(content: bytes) -> str:
    """Return the id by which git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_questions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the questions by item id, each {id, question, dependency, tuple, row}, in the table's order.

    Raises: UserError for a missing column, a bad number, or a prompt whose rows do not stand together."""
    found: dict[str, list[dict[str, Any]]] = {}
    previous = ""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        absent = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if absent:
            raise UserError(f"{path}: no column {', '.join(absent)}; is this DPG-Bench's dpg_bench.csv?")
        for number, row in enumerate(rows):
            item = (row["item_id"] or "").strip()
            if item != previous and item in found:
                raise UserError(f"{path}: row {number}: prompt {item!r} begins again; its rows must stand together")
            if not item or any(row[column] is None for column in COLUMNS):
                raise UserError(f"{path}: row {number}: has fewer columns than the header")
            try:
                identity = int(row["proposition_id"])
            except ValueError as error:
                raise UserError(
                    f"{path}: row {number}: proposition_id {row['proposition_id']!r} is no number"
                ) from error
            found.setdefault(item, []).append(
                {
                    "id": identity,
                    "question": row["question_natural_language"],
                    "dependency": row["dependency"],
                    "tuple": row["tuple"],
                    "row": number,
                }
            )
            previous = item
    return found


def join_questions(prompts: PromptSet, questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> PromptSet:
    """Return the prompts with their questions as metadata.

    Raises: UserError where a prompt has none, or questions that cannot be judged (`metrics.dpg.questions_of`)."""
    without = [prompt.id for prompt in prompts.prompts if prompt.id not in questions]
    if without:
        raise UserError(
            f"DPG-Bench: {len(without)} of {len(prompts.prompts)} prompts have no question (first: {without[0]})"
        )

    def joined(prompt: Prompt) -> Prompt:
        whole = replace(prompt, metadata={**prompt.metadata, "questions": list(questions[prompt.id])})
        dpg.questions_of(whole)
        return whole

    return replace(prompts, prompts=tuple(map(joined, prompts.prompts)))
