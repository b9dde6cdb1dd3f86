"""Stage 2: pictures → evidence. A metric that has its rows already is not measured again.

A block's pictures are decoded once for all metrics that miss its rows, preprocessed once for all encoders that read
them alike, and go through each encoder once, as one batch. Decoding and preprocessing run ahead on other threads, and
rows are written while the next block is measured, so that the encoders never wait for the disk.

A metric that fails (damaged weights, a score that is not finite) stops alone: the others are measured, and the reason
goes into the result.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from filelock import FileLock

from benchmarks.ahead import ReadAhead
from benchmarks.config import UserError
from benchmarks.progress import progress
from benchmarks.rows import Identity, merge_rows, write_rows
from benchmarks.store import ImageSet, Item, Run
from metrics.base import Batch, Features, Rows, make
from metrics.features import Inputs, Models
from metrics.images import read_image
from metrics.loaded import Scorer
from metrics.sets import WholePrompts

if TYPE_CHECKING:
    from PIL.Image import Image

DECODERS = 4  # threads that decode the pictures of the blocks ahead


def score(
    run: Run, image_set: ImageSet, metrics: Sequence[str], device: str, models: Models | None = None
) -> dict[str, str]:
    """Measure what is missing of some metrics on a drawn image set; return why metrics failed, by id.

    models: shared by the image sets of a run, so that weights are loaded once. A shard of a run measures its own
    blocks, except by metrics that need all pictures of a prompt.
    Raises UserError where pictures are missing or damaged."""
    undrawn = sum(run.drawn(image_set, block) is None for block in run.own_blocks(image_set))
    if undrawn:
        raise UserError(
            f"{run.path / image_set.name}: {undrawn} blocks are not drawn yet; run --stage generate first"
        )
    todo = [metric for metric in metrics if not run.evidence(image_set.name, metric).exists()]
    for metric in set(metrics) - set(todo):  # merged, then killed before the shards were gone
        shutil.rmtree(run.shard(image_set.name, metric, 0).parent, ignore_errors=True)
    models = {} if models is None else models
    together = [metric for metric in todo if isinstance(make(metric), WholePrompts)]
    failed = _Scoring(run, image_set, sorted(set(todo) - set(together)), device, models).work()
    if together and not run.sharded:  # a prompt's pictures may lie in several shards
        failed |= _Scoring(_by_prompt(run, image_set), image_set, together, device, models).work()
    return failed


def _by_prompt(run: Run, image_set: ImageSet) -> Run:
    """Return the run in blocks of whole prompts: at least one, and no larger than the run's where that can be."""
    images = image_set.images_per_prompt
    return replace(run, block_size=images * max(1, run.block_size // images))


def identify(metric: str, scorer: Scorer) -> Identity:
    """Return what decides a metric's rows besides the pictures. Raises UserError where its weights are damaged."""
    return {
        "metric": metric,
        "version": str(scorer.card(metric).version),
        "weights_digest": scorer.weights_digest(metric),
        "precision": scorer.precision(metric),
    }


class _Scoring:
    """The metrics being measured on one image set; `failed` grows, the scorer shrinks with it."""

    def __init__(self, run: Run, image_set: ImageSet, metrics: Sequence[str], device: str, models: Models) -> None:
        self.run, self.image_set, self.device, self.models = run, image_set, device, models
        self.blocks = run.own_blocks(image_set)
        self.failed: dict[str, str] = {}
        self.identities: dict[str, Identity] = {}
        everything = Scorer(metrics, device, models=models)
        for metric in metrics:
            try:
                self.identities[metric] = identify(metric, everything)
            except UserError as error:
                self.failed[metric] = str(error)
        self.scorer = self._make_scorer(self.identities)

    def work(self) -> dict[str, str]:
        """Measure all that is missing; return `failed`."""
        name = self.image_set.name
        images = sum(len(self.run.block(self.image_set, n)) for n in self.blocks if self.missing(n))
        stage = f"score-{name}-{self.run.block_size}"  # blocks of another size are other blocks
        claims = self.run.claim(stage, self.blocks, lambda n: not self.missing(n))
        with (
            progress(f"{name}: scoring", images) as advance,
            ThreadPoolExecutor(DECODERS) as self._decoders,
            ThreadPoolExecutor(max_workers=1) as writer,
            ReadAhead(claims, lambda block: self.scorer.prepare(self._read(block))) as ahead,
        ):
            written: Future[None] | None = None
            for block, lock, prepared in ahead:
                with ExitStack() as held:
                    held.callback(lock.release)
                    rows = self.score_block(block, prepared)
                    if written:
                        written.result()
                    held.pop_all()  # the writer lets go of it
                written = writer.submit(self.write_block, block, lock, rows)
                advance(len(self.run.block(self.image_set, block)))
            if written:
                written.result()
        for metric in self.identities:
            if metric not in self.failed and not self.run.sharded:
                self.merge(metric)
        return self.failed

    def missing(self, block: int) -> list[str]:
        """Return the metrics that lack a block's rows."""
        run, name = self.run, self.image_set.name
        return [
            metric
            for metric in self.identities
            if metric not in self.failed
            and not run.shard(name, metric, block).exists()
            and not run.evidence(name, metric).exists()  # merged by another process
        ]

    def score_block(self, block: int, prepared: Future[Inputs]) -> dict[str, Rows]:
        """Return the rows that a block lacks, by metric."""
        items = self.run.block(self.image_set, block)
        batch = Batch(prompts=[item.prompt for item in items], seeds=[item.seed for item in items])
        features = self._features(block, prepared, batch)
        rows = {}
        for metric in self.missing(block):
            try:
                rows[metric] = self.scorer.measure(metric, features, batch)
            except UserError as error:
                self.failed[metric] = str(error)
        return rows

    def write_block(self, block: int, lock: FileLock, rows: Mapping[str, Rows]) -> None:
        """Keep a block's rows, then let go of it."""
        try:
            items = self.run.block(self.image_set, block)
            for metric, columns in rows.items():
                shard = self.run.shard(self.image_set.name, metric, block)
                write_rows(shard, items, columns, self.identities[metric])
        finally:
            lock.release()

    def merge(self, metric: str) -> None:
        """Join a metric's shards to one file. Another process may have done it."""
        run, name = self.run, self.image_set.name
        with run.lock(f"merge-{name}-{metric}"):
            whole = run.evidence(name, metric)
            shards = [run.shard(name, metric, block) for block in self.blocks]
            try:
                if not whole.exists():
                    merge_rows(whole, shards, self.identities[metric])
                shutil.rmtree(shards[0].parent, ignore_errors=True)
            except UserError as error:
                self.failed[metric] = str(error)

    def _features(self, block: int, prepared: Future[Inputs], batch: Batch) -> Features:
        """Return a block's features, without the metrics for which they cannot be computed."""
        try:
            return self.scorer.features(prepared.result(), batch)
        except UserError:
            images = self._read(block)  # raises where a picture is at fault
        try:
            return self.scorer.features(images, batch)  # metrics may have been dropped since it was prepared
        except UserError:
            self._drop_failing(images, batch)
            return self.scorer.features(images, batch)

    def _drop_failing(self, images: Sequence["Image"], batch: Batch) -> None:
        """Find the metrics whose features cannot be computed, and go on without them."""
        healthy = []
        for metric in self.scorer.metrics:
            try:
                self._make_scorer([metric]).features(images, batch)
                healthy.append(metric)
            except UserError as error:
                self.failed[metric] = str(error)
        self.scorer = self._make_scorer(healthy)

    def _make_scorer(self, metrics: Iterable[str]) -> Scorer:
        texts = [prompt.text for prompt in self.image_set.prompts.prompts]
        return Scorer(metrics, self.device, texts, self.models)

    def _read(self, block: int) -> list["Image"]:
        return list(self._decoders.map(self._read_picture, self.run.block(self.image_set, block)))

    def _read_picture(self, item: Item) -> "Image":
        path = self.run.image(self.image_set.name, item)
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(f"{error} (delete the file and start again)") from error
