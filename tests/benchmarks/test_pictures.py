import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.plan import Overrides
from benchmarks.store import Journal
from benchmarks.workflow import Settings, evaluate
from metrics.base import UserError
from tests.benchmarks.conftest import PROMPTS

Make = Callable[..., Settings]


def picture(prompt: int, seed: int) -> Image.Image:
    pixels = np.full((16, 16, 3), 40, np.uint8)
    pixels[..., 0] = 20 * prompt + 5 * seed
    return Image.fromarray(pixels)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    for number, record in enumerate(PROMPTS):
        (folder / record["id"]).mkdir(parents=True)
        for seed in range(2):
            picture(number, seed).save(folder / record["id"] / f"{seed}.png")
    return folder


@pytest.fixture
def genevals(tmp_path: Path) -> Path:
    """GenEval's layout, its folders in another order than the prompt file and its samples numbered in four digits."""
    folder = tmp_path / "geneval"
    for place, number in enumerate(reversed(range(len(PROMPTS)))):
        inside = folder / f"{place:05d}"
        (inside / "samples").mkdir(parents=True)
        (inside / "metadata.jsonl").write_text(json.dumps({"prompt": PROMPTS[number]["prompt"], "tag": "x"}))
        for seed in range(2):
            picture(number, seed).save(inside / "samples" / f"{seed:04d}.png")
        (inside / "grid.png").write_bytes(b"not a sample")
    return folder


def test_both_layouts_of_the_same_pictures_give_the_same_evidence(
    ours: Path, genevals: Path, suite: Path, settings: Make
) -> None:
    first = evaluate(ours, str(suite), settings("first", name="m"))
    second = evaluate(genevals, str(suite), settings("second", name="m"))
    assert first.evidence == second.evidence
    assert first.tasks[0].metrics["toy_redness"].value == pytest.approx(sum(20 * n + 2.5 for n in range(5)) / 5 / 255)
    assert (first.tasks[0].nfe, first.cost.parameters, first.tasks[0].protocol) == (None, None, {})
    assert first.status == "ranked"


def test_a_metric_that_cannot_judge_the_prompts_is_failed_with_counts_and_the_rest_is_kept(
    ours: Path, suite: Path, settings: Make
) -> None:
    suite.write_text(suite.read_text().replace('"toy_verdict"', '"shapes_geneval"'))
    result = evaluate(ours, str(suite), settings(name="m"))
    metrics = result.tasks[0].metrics
    assert {name: metric.status for name, metric in metrics.items()} == {
        "toy_redness": "ok",
        "toy_spread": "ok",
        "shapes_geneval": "failed",
    }
    assert metrics["shapes_geneval"].value is None
    assert metrics["shapes_geneval"].reason.startswith(
        "5 of 5 prompts cannot be judged (first: prompt 'a red circle'"
    )
    assert (result.status, result.tasks[0].reason) == ("partial", "failed: shapes_geneval")


def test_missing_and_truncated_pictures_are_counted_and_nothing_is_lost(
    ours: Path, suite: Path, settings: Make
) -> None:
    broken = ours / "two-0" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (ours / "two-1" / "0.png").unlink()
    with pytest.raises(
        UserError, match=r"2 of 10 pictures cannot be used \(first: .*two-0/1.png: truncated"
    ) as caught:
        evaluate(ours, str(suite), settings(name="m"))
    assert "\n" not in str(caught.value)
    assert sorted(Journal(settings().out / "journal.jsonl").drawn()) == [("toys", 0), ("toys", 1), ("toys", 3)]


def test_the_digest_sees_every_picture(ours: Path, suite: Path, settings: Make) -> None:
    evaluate(ours, str(suite), settings())
    picture(9, 9).save(ours / "colors-0" / "0.png")
    with pytest.raises(UserError, match="weights_digest"):
        evaluate(ours, str(suite), settings())


def test_pictures_of_another_size_are_for_another_task(ours: Path, suite: Path, settings: Make) -> None:
    suite.write_text(suite.read_text().replace("16x16", "64x64"))
    with pytest.raises(UserError, match="draw 64x64 pictures; this one draws 16x16"):
        evaluate(ours, str(suite), settings())


def test_pictures_have_no_protocol_to_change(ours: Path, suite: Path, settings: Make) -> None:
    with pytest.raises(UserError, match="no num_inference_steps to change"):
        evaluate(ours, str(suite), settings(overrides=Overrides(steps=4)))


def test_a_folder_of_neither_layout_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        evaluate(tmp_path / "x", "micro")


def test_genevals_folders_need_their_metadata(genevals: Path, suite: Path, settings: Make) -> None:
    (genevals / "00002" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"metadata\.jsonl: missing"):
        evaluate(genevals, str(suite), settings())
    shutil.copytree(genevals / "00001", genevals / "00002", dirs_exist_ok=True)
    with pytest.raises(UserError, match="stands in two folders"):
        evaluate(genevals, str(suite), settings("other"))
