"""Speed of the composition benchmarks: verdicts per second, detector and reader of pictures beside bare forwards.

    python -m tests.perf.composition [--pictures N] [--only verdicts detector reader]

The detector is built at its true size with random weights (69 million) in mmdet's layout; the reader is a Qwen2.5-VL
of 43 million, or of some billions where there is a GPU. Nothing is downloaded. Exit code 1 where a bar is missed.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leaderboards.studies import Speed
from metrics.geneval import mask2former
from metrics.geneval.classes import CLASSES
from metrics.geneval.detector import LEAST, REAL
from metrics.geneval.mask2former import Detector, MmdetPictures, read_out
from metrics.geneval.verdict import Detected, judge
from metrics.vqa.qwen import VisionLanguageModel
from tests.metrics.vqa.test_qwen import CHAT, tokenizer
from tests.perf.record import machine, record
from tests.perf.turns import best_in_turns

ROOT = Path(__file__).resolve().parents[2]
VERDICTS, SHARE = 50_000, 0.9
REPEATS = 3  # of which the fastest counts
OBJECTS = 30  # that the detector is sure of in each picture; GenEval's prompts ask for at most four
TOKENS = {
    "image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end",
}  # fmt: skip


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
        for found, prompt in cases:
            judge(found, prompt, lambda _, names: names, REAL)

    return len(cases) / best_in_turns({"verdicts": all_of_them}, repeats=7)["verdicts"]


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
        for one, (classes, masks) in zip(batch.pictures, made.logits(batch), strict=True):
            classes[:OBJECTS, 0] += 20  # or else random weights are sure of nothing, and no mask is read
            found = read_out(classes, masks, one.resized, one.picture.shape[:2], LEAST)
            assert len(found) >= OBJECTS
        wait()

    with torch.no_grad():
        times = best_in_turns({"bare": bare, "whole": whole}, REPEATS)
    return _per_picture(times, pictures, made.model)


def reader(pictures: int) -> dict[str, float]:
    """Return seconds per picture of bare forwards of a Qwen2.5-VL, and of answers with all that leads to them."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words, large = tokenizer(), device.type == "cuda"
    width, depth = (2048, 36) if large else (512, 8)
    text = {
        "vocab_size": len(words), "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth,
        "num_attention_heads": width // 64, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }  # fmt: skip
    vision = {"depth": 32 if large else 8, "hidden_size": 1280 if large else 320, "num_heads": 16 if large else 5,
              "intermediate_size": 3420 if large else 860, "out_hidden_size": width}  # fmt: skip
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in TOKENS.items()}
    torch.manual_seed(0)
    made = VisionLanguageModel(None, device)  # type: ignore[arg-type]  # no folder: both are put in below
    with torch.device(device):
        network = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=CHAT)
    made.__dict__ |= {
        "_model": network.to(torch.bfloat16 if large else torch.float32).eval(),
        "_processor": processor,
    }
    count = pictures * made.batch_size
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (512, 512, 3), np.uint8) for _ in range(count)]
    questions = ["Is there a red cat? Answer in one word."] * count
    first = made.batch_size
    inputs = made._inputs(images[:first], questions[:first])

    def bare() -> None:
        with torch.no_grad():
            for _ in range(pictures):
                made._first_token(inputs)

    def whole() -> None:
        made.answer(images, questions, [("yes", "no")] * count)

    return _per_picture(best_in_turns({"bare": bare, "whole": whole}, REPEATS), count, network)


def _per_picture(seconds: Mapping[str, float], pictures: int, network: torch.nn.Module) -> dict[str, float]:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {name: taken / pictures for name, taken in seconds.items()} | {"parameters": float(parameters)}


def main() -> int:
    """Print the figures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2, help="of the detector; batches of the reader")
    parser.add_argument("--only", nargs="+", choices=("verdicts", "detector", "reader"))
    parser.add_argument("--record", action="store_true", help="keep the ratios for the page")
    arguments = parser.parse_args()
    chosen, met, rows = arguments.only or ("verdicts", "detector", "reader"), True, list[Speed]()
    if "verdicts" in chosen:
        speed = verdicts_per_second()
        met &= speed >= VERDICTS
        print(f"verdicts: {speed:,.0f} pictures per second (at least {VERDICTS:,})", flush=True)
    for name, measure in (("detector", detector), ("reader", reader)):
        if name in chosen:
            times = measure(arguments.pictures)
            share = times["bare"] / times["whole"]
            met &= share >= SHARE
            print(
                f"{name}: {times['parameters']:,.0f} parameters, {times['bare']:.3f} s per picture in bare forwards, "
                f"{times['whole']:.3f} s in all: {share:.3f} of the bare speed (at least {SHARE})",
                flush=True,
            )
            rows.append(
                Speed(
                    id=f"composition-{name}",
                    what=f"{name} of composition",
                    ours="pictures to findings",
                    other="bare forwards on ready tensors",
                    ratio=round(share, 3),
                    repetitions=REPEATS,
                    wanted=SHARE,
                    setting=f"{times['parameters'] / 1e6:,.0f} M parameters, random weights; {machine()}",
                )
            )
    if arguments.record:
        record(rows)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
