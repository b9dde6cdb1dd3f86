"""Our own ways of scoring, in a process of their own: `ours` (the engine on a run directory) and `bare` (forwards).

Started by tests.perf.scoring, which asks for one prompt's pictures at a time; `bf16` is measured at once.
"""

import importlib
import json
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
from tests.perf.scoring_inputs import Work, architectures, serve

BLOCK = 16  # pictures of a batch, at most
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


class Ours:
    """The score stage on a fresh run directory that holds a prompt's pictures, until its evidence is on the disk.

    The weights are read at the first call."""

    def __init__(self, metrics: Sequence[str], work: Work, models: Models) -> None:
        for module in LAZY:
            importlib.import_module(module)
        self.metrics, self.device, self.models = metrics, work.device, models

    def __call__(self, text: str, pictures: Sequence[Path]) -> None:
        """Score one prompt's pictures."""
        with tempfile.TemporaryDirectory() as folder:
            image_set = ImageSet(
                name="speed",
                prompts=PromptSet("speed", (Prompt(text=text, id="p"),)),
                images_per_prompt=len(pictures),
                protocol=None,
            )
            identity = {"name": "speed", "weights_digest": "0" * 64}
            run = Run.open(Path(folder) / "run", model=identity, suite="speed", sets=[image_set], block_size=BLOCK)
            left = iter(pictures)
            for block in range(run.count_blocks(image_set)):
                kept = [next(left).read_bytes() for _ in run.block(image_set, block)]
                run.keep_pictures(image_set, block, kept)
            failed = score(run, image_set, self.metrics, self.device, self.models)
            _wait(self.device)
            assert not failed, failed


class Bare:
    """Each distinct forward on a batch of ready tensors, float32; text towers once for a prompt."""

    def __init__(self, metrics: Sequence[str], work: Work, models: Models) -> None:
        keys = [
            key for metric in Scorer(metrics, work.device, models=models).metrics.values() for key in metric.features
        ]
        runner = FeatureRunner(keys, work.device, models=models)
        self.encoders, self.device = runner._encoders, work.device
        self.ready: dict[str, dict[Any, Tensor]] = {}
        for text, pictures in work.by_prompt():
            inputs = runner.prepare([read_image(path) for path in pictures])
            self.ready[text] = {preprocessing: pixels.to(work.device) for preprocessing, pixels in inputs.items()}

    @torch.no_grad()
    def __call__(self, text: str, pictures: Sequence[Path]) -> None:
        """Run all forward passes for one prompt's pictures."""
        ready = self.ready[text]
        passes: dict[Any, Any] = {}
        features: dict[str, Any] = {}
        for key, encoder in self.encoders.items():
            if encoder.reads == "features":
                features[key] = encoder.forward(*(features[inner] for inner in encoder.inputs))
                continue
            if encoder.reads == "text":
                output = encoder.forward([text])[[0] * len(pictures)].to(self.device)
            else:
                assert encoder.preprocessing is not None
                name = (encoder.forward, encoder.preprocessing())
                if name not in passes:
                    passes[name] = encoder.forward(ready[encoder.preprocessing()])
                output = passes[name]
            features[key] = encoder.pick(output) if encoder.pick else output
        _wait(self.device)


def bf16(metrics: Sequence[str], work: Work) -> dict[str, float]:
    """Time the forward passes in bfloat16 and count their operations, beside the speed of one large product."""
    from torch.utils.flop_counter import FlopCounterMode

    passes, prompts = Bare(metrics, work, {}), list(work.by_prompt())
    with FlopCounterMode(display=False) as counter:
        for one in prompts:
            passes(*one)
    with torch.autocast(torch.device(work.device).type, torch.bfloat16):
        passes(*prompts[0])
        begin = time.perf_counter()
        for one in prompts:
            passes(*one)
        seconds = time.perf_counter() - begin
    side = 8192
    matrix = torch.ones(side, side, device=work.device, dtype=torch.bfloat16)
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        for _ in range(10):
            matrix @ matrix
        _wait(work.device)
        peak = 10 * 2 * side**3 / (time.perf_counter() - begin)
    return {"bf16": seconds, "share": counter.get_total_flops() / seconds / peak}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main(way: str, metrics: Sequence[str], work: Work) -> None:
    """Serve `turns`, or print what `bf16` measures."""
    with architectures(work.small):
        if way == "bf16":
            print(json.dumps(bf16(metrics, work)))
            return
        models: Models = {}
        with exact_float32(torch.device(work.device)):
            serve({"ours": Ours(metrics, work, models), "bare": Bare(metrics, work, models)}, work)


if __name__ == "__main__":
    chosen, *names, told = sys.argv[1:]
    main(chosen, names, Work(**json.loads(told)))
