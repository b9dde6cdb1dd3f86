"""OCR accuracy: does a picture show the text that its prompt puts in quotes?

    s = 1 - min(d, |t|) / |t|,   d = 0 where t is part of R, else Levenshtein(R, t)

R: everything an OCR engine read, its lines joined without a separator, most of them in reading order; t: the text
between the prompt's first two double quotes. Both without blanks, in lower case.
Source: Flow-GRPO's OCR reward (Liu et al. 2025, arXiv:2505.05470; code flow_grpo/ocr.py), which RTDMD evaluates with.
Departures: an engine that fails is an error, not a score of 0; a prompt without a target is refused.

What reads the pictures decides the number, so each engine is a metric of its own: `ocr_rapid`, `ocr_paddle`.
Axes: B images.
"""

import json
from collections.abc import Sequence
from typing import ClassVar

import torch

from metrics.base import Batch, Card, Features, PerImage, Prompt, ReadsRecords, Rows, UserError, register

Line = tuple[str, float]  # text, confidence in [0, 1]


def target_of(prompt: str) -> str:
    """Return the text that a picture of this prompt must show. Raises UserError where the prompt has none."""
    parts = prompt.split('"')
    if len(parts) < 3:
        raise UserError(f'OCR prompt {prompt!r}: no text in double quotes; write a sign that says "OPEN"')
    if not _normal(parts[1]):
        raise UserError(f"OCR prompt {prompt!r}: nothing stands between its first two double quotes")
    return parts[1]


def ocr_score(lines: Sequence[Line], target: str) -> float:
    """Return the accuracy in [0, 1] of the lines that an engine read, in its order."""
    read, wanted = _normal("".join(text for text, confidence in lines if confidence > 0)), _normal(target)
    distance = 0 if wanted in read else levenshtein(read, wanted)
    return 1 - min(distance, len(wanted)) / len(wanted)


def levenshtein(a: str, b: str) -> int:
    """Return the least number of insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (of_a != of_b))
    return row[-1]


def _normal(text: str) -> str:
    return text.replace(" ", "").lower()


class OcrAccuracy(PerImage, ReadsRecords):
    """Base of OCR metrics: a card and the key of an engine's lines."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where a prompt puts no text in double quotes."""
        target_of(prompt.text)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": in [0, 1], "target": the text asked for, "lines": JSON of what was read}, B of each.

        Raises: UserError where a prompt has no text in quotes.
        """
        read: Sequence[Sequence[Line]] = features[self.features[0]]
        targets = [target_of(prompt.text) for prompt in batch.prompts]
        scores = [ocr_score(lines, target) for lines, target in zip(read, targets, strict=True)]
        return {
            "score": torch.tensor(scores, dtype=torch.float32),
            "target": targets,
            "lines": [json.dumps([list(line) for line in lines], ensure_ascii=False) for lines in read],
        }


def make_card(identity: str, title: str, perceiver: str, comparable: str) -> Card:
    """Return the card of one engine."""
    return Card(
        id=identity,
        version=1,
        title=title,
        unit="share of characters",
        higher_is_better=True,
        range=(0.0, 1.0),
        source="Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO): OCR reward of the authors' code; RTDMD's OCR column",
        description="How much of the text that a prompt puts in quotes an OCR engine reads in the picture: 1 where "
        "it stands there letter by letter, 0 where as many letters are wrong as it has.",
        variant="flow_grpo",
        perceiver=perceiver,
        preprocessing="8-bit RGB at its own size; the engine resizes",
        comparable=comparable,
        fooled_by="Text that nobody asked for is free where the target stands in one piece; a target that is read in "
        "another order than it is written loses most of its score. Plain print beats lettering that suits the scene.",
        reported_scale="Flow-GRPO, RTDMD: as here, read by PaddleOCR 2.9.1",
        citation="Liu et al.: Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv:2505.05470",
    )


@register
class OcrRapid(OcrAccuracy):
    card = make_card(
        "ocr_rapid",
        "OCR accuracy (RapidOCR)",
        "rapidocr/pp-ocrv6-small",
        "With ocr_rapid on the same prompts. Never with ocr_paddle or a paper's column: another engine reads better "
        "or worse, and the formula passes that on.",
    )
    features = ("ocr/rapid:lines",)


@register
class OcrPaddle(OcrAccuracy):
    card = make_card(
        "ocr_paddle",
        "OCR accuracy (PaddleOCR)",
        "paddleocr",
        "With Flow-GRPO's and RTDMD's columns where PaddleOCR is 2.9.1 on paddlepaddle 2.6.2, as theirs; its "
        "versions read differently, and the version is part of the digest.",
    )
    features = ("ocr/paddle:lines",)
