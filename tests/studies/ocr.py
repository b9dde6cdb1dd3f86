"""What the metric `ocr_rapid` makes of real text: the targets of its own prompts, printed, turned and made noisy.

    python -m tests.studies.ocr [--targets N] [--out FILE.json]

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
from metrics.encoders.ocr_engines import rapid
from metrics.ocr import Line, ocr_score, target_of

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


def read(texts: Sequence[str], condition: Condition) -> list[list[Line]]:
    """Return the lines that the engine reads in a picture of each text."""
    rng, engine = np.random.default_rng(0), rapid(torch.device("cpu"))["lines"]
    fonts = [FONTS[index % len(FONTS)] for index in range(len(texts))]
    return [
        engine.forward([picture_of(text, font, condition, rng)])[0] for text, font in zip(texts, fonts, strict=True)
    ]


def study(texts: Sequence[str]) -> dict[str, list[float]]:
    """Return the scores of each condition, and of wrong texts."""
    scores = {}
    for name, condition in CONDITIONS.items():
        lines = read(texts, condition)
        scores[name] = [ocr_score(line, text) for line, text in zip(lines, texts, strict=True)]
        if name == "clean":
            others = [*texts[1:], texts[0]]
            scores["wrong"] = [ocr_score(line, text) for line, text in zip(lines, others, strict=True)]
    return scores


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
    parser.add_argument("--out", type=Path, help="write all scores here as JSON")
    arguments = parser.parse_args()
    texts = targets(arguments.targets)
    scores = study(texts)
    print(f"{len(texts)} targets\n{table(scores)}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"targets": texts, "scores": scores}, indent=1) + "\n", encoding="utf-8")
    return 0 if np.mean(scores["clean"]) >= BAR > np.mean(scores["wrong"]) else 1


if __name__ == "__main__":
    sys.exit(main())
