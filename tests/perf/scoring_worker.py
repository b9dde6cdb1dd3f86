"""One measurement of our own: `ours` (the scoring engine on a run directory), `bare` or `bf16` (forwards alone).

Started by tests.perf.scoring; prints {"<way>": seconds, ..., "peak_gb": …} for all pictures together.
"""

import importlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prompts import PromptSet
from benchmarks.score import score
from benchmarks.store import ImageSet, Run
from metrics.base import Prompt
from metrics.features import FeatureRunner, Models, exact_float32
from metrics.images import read_image
from metrics.loaded import Scorer
from tests.perf.scoring_inputs import Work, architectures

BLOCK = 16  # pictures of a batch
LAZY = (  # what a first score imports; no way is charged for its imports
    "accelerate",
    "open_clip",
    "safetensors.torch",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.blip.modeling_blip",
    "transformers.models.blip.modeling_blip_text",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)


def ours(metrics: Sequence[str], work: Work) -> dict[str, float]:
    """Score the pictures twice: with the weights still in their files, and with the models in memory."""
    for module in LAZY:
        importlib.import_module(module)
    models: Models = {}
    return {way: _seconds_of_a_run(metrics, work, models) for way in ("ours, first", "ours")}


class Bare:
    """Each distinct forward on batches of ready tensors, text towers once for each prompt of a batch."""

    def __init__(self, metrics: Sequence[str], work: Work) -> None:
        models: Models = {}
        keys = [
            key for metric in Scorer(metrics, work.device, models=models).metrics.values() for key in metric.features
        ]
        runner = FeatureRunner(keys, work.device, models=models)
        self.encoders, self.device = runner._encoders, work.device
        texts = [text for text, pictures in work.by_prompt() for _ in pictures]
        pictures = work.pictures()
        self.batches: list[tuple[dict[Any, Tensor], list[str]]] = []
        for start in range(0, len(pictures), BLOCK):
            inputs = runner.prepare([read_image(path) for path in pictures[start : start + BLOCK]])
            ready = {preprocessing: pixels.to(work.device) for preprocessing, pixels in inputs.items()}
            self.batches.append((ready, texts[start : start + BLOCK]))

    def warm(self) -> None:
        """Load the weights and run one picture."""
        ready, texts = self.batches[0]
        self._run({preprocessing: pixels[:1] for preprocessing, pixels in ready.items()}, texts[:1])

    def run(self) -> float:
        """Return the seconds that all forward passes take."""
        begin = time.perf_counter()
        for ready, texts in self.batches:
            self._run(ready, texts)
        _wait(self.device)
        return time.perf_counter() - begin

    @torch.no_grad()
    def _run(self, ready: dict[Any, Tensor], texts: list[str]) -> None:
        passes: dict[Any, Any] = {}
        features: dict[str, Any] = {}
        for key, encoder in self.encoders.items():
            if encoder.reads == "features":
                features[key] = encoder.forward(*(features[inner] for inner in encoder.inputs))
                continue
            if encoder.reads == "text":
                distinct = list(dict.fromkeys(texts))
                output = encoder.forward(distinct)[[distinct.index(text) for text in texts]].to(self.device)
            else:
                assert encoder.preprocessing is not None
                name = (encoder.forward, encoder.preprocessing())
                if name not in passes:
                    passes[name] = encoder.forward(ready[encoder.preprocessing()])
                output = passes[name]
            features[key] = encoder.pick(output) if encoder.pick else output


def bare(metrics: Sequence[str], work: Work) -> dict[str, float]:
    """Time the forward passes in float32, as the metrics run them."""
    passes = Bare(metrics, work)
    with exact_float32(torch.device(work.device)):
        passes.warm()
        return {"bare": passes.run()}


def bf16(metrics: Sequence[str], work: Work) -> dict[str, float]:
    """Time the forward passes in bfloat16 and count their operations, beside the speed of one large product."""
    from torch.utils.flop_counter import FlopCounterMode

    passes = Bare(metrics, work)
    with FlopCounterMode(display=False) as counter:
        passes.run()
    with torch.autocast(torch.device(work.device).type, torch.bfloat16):
        passes.warm()
        seconds = passes.run()
    side = 8192
    matrix = torch.ones(side, side, device=work.device, dtype=torch.bfloat16)
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        for _ in range(10):
            matrix @ matrix
        _wait(work.device)
        peak = 10 * 2 * side**3 / (time.perf_counter() - begin)
    return {"bf16": seconds, "share": counter.get_total_flops() / seconds / peak}


def _seconds_of_a_run(metrics: Sequence[str], work: Work, models: Models) -> float:
    """Time the score stage on a fresh run directory that holds the pictures, until its evidence is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = [Prompt(text=text, id=f"p-{number}") for number, text in enumerate(work.prompts())]
        image_set = ImageSet(
            name="speed",
            prompts=PromptSet("speed", tuple(prompts)),
            images_per_prompt=work.images_per_prompt,
            protocol=None,
        )
        identity = {"name": "speed", "weights_digest": "0" * 64}
        run = Run.open(Path(folder) / "run", model=identity, suite="speed", sets=[image_set], block_size=BLOCK)
        pictures = iter(work.pictures())
        for block in range(run.count_blocks(image_set)):
            kept = [next(pictures).read_bytes() for _ in run.block(image_set, block)]
            run.keep_pictures(image_set, block, kept)
        begin = time.perf_counter()
        failed = score(run, image_set, metrics, work.device, models)
        _wait(work.device)
        seconds = time.perf_counter() - begin
        assert not failed, failed
        return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    way, *names, told = sys.argv[1:]
    work = Work(**json.loads(told))
    with architectures(work.small):
        measured = {"ours": ours, "bare": bare, "bf16": bf16}[way](names, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    print(json.dumps({**measured, "peak_gb": peak}))
