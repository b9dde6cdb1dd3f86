"""What metrics saw in a picture, read from the rows they left: detector boxes, reasons, answers, lines of text.

Nothing is measured. Metrics write these as columns beside their score: `detections` (GenEval: by class, lists
[x1, y1, x2, y2, score, colour]), `reason`, `answers` and `masses` (GenEval2, DPG-Bench), `target` and `lines` (OCR).
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.config import UserError
from leaderboards.seen import MOST_BOXES, MOST_LINES, Box, Seen
from metrics.base import Prompt

TOLD = ("detections", "reason", "answers", "masses", "target", "lines")
Row = Mapping[str, Any]


def told_rows(path: Path, prompt_ids: set[str]) -> dict[tuple[str, int], Row]:
    """Return a metric's rows of some prompts by (prompt id, seed), without vectors.

    Raises UserError for a damaged file."""
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to measure again") from error
    plain = [name for name in table.column_names if not pa.types.is_list(table[name].type)]
    mine = [name in prompt_ids for name in table["prompt_id"].to_pylist()]
    return {(row["prompt_id"], row["seed"]): row for row in table.select(plain).filter(pa.array(mine)).to_pylist()}


def leaves_more_than_numbers(path: Path) -> bool:
    """Whether a metric's rows hold any of `TOLD`; reads the file's foot only."""
    try:
        return not set(TOLD).isdisjoint(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to measure again") from error


def seen(row: Row, prompt: Prompt, size: tuple[int, int]) -> Seen:
    """Return what one metric saw in one picture of `size` (width, height)."""
    boxes = sorted(_boxes(row, size), key=lambda one: -one[0])
    return Seen(
        boxes=[box for _, box in boxes[:MOST_BOXES]],
        n_weaker=len(boxes[MOST_BOXES:]),
        reasons=[_short(line) for line in str(row.get("reason") or "").splitlines()[:MOST_LINES]],
        table=[[_short(cell) for cell in line] for line in _table(row, prompt)][:MOST_LINES],
    )


def _boxes(row: Row, size: tuple[int, int]) -> Iterator[tuple[float, Box]]:
    """Yield (score, box) of every detection."""
    width, height = size
    for name, objects in json.loads(row.get("detections") or "{}").items():
        for x1, y1, x2, y2, score, colour in objects:
            left, right = _percent(x1, width), _percent(x2, width)
            top, bottom = _percent(y1, height), _percent(y2, height)
            label = _short(f"{colour or ''} {name} {score:.2f}".strip())
            yield (
                score,
                Box(
                    label=label,
                    left=left,
                    top=top,
                    width=round(max(right - left, 0), 2),
                    height=round(max(bottom - top, 0), 2),
                ),
            )


def _percent(at: float, whole: int) -> float:
    """Detectors may say a little more than there is."""
    return round(min(max(100 * at / whole, 0), 100), 2)


def _table(row: Row, prompt: Prompt) -> Iterator[list[str]]:
    """Yield what was asked and answered, or read."""
    answers = json.loads(row.get("answers") or "null")
    if isinstance(answers, dict):  # DPG-Bench: by question id
        for question in prompt.metadata.get("questions", ()):
            needs = "" if question["dependency"] == "0" else f"needs {question['dependency']}"
            answer = answers.get(str(question["id"]), "")
            yield [str(question["id"]), question["question"], answer, question["tuple"], needs]
    elif isinstance(answers, list):  # GenEval2: in the questions' order
        masses = json.loads(row.get("masses") or "[]")
        pairs = zip(prompt.metadata.get("vqa_list", ()), answers, masses, strict=False)
        for (question, right), answer, mass in pairs:
            yield [question, f"expected {right}", f"said {answer}", f"{mass:.3f}"]
    if row.get("target"):
        yield ["asked for", str(row["target"])]
        for text, confidence in json.loads(row.get("lines") or "[]"):
            yield ["read", text, f"{confidence:.2f}"]


def _short(text: object) -> str:
    text = str(text)
    return text if len(text) <= 500 else f"{text[:499]}…"
