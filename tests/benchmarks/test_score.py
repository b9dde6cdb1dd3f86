"""The scoring engine: what is read and computed how often, and what is left when something fails."""

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import score as engine
from benchmarks.ahead import AHEAD
from benchmarks.prompts import PromptSet
from benchmarks.score import score
from benchmarks.store import ImageSet, Run
from metrics.base import Prompt, UserError
from tests.benchmarks import toy_metrics

BLOCK = 3
METRICS = ["toy_redness", "toy_verdict", "toy_spread"]
Drawn = tuple[Run, ImageSet]


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    """A run directory with 10 prompts x 2 pictures, in blocks of 3 (the last one of 2)."""
    prompts = tuple(Prompt(text=f"a red circle {n}", id=f"p-{n}", category="c") for n in range(10))
    image_set = ImageSet(name="toys", prompts=PromptSet("toys", prompts), images_per_prompt=2, protocol=None)
    model = {"name": "m", "weights_digest": "0" * 64}
    run = Run.open(tmp_path / "run", model=model, suite="toys", sets=[image_set], block_size=BLOCK)
    for block in range(run.count_blocks(image_set)):
        contents = []
        for item in run.block(image_set, block):
            path = tmp_path / "picture.png"
            Image.new("RGB", (8, 8), (int(item.prompt.id[2:]) * 20, 50 * item.seed, 100)).save(path)
            contents.append(path.read_bytes())
        run.keep_pictures(image_set, block, contents)
    return run, image_set


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture was read."""
    counts: Counter[str] = Counter()
    plain: Callable[[Path], Image.Image] = engine.read_image

    def read(path: Path) -> Image.Image:
        counts[str(path)] += 1
        return plain(path)

    monkeypatch.setattr(engine, "read_image", read)
    return counts


def test_a_picture_is_decoded_once_for_all_metrics_and_never_again(drawn: Drawn, reads: Counter[str]) -> None:
    assert score(*drawn, METRICS, "cpu") == {}
    assert len(reads) == 20 and set(reads.values()) == {1}
    assert score(*drawn, METRICS, "cpu") == {}
    assert sum(reads.values()) == 20


def test_only_blocks_that_lack_rows_are_read_again(drawn: Drawn, reads: Counter[str]) -> None:
    run, image_set = drawn
    score(run, image_set, ["toy_redness"], "cpu")
    whole = run.evidence("toys", "toy_redness").read_bytes()
    run.evidence("toys", "toy_redness").unlink()
    reads.clear()
    with pytest.MonkeyPatch.context() as patch:  # killed before the last two blocks, and before the merge
        patch.setattr(engine._Scoring, "merge", lambda scoring, metric: None)
        score(run, image_set, ["toy_redness"], "cpu")
    for block in (5, 6):
        run.shard("toys", "toy_redness", block).unlink()
    reads.clear()
    score(run, image_set, ["toy_redness"], "cpu")
    assert sum(reads.values()) == 5
    assert run.evidence("toys", "toy_redness").read_bytes() == whole


def test_a_prompt_of_several_seeds_is_encoded_once_for_all_blocks_and_metrics(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, image_set = drawn
    prompts = PromptSet("four", image_set.prompts.prompts[:5])
    four = ImageSet(name="four", prompts=prompts, images_per_prompt=4, protocol=None)
    for block in range(run.count_blocks(four)):
        contents = [run.image("toys", item).read_bytes() for item in run.block(image_set, block)]
        run.keep_pictures(four, block, contents)
    encoded = Counter[str]()
    plain = toy_metrics.text_lengths

    def counting(texts: list[str]) -> object:
        encoded.update(texts)
        return plain(texts)

    monkeypatch.setattr(toy_metrics, "text_lengths", counting)
    assert score(run, four, ["toy_long", "toy_wordy"], "cpu") == {}
    assert len(run.block(four, 0)) == 3 < 4  # a prompt's pictures lie in two blocks
    assert encoded == dict.fromkeys((prompt.text for prompt in prompts.prompts), 1)
    assert score(run, four, ["toy_long", "toy_wordy"], "cpu") == {}
    assert encoded.total() == 5


def test_memory_is_bounded_whatever_the_number_of_pictures(
    drawn: Drawn, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, scored = [], 0
    plain = engine._Scoring.score_block

    def counting(scoring: engine._Scoring, *arguments: object) -> object:
        nonlocal scored
        ahead.append(sum(reads.values()) - scored * BLOCK)
        rows = plain(scoring, *arguments)  # type: ignore[arg-type]
        scored += 1
        return rows

    monkeypatch.setattr(engine._Scoring, "score_block", counting)
    score(*drawn, ["toy_redness"], "cpu")
    assert max(ahead) <= (AHEAD + 1) * BLOCK


def test_a_damaged_picture_is_one_line_and_what_was_measured_stays(drawn: Drawn) -> None:
    run, image_set = drawn
    damaged = run.image("toys", run.block(image_set, 4)[1])
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:50])
    with pytest.raises(UserError, match=rf"{damaged.name}: truncated or damaged .*delete the file and start again"):
        score(run, image_set, METRICS, "cpu")
    kept = {block for block in range(4) if run.shard("toys", "toy_redness", block).exists()}
    assert kept == {0, 1, 2, 3}
    damaged.write_bytes(whole)
    assert score(run, image_set, METRICS, "cpu") == {}


def test_a_header_of_a_huge_picture_is_refused_before_it_is_decoded(drawn: Drawn) -> None:
    run, image_set = drawn
    huge = run.image("toys", run.block(image_set, 0)[0])
    content = bytearray(huge.read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2  # width and height in the PNG's first chunk,
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")  # and its checksum
    huge.write_bytes(content)
    with pytest.raises(UserError, match=f"{huge.name}: .*the largest picture read is 8192x8192"):
        score(run, image_set, METRICS, "cpu")


def test_metrics_whose_features_fail_leave_the_others(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Counter[str]()

    def broken(arrays: object) -> object:
        loads["broken"] += 1
        raise UserError("model.safetensors: truncated")

    monkeypatch.setattr(toy_metrics, "broken_forward", broken)
    failed = score(*drawn, ["toy_redness", "toy_broken", "toy_spread"], "cpu")
    assert failed == {"toy_broken": "model.safetensors: truncated"}
    run, _ = drawn
    assert run.evidence("toys", "toy_redness").exists() and run.evidence("toys", "toy_spread").exists()
    assert not run.evidence("toys", "toy_broken").exists()
    assert loads["broken"] <= 3  # found once, not block by block


def test_a_score_that_is_not_finite_stops_its_metric_only(drawn: Drawn) -> None:
    run, image_set = drawn
    prompts = tuple(Prompt(text=p.text, id="colors-1" if p.id == "p-7" else p.id) for p in image_set.prompts.prompts)
    assert score(run, image_set, ["toy_nan"], "cpu") == {}
    other = ImageSet(name="other", prompts=PromptSet("other", prompts), images_per_prompt=2, protocol=None)
    for block in range(run.count_blocks(other)):
        contents = [run.image("toys", item).read_bytes() for item in run.block(image_set, block)]
        run.keep_pictures(other, block, contents)
    failed = score(run, other, ["toy_nan", "toy_redness"], "cpu")
    assert list(failed) == ["toy_nan"] and "'colors-1', seed 0, is not finite" in failed["toy_nan"]
    assert run.evidence("other", "toy_redness").exists()


def test_image_sets_of_a_run_share_the_loaded_models(drawn: Drawn) -> None:
    models: dict = {}
    score(*drawn, ["toy_redness"], "cpu", models)
    made = models["toy"]
    score(*drawn, ["toy_verdict"], "cpu", models)
    assert models["toy"] is made
