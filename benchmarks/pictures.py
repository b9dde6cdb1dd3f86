"""A folder of pictures made elsewhere, as a model: it draws nothing, its pictures are copied into the run.

Two layouts, told apart by their folders:

    <prompt_id>/<seed>.png                                        ours
    <5 digits>/metadata.jsonl, <5 digits>/samples/<digits>.png    GenEval's; prompts are matched by their text

A picture is checked when it is copied. All missing and damaged ones end in one line with their number and the first.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.config import UserError
from metrics.base import Prompt

_GENEVAL_FOLDER = re.compile(r"\d{5,}")
_PICTURE = re.compile(r"\d+\.png")


@dataclass(frozen=True)
class PictureFolder:
    """Pictures by prompt and seed; no protocol, parameters or count of passes: nobody here saw them drawn."""

    name: str
    folder: Path
    geneval_layout: bool

    protocol = None
    parameters = None
    base = ""
    training = None

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over paths and contents of all pictures."""
        return checkpoints.digest_files(_pictures(self.folder, self.geneval_layout), self.folder)

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the first picture. Raises UserError where it cannot be read."""
        from metrics.images import read_image

        return read_image(next(_pictures(self.folder, self.geneval_layout))).size

    def find(self, prompt: Prompt, seed: int) -> Path:
        """Return the path where the picture of (prompt, seed) stands or ought to stand."""
        if not self.geneval_layout:
            return self.folder / prompt.id / f"{seed}.png"
        samples = self._samples.get(prompt.text, ())
        return samples[seed] if seed < len(samples) else self.folder / f"(prompt {prompt.text!r})" / f"sample {seed}"

    @cached_property
    def _samples(self) -> dict[str, Sequence[Path]]:
        """GenEval's samples by the text of the prompt, in the order of their numbers."""
        found: dict[str, Sequence[Path]] = {}
        for folder in _geneval_folders(self.folder):
            path = folder / "metadata.jsonl"
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                text = record["prompt"]
            except FileNotFoundError as error:
                raise UserError(f"{path}: missing; GenEval's layout has one beside every 'samples'") from error
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: not one JSON object with a 'prompt'") from error
            if text in found:
                raise UserError(f"{path}: prompt {text!r} stands in two folders")
            found[text] = sorted(_in_order(folder / "samples"), key=lambda picture: int(picture.stem))
        return found


def is_picture_folder(folder: Path) -> bool:
    """Whether a folder holds pictures in one of the two layouts."""
    return any(True for geneval in (True, False) for _ in _pictures(folder, geneval))


def open_pictures(folder: Path, name: str) -> PictureFolder:
    """Return the folder as a model; `is_picture_folder` holds for it."""
    return PictureFolder(name, folder, geneval_layout=any(True for _ in _pictures(folder, geneval=True)))


def _pictures(folder: Path, geneval: bool) -> Iterator[Path]:
    folders = _geneval_folders(folder) if geneval else sorted(path for path in folder.iterdir() if path.is_dir())
    for inside in folders:
        yield from _in_order(inside / "samples" if geneval else inside)


def _geneval_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _GENEVAL_FOLDER.fullmatch(path.name) and path.is_dir())


def _in_order(folder: Path) -> list[Path]:
    """Return the numbered pictures of a folder; other files are no pictures of ours."""
    return sorted(path for path in folder.glob("*.png") if _PICTURE.fullmatch(path.name))
