"""Which evaluated prompts a model was trained on: found by fingerprints, so that a checkpoint need not carry texts.

A fingerprint is the first 8 bytes of the sha256 of a prompt in lower case, blanks collapsed. A checkpoint's folder
holds those of its training prompts in one sorted file, 8 bytes each: 50,000 prompts take 400 kB. Two texts share one
by chance with probability 2^-64.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from benchmarks.config import UserError
from benchmarks.prompts import PromptSet

FILE = "training_prompts.sha256"
SIZE = 8


def fingerprint(text: str) -> bytes:
    """Return the fingerprint of one prompt."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:SIZE]


def write_fingerprints(folder: Path, texts: Iterable[str]) -> Path:
    """Write the fingerprints of training prompts into a checkpoint's folder; return the file. Equal sets of texts
    give equal bytes."""
    path = folder / FILE
    path.write_bytes(b"".join(sorted({fingerprint(text) for text in texts})))
    return path


def trained_on(folder: Path, prompts: PromptSet) -> list[str] | None:
    """Return the ids of evaluated prompts that the checkpoint was trained on; None where it does not say.

    Raises: UserError where the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) % SIZE:
        raise UserError(
            f"{path}: {len(content)} bytes are no whole number of fingerprints; export the checkpoint again"
        )
    known = {content[start : start + SIZE] for start in range(0, len(content), SIZE)}
    return [prompt.id for prompt in prompts.prompts if fingerprint(prompt.text) in known]
