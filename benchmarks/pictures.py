"""A folder of pictures made elsewhere, as a model: it draws nothing, its pictures are copied into the run.

Three layouts, told apart by what lies in the folder:

    <prompt_id>/<seed>.png                                        ours
    <5 digits>/metadata.jsonl, <5 digits>/samples/<digits>.png    GenEval's; prompts are matched by their text
    <prompt_id>.png                                               DPG-Bench's; four pictures in one, two by two

A picture is checked when it is copied. All missing and damaged ones end in one line with their number and the first.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from benchmarks import checkpoints
from benchmarks.config import UserError
from metrics.base import Prompt

_GENEVAL_FOLDER = re.compile(r"\d{5,}")
_PICTURE = re.compile(r"\d+\.png")
Layout = Literal["geneval", "ours", "dpg"]
LAYOUTS: tuple[Layout, ...] = ("geneval", "ours", "dpg")  # the first that fits is taken


@dataclass(frozen=True)
class PictureFolder:
    """Pictures by prompt and seed; no protocol, parameters or count of passes: nobody here saw them drawn."""

    name: str
    folder: Path
    layout: Layout

    protocol = None
    parameters = None
    base = ""
    training = None

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over paths and contents of all pictures."""
        return checkpoints.digest_files(_pictures(self.folder, self.layout), self.folder)

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the first picture. Raises UserError where it cannot be read."""
        from metrics.images import read_image

        width, height = read_image(next(_pictures(self.folder, self.layout))).size
        return (width // 2, height // 2) if self.layout == "dpg" else (width, height)

    def find(self, prompt: Prompt, seed: int) -> Path:
        """Return the path where the picture of (prompt, seed) stands or ought to stand."""
        if self.layout == "ours":
            return self.folder / prompt.id / f"{seed}.png"
        if self.layout == "dpg":
            return self._tile(self.folder / f"{prompt.id}.png", seed)
        samples = self._samples.get(prompt.text, ())
        return samples[seed] if seed < len(samples) else self.folder / f"(prompt {prompt.text!r})" / f"sample {seed}"

    def _tile(self, grid: Path, seed: int) -> Path:
        """Return one of the four pictures of a DPG-Bench file, cut out into the user's cache.

        The program crops beyond the edge without an error where it is told a wrong size; here a side must be even.
        """
        from metrics.images import read_image
        from metrics.weights.files import user_cache

        if seed > 3 or not grid.is_file():
            return grid.with_suffix("") / f"{seed}.png"  # which is not there: the caller counts it
        picture = read_image(grid)
        if picture.width % 2 or picture.height % 2:
            raise UserError(f"{grid}: {picture.width}x{picture.height} pixels cannot hold two by two equal pictures")
        width, height = picture.width // 2, picture.height // 2
        left, top = seed % 2 * width, seed // 2 * height
        path = user_cache("tiles") / self.digest[:16] / grid.stem / f"{seed}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.crop((left, top, left + width, top + height)).save(path.with_suffix(".tmp"), "PNG")
            path.with_suffix(".tmp").replace(path)
        return path

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
    """Whether a folder holds pictures in one of the layouts."""
    return any(True for layout in LAYOUTS for _ in _pictures(folder, layout))


def open_pictures(folder: Path, name: str) -> PictureFolder:
    """Return the folder as a model; `is_picture_folder` holds for it."""
    return PictureFolder(name, folder, next(layout for layout in LAYOUTS if any(_pictures(folder, layout))))


def _pictures(folder: Path, layout: Layout) -> Iterator[Path]:
    if layout == "dpg":
        yield from sorted(path for path in folder.glob("*.png") if path.is_file())
        return
    geneval = layout == "geneval"
    folders = _geneval_folders(folder) if geneval else sorted(path for path in folder.iterdir() if path.is_dir())
    for inside in folders:
        yield from _in_order(inside / "samples" if geneval else inside)


def _geneval_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _GENEVAL_FOLDER.fullmatch(path.name) and path.is_dir())


def _in_order(folder: Path) -> list[Path]:
    """Return the numbered pictures of a folder; other files are no pictures of ours."""
    return sorted(path for path in folder.glob("*.png") if _PICTURE.fullmatch(path.name))
