"""One measurement of our own: `ours` (the scoring engine on a run directory), `bare` or `bf16` (forwards alone).

Started by tests.perf.scoring; prints {"way": seconds} for all pictures together.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.prompts import PromptSet
from benchmarks.score import score
from benchmarks.store import ImageSet, Run
from metrics.base import Prompt
from metrics.features import FeatureRunner, Models, exact_float32
from metrics.images import read_image
from metrics.loaded import Scorer
from tests.perf.scoring_inputs import prompt


def ours(metrics: Sequence[str], pictures: list[Path], device: str) -> dict[str, float]:
    """Score the pictures twice: with the weights still in their files, and with the models in memory."""
    models: Models = {}
    return {way: _seconds_of_a_run(metrics, pictures, device, models) for way in ("ours, first", "ours")}


class Bare:
    """Each distinct forward on batches of 16 ready tensors, and each text tower on the prompts of a batch."""

    def __init__(self, metrics: Sequence[str], pictures: list[Path], device: str) -> None:
        models: Models = {}
        keys = [key for metric in Scorer(metrics, device, models=models).metrics.values() for key in metric.features]
        runner = FeatureRunner(keys, device, models=models)
        encoders = list(runner._encoders.values())
        self.device = device
        self.texts = [encoder.forward for encoder in encoders if encoder.reads == "text"]
        passes = {(e.forward, e.preprocessing()): None for e in encoders if e.reads == "image" and e.preprocessing}
        self.batches = []
        for start in range(0, len(pictures), 16):
            inputs = runner.prepare([read_image(path) for path in pictures[start : start + 16]])
            ready = [(forward, inputs[preprocessing].to(device)) for forward, preprocessing in passes]
            self.batches.append((ready, [prompt(number) for number in range(start, start + len(ready[0][1]))]))

    @torch.no_grad()
    def run(self, batches: int | None = None) -> float:
        """Return the seconds that the forward passes of so many batches (default: all) take."""
        begin = time.perf_counter()
        for ready, prompts in self.batches[:batches]:
            for forward, pixels in ready:
                forward(pixels)
            for forward in self.texts:
                forward(prompts)
        _wait(self.device)
        return time.perf_counter() - begin


def bare(metrics: Sequence[str], pictures: list[Path], device: str) -> dict[str, float]:
    """Time the forward passes in float32, as the metrics run them."""
    passes = Bare(metrics, pictures, device)
    with exact_float32(torch.device(device)):
        passes.run(1)
        return {"bare": passes.run()}


def bf16(metrics: Sequence[str], pictures: list[Path], device: str) -> dict[str, float]:
    """Time the forward passes in bfloat16 and count their operations, beside the speed of one large product."""
    from torch.utils.flop_counter import FlopCounterMode

    passes = Bare(metrics, pictures, device)
    with FlopCounterMode(display=False) as counter:
        passes.run()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        passes.run(1)
        seconds = passes.run()
    side = 8192
    matrix = torch.ones(side, side, device=device, dtype=torch.bfloat16)
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        for _ in range(10):
            matrix @ matrix
        _wait(device)
        peak = 10 * 2 * side**3 / (time.perf_counter() - begin)
    return {"bf16": seconds, "share": counter.get_total_flops() / seconds / peak}


def _seconds_of_a_run(metrics: Sequence[str], pictures: list[Path], device: str, models: Models) -> float:
    """Time the score stage on a fresh run directory that holds the pictures, until its evidence is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = tuple(Prompt(text=prompt(number), id=f"p-{number}") for number in range(len(pictures)))
        image_set = ImageSet(name="speed", prompts=PromptSet("speed", prompts), images_per_prompt=1, protocol=None)
        identity = {"name": "speed", "weights_digest": "0" * 64}
        run = Run.open(Path(folder) / "run", model=identity, suite="speed", sets=[image_set], block_size=16)
        for block in range(run.count_blocks(image_set)):
            numbers = (int(item.prompt.id[2:]) for item in run.block(image_set, block))
            run.keep_pictures(image_set, block, [pictures[number].read_bytes() for number in numbers])
        begin = time.perf_counter()
        failed = score(run, image_set, metrics, device, models)
        _wait(device)
        seconds = time.perf_counter() - begin
        assert not failed, failed
        return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    way, *names = sys.argv[1:]
    folder = Path(os.environ["FEWSTEP_BENCH_PICTURES"])
    found = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))
    measured = {"ours": ours, "bare": bare, "bf16": bf16}[way](names, found, os.environ["FEWSTEP_BENCH_DEVICE"])
    print(json.dumps(measured))
