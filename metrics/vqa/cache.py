"""A persistent cache of answers: one SQLite file in the user's cache, safe for several processes.

A key covers all that decides an answer: the model's name, the picture's pixels and size, question, candidates.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics.vqa.answerer import Answer

SECONDS_TO_WAIT = 60.0  # for other writers
CHUNK = 500  # keys of one query


def picture_key(image_HW3: np.ndarray) -> str:
    """Return the sha256 (hex) over a picture's size and pixels, uint8 RGB."""
    height, width = image_HW3.shape[:2]
    return hashlib.sha256(f"{width}x{height}\n".encode() + np.ascontiguousarray(image_HW3).tobytes()).hexdigest()


def pair_key(model: str, picture: str, question: str, candidates: Sequence[str]) -> str:
    """Return the sha256 (hex) over all that decides one answer."""
    return hashlib.sha256(json.dumps([model, picture, question, list(candidates)]).encode()).hexdigest()


@dataclass(frozen=True)
class AnswerCache:
    """Answers by key, in a file that is made at need."""

    path: Path

    def find(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Return those answers that are kept."""
        found: dict[str, Answer] = {}
        with closing(self._open()) as database:
            for start in range(0, len(keys), CHUNK):
                some = keys[start : start + CHUNK]
                marks = ",".join("?" * len(some))
                for key, text, masses in database.execute(
                    f"SELECT key, text, masses FROM answers WHERE key IN ({marks})", some
                ):
                    found[key] = Answer(text, None if masses is None else tuple(json.loads(masses)))
        return found

    def keep(self, key: str, answer: Answer) -> None:
        """Keep one answer for good."""
        masses = None if answer.masses is None else json.dumps(answer.masses)
        with closing(self._open()) as database, database:
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, answer.text, masses))

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)
        database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, masses TEXT)")
        return database
