"""Speed of drawing through a run directory, against calling the pipeline itself in batches of the same size.

    python -m tests.perf.generation [--model FOLDER | --heavy] [--images 512] [--batch-size 16] [--record]

The two take turns, block by block, so that a busy machine slows both alike. The direct call keeps nothing; the run
encodes, writes and journals every picture, and draws six more one at a time, to tell what a single picture costs:
with few pictures that is what one measures. Bar: at least 0.95 of the direct speed where the network dominates
(--heavy: a random SD3 whose network takes nearly all of a picture's time on a CPU, 4 steps of 128 x 128 pixels), 0.9
for the micro world, whose networks are tiny.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro

from benchmarks.generate import generate
from benchmarks.models import Pipeline, noise_generator, open_model
from benchmarks.prompts import PromptSet
from benchmarks.protocol import Protocol
from benchmarks.samplers import FewStepScheduler
from benchmarks.store import ImageSet, Item, Run
from benchmarks.workflow import pick_device
from leaderboards.studies import Speed
from metrics.base import Prompt
from tests.perf.record import machine, record
from tests.shrunken.families import make_heavy

BAR, HEAVY_BAR = 0.9, 0.95


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the speed of drawing."""

    model: Path = Path("benchmarks/micro/pipeline")
    heavy: bool = False  # the larger random network instead
    images: int = 512
    batch_size: int = 16
    steps: int | None = None
    rounds: int = 3
    device: str = "auto"
    record: bool = False  # keep the ratio for the page


def main(arguments: Arguments) -> None:
    """Print images per second of both ways, and their ratio."""
    if not arguments.heavy:
        return measure(arguments, BAR)
    with tempfile.TemporaryDirectory() as place:
        return measure(replace(arguments, model=make_heavy(Path(place) / "heavy")), HEAVY_BAR)


def measure(arguments: Arguments, bar: float) -> None:
    """Measure one model."""
    model = open_model(arguments.model, device=pick_device(arguments.device))
    assert isinstance(model, Pipeline)
    protocol = model.protocol
    if arguments.steps:
        protocol = replace(protocol, num_inference_steps=arguments.steps, sigmas=())
    image_set = image_set_of(protocol, arguments.images)
    starts = range(0, arguments.images, arguments.batch_size)
    batches = [image_set.items[start : start + arguments.batch_size] for start in starts]
    ours_seconds(model, image_set, arguments.batch_size)  # loads the weights and warms up
    ratios = []
    for _ in range(arguments.rounds):
        direct, ours = direct_seconds(model, image_set, batches), ours_seconds(model, image_set, arguments.batch_size)
        ratios.append(direct / ours)
        print(f"direct {arguments.images / direct:7.1f} images/s, run {arguments.images / ours:7.1f} images/s")
    print(f"ratio {median(ratios):.3f} (bar {bar}; rounds {', '.join(f'{ratio:.3f}' for ratio in ratios)})")
    if arguments.record:
        record([speed(arguments, median(ratios), bar)])


def image_set_of(protocol: Protocol, count: int) -> ImageSet:
    """Return so many pictures of prompts that differ in nothing but their ids."""
    prompts = tuple(Prompt(text="a photo of a red circle", id=f"p-{n}") for n in range(count))
    return ImageSet(name="speed", prompts=PromptSet("speed", prompts), images_per_prompt=1, protocol=protocol)


def speed(arguments: Arguments, ratio: float, bar: float) -> Speed:
    """Return the row of the page."""
    pictures = f"{arguments.images} pictures in batches of {arguments.batch_size}, {arguments.model.name}"
    return Speed(
        id=f"generation-{arguments.model.name}".lower().replace("_", "-"),
        what="drawing into a run directory",
        ours="every picture encoded, written and journalled",
        other="the stock pipeline in batches of the same size, nothing kept",
        ratio=round(ratio, 3),
        repetitions=arguments.rounds,
        wanted=bar,
        setting=f"{pictures}; {machine(pick_device(arguments.device))}",
    )


def direct_seconds(model: Pipeline, image_set: ImageSet, batches: list[tuple[Item, ...]]) -> float:
    """Time the stock pipeline's own calls, pictures kept in memory."""
    protocol = image_set.protocol
    assert protocol is not None
    pipe = model.loaded(protocol)
    start = time.perf_counter()
    for items in batches:
        generators = [noise_generator(protocol.seed, item.prompt.id, item.seed) for item in items]
        if isinstance(pipe.scheduler, FewStepScheduler):
            pipe.scheduler.generators = generators
        with torch.inference_mode():
            pipe(
                prompt=[item.prompt.text for item in items],
                generator=generators,
                num_inference_steps=protocol.num_inference_steps,
                guidance_scale=protocol.guidance_scale,
                height=protocol.height,
                width=protocol.width,
                **protocol.call_arguments,
            )
    return time.perf_counter() - start


def ours_seconds(model: Pipeline, image_set: ImageSet, batch_size: int) -> float:
    """Time the generate stage into a fresh run directory, until its last picture is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        identity = {"name": "speed", "weights_digest": model.digest}
        run = Run.open(Path(folder), model=identity, suite="speed", sets=[image_set], block_size=batch_size)
        start = time.perf_counter()
        generate(run, image_set, model)
        return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m tests.perf.generation"))
