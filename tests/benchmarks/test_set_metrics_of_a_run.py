"""Statistics of a set by way of the run directory: neither blocks, nor their order, nor a stop moves them."""

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import score as engine
from benchmarks.prompts import PromptSet
from benchmarks.rows import read_parts
from benchmarks.score import identify, score
from benchmarks.store import ImageSet, Run
from metrics import base
from metrics.base import Card, Prompt
from metrics.diversity import PairwiseDiversity
from metrics.fid import FrechetMetric, KidMetric, PrecisionMetric, RecallMetric
from metrics.frechet import frechet_distance_of_features
from metrics.kernels import kid
from metrics.loaded import Scorer
from metrics.manifolds import precision, recall
from tests.benchmarks import toy_metrics

PROMPTS, SEEDS = 7, 3
REAL = np.random.default_rng(1).uniform(0.2, 0.9, (30, 3)).astype(np.float32)


class Reference:
    """Stands for a reference file: thirty mean colours."""

    def moments(self, output: str) -> tuple[np.ndarray, np.ndarray]:
        return REAL.mean(axis=0, dtype=np.float64), np.cov(REAL.astype(np.float64).T)

    def features(self) -> np.ndarray:
        return REAL


def metric(base_class: type, identity: str) -> type:
    class Toy(base_class):  # type: ignore[misc, valid-type]
        card: ClassVar[Card] = toy_metrics.card(identity, aggregate="set")
        features = ("toy:means",)
        reference = Reference()
        min_images = 4

    return Toy


SETS = {"toy_fid": FrechetMetric, "toy_kid": KidMetric, "toy_precision": PrecisionMetric, "toy_recall": RecallMetric}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for identity, base_class in SETS.items():
            patch.setitem(base._METRICS, identity, metric(base_class, identity))
        yield


def png(prompt: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng([prompt, seed]).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def opened(folder: Path, block_size: int) -> tuple[Run, ImageSet]:
    prompts = tuple(Prompt(text=f"prompt {n}", id=f"p-{n}", category="c") for n in range(PROMPTS))
    image_set = ImageSet(name="toys", prompts=PromptSet("toys", prompts), images_per_prompt=SEEDS, protocol=None)
    model = {"name": "m", "weights_digest": "0" * 64}
    run = Run.open(folder / "run", model=model, suite="toys", sets=[image_set], block_size=block_size)
    for block in range(run.count_blocks(image_set)):
        contents = [png(int(item.prompt.id[2:]), item.seed) for item in run.block(image_set, block)]
        run.keep_pictures(image_set, block, contents)
    return run, image_set


def values(run: Run, image_set: ImageSet) -> dict[str, float]:
    """Return the values that a result would hold."""
    scorer, found = Scorer([*SETS, "toy_spread"]), dict[str, float]()
    for identity in SETS:
        parts = read_parts(run.evidence("toys", identity), image_set.items, identify(identity, scorer), part=4)
        found[identity] = scorer.metrics[identity].summarise_parts(parts).value  # type: ignore[attr-defined]
    rows = engine_rows(run, image_set, scorer)
    per_image_N = PairwiseDiversity().summarise(rows, [item.prompt for item in image_set.items]).per_image_N
    assert per_image_N is not None
    return found | {"toy_spread": float(per_image_N.mean())}


def engine_rows(run: Run, image_set: ImageSet, scorer: Scorer) -> Any:
    from benchmarks.rows import read_rows

    return read_rows(run.evidence("toys", "toy_spread"), image_set.items, identify("toy_spread", scorer))


def expected() -> dict[str, float]:
    """Return the values from all features at once, in the plain forms."""
    means = [
        np.asarray(Image.open(io.BytesIO(png(p, s)))).mean(axis=(0, 1)) / 255
        for p in range(PROMPTS)
        for s in range(SEEDS)
    ]
    features = np.array(means, np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    spreads = [
        1 - np.mean([unit[i] @ unit[j] for i in range(at, at + SEEDS) for j in range(at, i)])
        for at in range(0, len(unit), SEEDS)
    ]
    return {
        "toy_fid": frechet_distance_of_features(features, REAL),
        "toy_kid": kid(features, REAL),
        "toy_precision": precision(features, REAL),
        "toy_recall": recall(features, REAL),
        "toy_spread": float(np.mean(spreads)),
    }


@settings(max_examples=12)
@given(
    block_size=st.integers(1, 22),
    order=st.randoms(use_true_random=False),
    stops=st.lists(st.integers(0, 20), max_size=2),
)
def test_blocks_their_order_and_stops_leave_every_value_alone(block_size: int, order: Any, stops: list[int]) -> None:
    wanted = expected()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        run, image_set = opened(Path(folder), block_size)
        plain = Run.claim

        def shuffled(self: Run, stage: str, blocks: Sequence[int], done: Any) -> Iterator[Any]:
            """Blocks in any order, as several processes take them."""
            pending = [block for block in blocks if not done(block)]
            order.shuffle(pending)
            for block in pending:
                yield from plain(self, stage, blocks, lambda other, block=block: other != block or done(other))

        patch.setattr(Run, "claim", shuffled)
        for stop in stops:
            with pytest.MonkeyPatch.context() as killed:
                killed.setattr(engine._Scoring, "merge", lambda scoring, metric: None)  # killed before the end,
                score(run, image_set, [*SETS, "toy_spread"], "cpu")
            lost = stop % run.count_blocks(image_set)
            for identity in SETS:  # while a block was being written
                run.shard("toys", identity, lost).unlink(missing_ok=True)
        assert score(run, image_set, [*SETS, "toy_spread"], "cpu") == {}
        found = values(run, image_set)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


def test_a_second_run_over_the_same_blocks_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kept = []
    for folder in ("a", "b"):
        run, image_set = opened(tmp_path / folder, 5)
        score(run, image_set, list(SETS), "cpu")
        kept.append({identity: run.evidence("toys", identity).read_bytes() for identity in SETS})
    assert kept[0] == kept[1]
