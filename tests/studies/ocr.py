"""What the metric `ocr_rapid` makes of real text: the targets of its own prompts, printed, turned and made noisy.

    python -m tests.studies.ocr [--targets N] [--out FILE.jsonl]

Every picture's score is a line of the file, so a study that was stopped reads only what is missing; a file that was
made otherwise is refused.
Each target is printed in one of five fonts (in turn) and read under each condition. "wrong" judges what was read in
the clean picture by another picture's target: a metric that reads must score it low. Exits with 1 where the clean
mean is below .95 or a wrong text does not score lower than the right one in the mean.
Fonts: those that matplotlib brings along, so that every clone has the same ones.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.prompts import read_prompts
from metrics.base import UserError
from metrics.encoders.ocr_engines import rapid
from metrics.ocr import Line, ocr_score, target_of

OUT = Path("runs/studies/ocr.jsonl")
PROMPTS = Path(__file__).resolve().parents[2] / "benchmarks/prompt_sets/ocr.txt"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
BAR = 0.95
GROUND, INK = (235, 230, 220), (25, 30, 60)
SIZE, MARGIN = 40, 60  # pixels: of letters, and around the text


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Largest angle in degrees, and the standard deviation of the noise in grey levels."""

    angle: float = 0.0
    noise: float = 0.0


CONDITIONS: Mapping[str, Condition] = {
    "clean": Condition(),
    "turned": Condition(angle=10.0),
    "noisy": Condition(noise=20.0),
    "both": Condition(angle=10.0, noise=20.0),
}


def font_file(name: str) -> Path:
    """Return the file of one of FONTS."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"


def targets(number: int) -> list[str]:
    """Return the first distinct targets of the metric's prompts."""
    found = dict.fromkeys(target_of(prompt.text) for prompt in read_prompts(PROMPTS).prompts)
    return list(found)[:number]


def picture_of(text: str, font: str, condition: Condition, rng: np.random.Generator) -> np.ndarray:
    """Return dark letters on a light ground, uint8 [H, W, 3], turned by an angle of the condition's range."""
    letters = ImageFont.truetype(font_file(font), SIZE)
    left, top, right, bottom = letters.getbbox(text)
    width, height = int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN
    picture = Image.new("RGB", (width, height), GROUND)
    ImageDraw.Draw(picture).text((MARGIN - left, MARGIN - top), text, INK, letters)
    angle = rng.uniform(-condition.angle, condition.angle)
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=GROUND)
    pixels = np.asarray(picture) + rng.normal(0, condition.noise, (picture.height, picture.width, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def readings(texts: Sequence[str], out: Path) -> dict[tuple[str, int], list[Line]]:
    """Return what the engine reads under each condition, by condition and number of the text; lines of `out` are
    taken as they stand, and what is read is added to them.

    Raises: UserError where the file holds something else."""
    found = earlier(out, texts)
    engine = rapid(torch.device("cpu"))["lines"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            for place, (name, condition) in enumerate(CONDITIONS.items()):
                if (name, number) in found:
                    continue
                rng = np.random.default_rng([number, place])  # of its own, so that resuming draws the same pictures
                picture = picture_of(text, FONTS[number % len(FONTS)], condition, rng)
                found[name, number] = engine.forward([picture])[0]
                entry = {"condition": name, "number": number, "text": text, "lines": found[name, number]}
                file.write(json.dumps(entry) + "\n")
                file.flush()
    return found


def earlier(out: Path, texts: Sequence[str]) -> dict[tuple[str, int], list[Line]]:
    """Return what a file holds already; a last line that was cut short is taken away.

    Raises: UserError where it is of other targets."""
    if not out.is_file():
        return {}
    content = out.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]
    if whole != content:
        out.write_text(whole, encoding="utf-8")
    found = {}
    for entry in map(json.loads, whole.splitlines()):
        number = entry["number"]
        if number < len(texts) and texts[number] != entry["text"]:
            raise UserError(f"{out}: target {number} is {entry['text']!r}, now {texts[number]!r}; pass another --out")
        found[entry["condition"], number] = [(text, confidence) for text, confidence in entry["lines"]]
    return found


def study(texts: Sequence[str], out: Path) -> dict[str, list[float]]:
    """Return the scores of each condition, and of wrong texts. Raises UserError as `readings`."""
    found = readings(texts, out)
    scores = {name: [ocr_score(found[name, n], text) for n, text in enumerate(texts)] for name in CONDITIONS}
    others = [*texts[1:], texts[0]]
    return scores | {"wrong": [ocr_score(found["clean", n], text) for n, text in enumerate(others)]}


def table(scores: Mapping[str, Sequence[float]]) -> str:
    """Return the means as text: a line per condition, a column per font, and the mean of all."""
    rows = [["condition", *FONTS, "all", "below 1"]]
    for name, values in scores.items():
        means = [f"{np.mean(values[font :: len(FONTS)]):.3f}" for font in range(len(FONTS))]
        rows.append([name, *means, f"{np.mean(values):.3f}", str(sum(value < 1 for value in values))])
    return "\n".join("  ".join(cell.rjust(15) for cell in row) for row in rows)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT, help="every reading, a line each")
    arguments = parser.parse_args()
    texts = targets(arguments.targets)
    try:
        scores = study(texts, arguments.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(texts)} targets\n{table(scores)}")
    return 0 if np.mean(scores["clean"]) >= BAR > np.mean(scores["wrong"]) else 1


if __name__ == "__main__":
    sys.exit(main())
