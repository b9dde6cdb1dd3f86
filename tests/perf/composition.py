"""Speed of the composition benchmarks: verdicts per second, and the detector's pipeline beside its bare forward.

    python -m tests.perf.composition [--pictures N]

The detector is built at its true size with random weights (47 million) in mmdet's layout; nothing is downloaded.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metrics.geneval import mask2former
from metrics.geneval.classes import CLASSES
from metrics.geneval.detector import REAL
from metrics.geneval.mask2former import Detector, MmdetPictures, read_out
from metrics.geneval.verdict import Detected, judge

ROOT = Path(__file__).resolve().parents[2]


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the least time of several runs: what disturbs a run only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def verdicts_per_second() -> float:
    """Return how many of the recorded pictures are judged in a second, on one core."""
    records = [json.loads(line) for line in (ROOT / "benchmarks/prompt_sets/geneval.jsonl").read_text().splitlines()]
    cases = []
    with gzip.open(ROOT / "tests/golden/composition/verdict_vectors_2212.jsonl.gz", "rt", encoding="utf-8") as lines:
        for case in map(json.loads, lines):
            found: dict[str, list[Detected]] = {}
            for index, x1, y1, x2, y2, score, colour in case["detections"]:
                found.setdefault(CLASSES[index], []).append(Detected((x1, y1, x2, y2), score, colour))
            cases.append((found, records[case["meta_index"]]))

    def all_of_them() -> None:
        for found, record in cases:
            judge(found, record, lambda _, names: names, REAL)

    return len(cases) / best_seconds(all_of_them, repeats=7)


def detector(pictures: int) -> dict[str, float]:
    """Return seconds per picture of the bare forward and of the whole way from picture to detections."""
    from transformers import Mask2FormerForUniversalSegmentation

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = Detector(None, device, mmdet=True)  # type: ignore[arg-type]  # no weights: the model is put in below
    made._model = Mask2FormerForUniversalSegmentation(mask2former.config()).to(device).eval()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)) for _ in range(pictures)]
    prepared = MmdetPictures().from_pil(images).to(device)
    pixels = torch.stack([one.pixels_3HW for one in prepared.pictures])

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def bare() -> None:
        made.model(pixel_values=pixels)
        wait()

    def whole() -> None:
        batch = MmdetPictures().from_pil(images).to(device)
        for one, logits in zip(batch.pictures, made.logits(batch), strict=True):
            read_out(*logits, one.resized, one.picture.shape[:2])
        wait()

    with torch.no_grad():
        times = {"bare": best_seconds(bare, 3) / pictures, "whole": best_seconds(whole, 3) / pictures}
    return times | {"parameters": float(sum(p.numel() for p in made.model.parameters()))}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--only", choices=("verdicts", "detector"))
    arguments = parser.parse_args()
    if arguments.only != "detector":
        print(f"verdicts: {verdicts_per_second():,.0f} pictures per second (wanted: 50,000)")
    if arguments.only != "verdicts":
        times = detector(arguments.pictures)
        print(f"detector: {times['parameters']:,.0f} parameters, forward {times['bare']:.2f} s per picture, with")
        print(
            f"pictures and read-out {times['whole']:.2f} s: {times['bare'] / times['whole']:.2f} of the bare forward"
        )


if __name__ == "__main__":
    main()
