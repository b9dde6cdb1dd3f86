"""Stage 2: pictures → evidence. A metric that has its rows already is not measured again.

A block's pictures are decoded once for all metrics that miss its rows. A metric that fails (damaged weights, a score
that is not finite) stops alone: the others are measured, and the reason goes into the result.
"""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.config import UserError
from benchmarks.progress import progress
from benchmarks.rows import Identity, merge_rows, write_rows
from benchmarks.store import ImageSet, Item, Run
from metrics.base import Batch
from metrics.images import read_image
from metrics.loaded import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image


def score(run: Run, image_set: ImageSet, metrics: Sequence[str], device: str) -> dict[str, str]:
    """Measure what is missing of some metrics on a drawn image set; return why metrics failed, by id.

    Raises UserError where pictures are missing or damaged."""
    undrawn = sum(run.drawn(image_set, block) is None for block in range(run.count_blocks(image_set)))
    if undrawn:
        raise UserError(
            f"{run.path / image_set.name}: {undrawn} blocks are not drawn yet; run --stage generate first"
        )
    todo = [metric for metric in metrics if not run.evidence(image_set.name, metric).exists()]
    for metric in set(metrics) - set(todo):  # merged, then killed before the shards were gone
        shutil.rmtree(run.shard(image_set.name, metric, 0).parent, ignore_errors=True)
    return _Scoring(run, image_set, todo, device).work()


def identify(metric: str, scorer: Scorer) -> Identity:
    """Return what decides a metric's rows besides the pictures. Raises UserError where its weights are damaged."""
    return {
        "metric": metric,
        "version": str(scorer.card(metric).version),
        "weights_digest": scorer.weights_digest(metric),
    }


class _Scoring:
    """The metrics being measured on one image set; `failed` grows, the scorer shrinks with it."""

    def __init__(self, run: Run, image_set: ImageSet, metrics: Sequence[str], device: str) -> None:
        self.run, self.image_set, self.device = run, image_set, device
        self.count = run.count_blocks(image_set)
        self.failed: dict[str, str] = {}
        self.identities: dict[str, Identity] = {}
        everything = Scorer(metrics, device)
        for metric in metrics:
            try:
                self.identities[metric] = identify(metric, everything)
            except UserError as error:
                self.failed[metric] = str(error)
        self.scorer = Scorer(self.identities, device)

    def work(self) -> dict[str, str]:
        """Measure all that is missing; return `failed`."""
        name = self.image_set.name
        images = sum(len(self.run.block(self.image_set, n)) for n in range(self.count) if self.missing(n))
        claims = self.run.claim(f"score-{name}", self.count, lambda n: not self.missing(n))
        with progress(f"{name}: scoring", images) as advance:
            for block, lock in claims:
                try:
                    self.score_block(block)
                finally:
                    lock.release()
                advance(len(self.run.block(self.image_set, block)))
        for metric in self.identities:
            if metric not in self.failed:
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

    def score_block(self, block: int) -> None:
        """Write the rows that a block lacks."""
        items = self.run.block(self.image_set, block)
        images = [self._read(item) for item in items]
        batch = Batch(prompts=[item.prompt for item in items], seeds=[item.seed for item in items])
        try:
            features = self.scorer.features(images, batch)
        except UserError:
            self._drop_failing(images, batch)
            features = self.scorer.features(images, batch)
        for metric in self.missing(block):
            try:
                rows = self.scorer.measure(metric, features, batch)
            except UserError as error:
                self.failed[metric] = str(error)
                continue
            write_rows(self.run.shard(self.image_set.name, metric, block), items, rows, self.identities[metric])

    def merge(self, metric: str) -> None:
        """Join a metric's shards to one file. Another process may have done it."""
        run, name = self.run, self.image_set.name
        with run.lock(f"merge-{name}-{metric}"):
            whole = run.evidence(name, metric)
            shards = [run.shard(name, metric, block) for block in range(self.count)]
            try:
                if not whole.exists():
                    merge_rows(whole, shards, self.identities[metric])
                shutil.rmtree(shards[0].parent, ignore_errors=True)
            except UserError as error:
                self.failed[metric] = str(error)

    def _drop_failing(self, images: Sequence["Image"], batch: Batch) -> None:
        """Find the metrics whose features cannot be computed, and go on without them."""
        healthy = []
        for metric in self.scorer.metrics:
            try:
                Scorer([metric], self.device).features(images, batch)
                healthy.append(metric)
            except UserError as error:
                self.failed[metric] = str(error)
        self.scorer = Scorer(healthy, self.device)

    def _read(self, item: Item) -> "Image":
        path = self.run.image(self.image_set.name, item)
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(f"{error} (delete the file and start again)") from error
