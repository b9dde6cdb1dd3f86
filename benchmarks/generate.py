"""Stage 1: model + protocol → pictures. Only blocks that are missing are drawn.

While a block is drawn, the one before it is written: encoding and fsync cost the model no time.
"""

import io
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from benchmarks.config import UserError
from benchmarks.cost import SINGLE, SINGLES
from benchmarks.functions import FunctionModel
from benchmarks.models import Drawn, Model, Pipeline, noise_generator
from benchmarks.pictures import PictureFolder
from benchmarks.progress import progress
from benchmarks.store import WRITERS, ImageSet, Item, Run

if TYPE_CHECKING:
    from PIL.Image import Image


def generate(run: Run, image_set: ImageSet, model: Model) -> None:
    """Draw (or copy) the blocks of an image set that are missing.

    Raises UserError where the model cannot be loaded, or pictures made elsewhere are missing or damaged; blocks that
    are done stay done."""
    own = run.own_blocks(image_set)
    missing = sum(len(run.block(image_set, n)) for n in own if not run.drawn(image_set, n))
    claims = run.claim(f"generate-{image_set.name}", own, lambda n: run.drawn(image_set, n) is not None)
    with progress(f"{image_set.name}: drawing", missing) as advance:
        if isinstance(model, PictureFolder):
            _copy_blocks(run, image_set, model, claims, advance)
        else:
            _draw_blocks(run, image_set, model, claims, advance)


def draw(model: Pipeline | FunctionModel, image_set: ImageSet, items: Sequence[Item]) -> Drawn:
    """Return the pictures of one block."""
    if isinstance(model, FunctionModel):
        noise = [noise_generator(0, item.prompt.id, item.seed) for item in items]
        return Drawn(model.draw([item.prompt.text for item in items], noise), nfe=None)
    protocol = image_set.protocol
    assert protocol is not None  # image sets of pipelines have one
    generators = [noise_generator(protocol.seed, item.prompt.id, item.seed) for item in items]
    return model.generate([item.prompt.text for item in items], generators, protocol)


def as_png(image: "Image") -> bytes:
    """Return the bytes of a PNG file. Fast compression: pictures are drawn more often than they are shipped."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _draw_blocks(
    run: Run,
    image_set: ImageSet,
    model: Pipeline | FunctionModel,
    claims: Iterator[tuple[int, FileLock]],
    advance: Any,
) -> None:
    def keep(held: ExitStack, block: int, drawn: Drawn, seconds: float, warm: bool) -> None:
        with held:
            contents = list(encoders.map(as_png, drawn.images))
            facts = {"images": len(contents), "warm": warm, "device": _device_name(model.device)}
            run.keep_pictures(image_set, block, contents, nfe=drawn.nfe, **facts, **_taken(drawn, seconds))

    number = -1
    with ThreadPoolExecutor(WRITERS) as encoders, ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for number, (block, lock) in enumerate(claims):
            with ExitStack() as held:  # by this loop until the block is drawn, then by whoever writes it
                held.callback(lock.release)
                start = time.perf_counter()
                drawn = draw(model, image_set, run.block(image_set, block))
                seconds = time.perf_counter() - start
                if writing:
                    writing.result()
                writing = writer.submit(keep, held.pop_all(), block, drawn, seconds, number > 0)
            advance(len(drawn.images))
        if writing:
            writing.result()
    if number > 0 and run.block_size > 1:  # neither a run that had all its pictures, nor one of a single block
        _time_singles(run, image_set, model)


def _time_singles(run: Run, image_set: ImageSet, model: Pipeline | FunctionModel) -> None:
    """Note in the journal what images cost that are drawn one at a time; the pictures are not kept."""
    singles = []
    for _ in range(1 + SINGLES):
        start = time.perf_counter()
        drawn = draw(model, image_set, image_set.items[:1])
        singles.append(_taken(drawn, time.perf_counter() - start))
    run.journal.append(set=image_set.name, block=SINGLE, singles=singles[1:])


def _taken(drawn: Drawn, seconds: float) -> dict[str, Any]:
    """Return what a batch took, as the journal holds it."""
    stages = {stage: round(of_stage, 6) for stage, of_stage in drawn.stages.items()}
    return {"seconds": round(seconds, 4), "stages": stages, "peak_memory_mib": drawn.peak_memory_mib}


def _device_name(device: str) -> str:
    """Return what a reader calls the device: a GPU's product name, else the kind of processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device}, {platform.machine()}"


def _copy_blocks(
    run: Run, image_set: ImageSet, model: PictureFolder, claims: Iterator[tuple[int, FileLock]], advance: Any
) -> None:
    """Copy pictures made elsewhere, after decoding each once; whole blocks are kept even where others have faults."""
    faults: list[str] = []
    for block, lock in claims:
        try:
            paths = [model.find(item.prompt, item.seed) for item in run.block(image_set, block)]
            faults_here = [fault for path in paths if (fault := _fault(path))]
            if not faults_here:
                run.keep_pictures(image_set, block, [path.read_bytes() for path in paths])
        finally:
            lock.release()
        faults += faults_here
        advance(len(paths))
    if faults:
        raise UserError(
            f"{model.folder}: {len(faults)} of {len(image_set.items)} pictures cannot be used (first: "
            f"{faults[0]}); mend them and start again, what was read is kept"
        )


def _fault(path: Path) -> str:
    """Return what is wrong with a picture, or ""."""
    from metrics.images import read_image

    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return ""
