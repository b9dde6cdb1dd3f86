"""A model on a suite, end to end: what a run leaves behind does not depend on how it came about."""

import json
import multiprocessing
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from benchmarks.cost import SINGLE, SINGLES
from benchmarks.models import open_model
from benchmarks.overlap import write_fingerprints
from benchmarks.plan import Overrides
from benchmarks.screen import show_result
from benchmarks.store import JOURNAL, RESULT, Run
from benchmarks.workflow import Settings, check, evaluate, prepare, work
from leaderboards import evidence
from leaderboards.schema import Result, read_result
from leaderboards.store import read_entry
from metrics.base import Prompt, Rows, Summary, UserError
from metrics.questions import QuestionSummary, group_questions
from tests.benchmarks import toy_metrics

Make = Callable[..., Settings]
TWO_TASKS = """
[[tasks]]
name = "few"
prompts = "prompts.jsonl"
images_per_prompt = 1
metrics = ["toy_redness"]
[[tasks]]
name = "many"
prompts = "prompts.jsonl"
images_per_prompt = 2
metrics = ["toy_redness", "toy_spread"]
[[tasks]]
name = "guided"
prompts = "prompts.jsonl"
images_per_prompt = 1
metrics = ["toy_redness"]
[tasks.protocol]
guidance_scale = 3.0
"""


def frozen(run: Path) -> dict[str, bytes]:
    """Return all that a run left behind, but for what is volatile: times and locks."""
    result = json.loads((run / RESULT).read_text())
    del result["volatile"]
    files = [path for path in run.rglob("*") if path.suffix in (".png", ".parquet", ".jsonl", ".json")]
    volatile = {"journal.jsonl", RESULT}
    kept = {str(path.relative_to(run)): path.read_bytes() for path in files if path.name not in volatile}
    return {**kept, RESULT: json.dumps(result, sort_keys=True).encode()}


def blocks_drawn(run: Path) -> list[int]:
    """Return the blocks in the order in which they were drawn, again and again where that happened."""
    blocks = [json.loads(line)["block"] for line in (run / JOURNAL).read_text().splitlines()]
    return [block for block in blocks if block != SINGLE]


def rewrite(suite: Path, old: str, new: str) -> str:
    suite.write_text(suite.read_text().replace(old, new))
    return str(suite)


def grey_levels(run: Path) -> np.ndarray:
    """Return the pictures of a run, [N, H, W, 3]."""
    return np.stack([np.asarray(Image.open(path), np.int16) for path in sorted(run.rglob("*.png"))])


def values(result: Result) -> dict[str, float | None]:
    return {name: metric.value for task in result.tasks for name, metric in task.metrics.items()}


def in_another_process(pipeline: Path, suite: Path, settings: Settings) -> "multiprocessing.process.BaseProcess":
    """Start an evaluation in a forked process, which has torch loaded already."""
    process = multiprocessing.get_context("fork").Process(target=evaluate, args=(pipeline, str(suite), settings))
    process.start()
    return process


@pytest.fixture
def uninterrupted(pristine_pipeline: Path, suite: Path, settings: Make) -> dict[str, bytes]:
    evaluate(pristine_pipeline, str(suite), settings("uninterrupted"))
    return frozen(settings("uninterrupted").out)


def test_a_run_ends_in_a_valid_result_with_evidence(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    result = evaluate(pristine_pipeline, str(suite), settings())
    assert result == read_result(settings().out / RESULT)
    task = result.tasks[0]
    assert result.status == "ranked"  # nothing learned, nothing missing
    assert (task.n_prompts, task.images_per_prompt, task.nfe) == (5, 2, 3)
    assert set(task.metrics) == {"toy_redness", "toy_verdict", "toy_spread"}
    assert all(m.status == "ok" and m.n_images == 10 for m in task.metrics.values())
    assert set(task.metrics["toy_redness"].categories) == {"colors", "two_object"}
    assert task.metrics["toy_redness"].splits["unseen"].n_prompts == 2
    assert result.evidence is not None and result.evidence.rows == 30
    assert not set(result.volatile) & set(result.provenance)


def test_stages_one_by_one_leave_what_all_leave(
    pristine_pipeline: Path, suite: Path, settings: Make, uninterrupted: dict[str, bytes]
) -> None:
    for stage in ("generate", "score", "summarise"):
        work(prepare(pristine_pipeline, str(suite), settings(stage=stage)))
    assert frozen(settings().out) == uninterrupted


def test_only_what_is_missing_is_done_again(
    pristine_pipeline: Path, suite: Path, settings: Make, uninterrupted: dict[str, bytes]
) -> None:
    run = settings("uninterrupted").out
    (run / "toys" / "images" / "two-0" / "0.png").unlink()
    (run / "toys" / "evidence" / "toy_spread.parquet").unlink()
    kept = run / "toys" / "images" / "colors-0" / "0.png"
    before = kept.stat().st_mtime_ns
    evaluate(pristine_pipeline, str(suite), settings("uninterrupted"))
    assert frozen(run) == uninterrupted
    assert kept.stat().st_mtime_ns == before


def test_the_order_of_blocks_does_not_matter(
    pristine_pipeline: Path,
    suite: Path,
    settings: Make,
    uninterrupted: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forwards = Run.claim

    def backwards(run: Run, stage: str, count: int, done: Callable[[int], bool]) -> Iterator[tuple[int, FileLock]]:
        yield from reversed(list(forwards(run, stage, count, done)))

    monkeypatch.setattr(Run, "claim", backwards)
    evaluate(pristine_pipeline, str(suite), settings())
    assert blocks_drawn(settings().out) == [3, 2, 1, 0]
    assert frozen(settings().out) == uninterrupted


def test_batch_size_moves_values_by_less_than_1e_6_and_a_grey_level(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    """A batch's shape decides the last bits of a picture: on some processors a value between two grey levels tips."""
    runs = {size: settings(f"by-{size}", batch_size=size) for size in (1, 4, 10)}
    results = {size: values(evaluate(pristine_pipeline, str(suite), run)) for size, run in runs.items()}
    levels = {size: grey_levels(run.out) for size, run in runs.items()}
    for size in (4, 10):
        moved = np.abs(levels[size] - levels[1])
        assert moved.max() <= 1 and np.count_nonzero(moved) <= 1e-3 * moved.size
        pixels = moved.size / 3  # a channel's mean moves by so much, the distance of two pictures by twice that
        tipped = 2 * moved.sum() / 255 / pixels
        for name, value in results[1].items():
            assert results[size][name] == pytest.approx(value, abs=1e-6 + tipped)


def test_two_processes_share_a_run_and_leave_what_one_leaves(
    pristine_pipeline: Path, suite: Path, settings: Make, uninterrupted: dict[str, bytes]
) -> None:
    processes = [in_another_process(pristine_pipeline, suite, settings()) for _ in range(2)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert frozen(settings().out) == uninterrupted
    assert sorted(blocks_drawn(settings().out)) == [0, 1, 2, 3]  # each was drawn once


def test_sigkill_at_any_moment_leaves_what_no_kill_leaves(
    pristine_pipeline: Path, suite: Path, settings: Make, uninterrupted: dict[str, bytes]
) -> None:
    start = time.monotonic()
    in_another_process(pristine_pipeline, suite, settings("timed")).join()
    whole, kills = time.monotonic() - start, 10
    for kill in range(kills):  # random moments, one in each tenth of a run
        run = settings(f"killed-{kill}")
        process = in_another_process(pristine_pipeline, suite, run)
        time.sleep((kill + random.random()) / kills * whole)
        process.kill()
        process.join()
        evaluate(pristine_pipeline, str(suite), run)
        assert frozen(run.out) == uninterrupted


def test_other_protocols_and_weights_are_refused_in_an_existing_run(
    pipeline: Path, suite: Path, settings: Make
) -> None:
    evaluate(pipeline, str(suite), settings(name="m"))
    with pytest.raises(UserError, match="num_inference_steps = 3, now it is 2"):
        evaluate(pipeline, str(suite), settings(name="m", overrides=Overrides(steps=2)))
    with pytest.raises(UserError, match="block_size = 3, now it is 5"):
        evaluate(pipeline, str(suite), settings(name="m", batch_size=5))
    config = pipeline / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="weights_digest"):
        evaluate(pipeline, str(suite), settings(name="m"))


def test_overrides_of_the_protocol_make_another_row(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    result = evaluate(pristine_pipeline, str(suite), settings(overrides=Overrides(steps=2, guidance=3.0)))
    assert result.model.name == "tiny@steps=2,guidance=3.0"
    assert result.tasks[0].nfe == 4  # counted: two steps of two passes


def test_a_reduced_run_is_partial_and_spread_over_categories(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    result = evaluate(pristine_pipeline, str(suite), settings(overrides=Overrides(limit=2, seeds=1)))
    task = result.tasks[0]
    assert (result.status, task.status, task.reason) == ("partial", "partial", "--limit 2 --seeds 1")
    assert set(task.metrics["toy_redness"].categories) == {"colors", "two_object"}
    assert task.metrics["toy_spread"].status == "skipped"
    assert "at least 2 images" in task.metrics["toy_spread"].reason


def test_a_limit_that_takes_nothing_away_is_not_partial(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    result = evaluate(pristine_pipeline, str(suite), settings(overrides=Overrides(limit=5, seeds=2)))
    assert result.status == "ranked"


def test_a_metric_added_later_draws_nothing_again(
    pristine_pipeline: Path, suite: Path, settings: Make, uninterrupted: dict[str, bytes]
) -> None:
    partial = evaluate(pristine_pipeline, str(suite), settings(overrides=Overrides(metrics=("toy_redness",))))
    assert (partial.status, set(partial.tasks[0].metrics)) == ("partial", {"toy_redness"})
    drawn = len(blocks_drawn(settings().out))
    evaluate(pristine_pipeline, str(suite), settings())
    assert len(blocks_drawn(settings().out)) == drawn
    assert frozen(settings().out) == uninterrupted


def test_a_run_that_leaves_out_a_whole_task_is_partial(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    suite.write_text(TWO_TASKS)
    result = evaluate(pristine_pipeline, str(suite), settings(overrides=Overrides(metrics=("toy_spread",))))
    assert [task.status for task in result.tasks] == ["skipped", "partial", "skipped"]
    assert result.status == "partial"
    assert not (settings().out / "guided").exists()


def test_a_metric_that_fails_leaves_the_others(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    wider = rewrite(suite, '"toy_spread"]', '"toy_spread", "toy_nan", "toy_gone"]')
    result = evaluate(pristine_pipeline, wider, settings(skip_missing=True))
    metrics = result.tasks[0].metrics
    assert {name: metric.status for name, metric in metrics.items()} == {
        "toy_redness": "ok",
        "toy_verdict": "ok",
        "toy_spread": "ok",
        "toy_nan": "failed",
        "toy_gone": "skipped",
    }
    assert "toy_nan" in metrics["toy_nan"].reason and "colors-1" in metrics["toy_nan"].reason
    assert "python -m make.them (3 GB)" in metrics["toy_gone"].reason
    assert result.status == "partial"


def test_missing_weights_stop_a_run_before_anything_is_drawn(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    wider = rewrite(suite, '"toy_spread"]', '"toy_spread", "toy_gone"]')
    with pytest.raises(UserError, match=r"no weights for toy_gone; python -m make.them \(3 GB\).*--skip-missing"):
        evaluate(pristine_pipeline, wider, settings())
    assert not settings().out.exists()


def test_weights_that_only_an_impossible_task_lacks_stop_nothing(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    large = '[[tasks]]\nname = "large"\nprompts = "prompts.jsonl"\nmetrics = ["toy_gone"]\nmin_side = 256\n'
    suite.write_text(suite.read_text() + large)
    result = evaluate(pristine_pipeline, str(suite), settings())
    assert [task.status for task in result.tasks] == ["ok", "skipped"]
    assert result.tasks[1].reason == "for models that draw at least 256 pixels a side; this one draws 16x16"


def test_a_result_states_components_and_the_warm_cost_of_an_image(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    result = evaluate(pristine_pipeline, str(suite), settings())
    assert result.cost.components["transformer"] == result.cost.parameters
    assert {"transformer", "vae"} < set(result.cost.components)
    (cost,) = result.volatile["cost"].values()  # type: ignore[union-attr]
    assert list(cost["stage_seconds_per_image"]) == ["encode", "denoise", "decode"]
    assert cost["seconds_per_image"] > 0 and cost["warm_batches"] >= 1
    single = cost["single"]
    assert single["images"] == SINGLES and single["seconds_per_image"] > 0
    assert list(single["stage_seconds_per_image"]) == ["encode", "denoise", "decode"]


def test_a_run_that_has_its_pictures_times_none(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    for _ in range(2):
        evaluate(pristine_pipeline, str(suite), settings())
    lines = [json.loads(line) for line in (settings().out / JOURNAL).read_text().splitlines()]
    assert [line["block"] for line in lines].count(SINGLE) == 1


def test_images_without_a_value_are_excluded_and_counted(
    pristine_pipeline: Path, suite: Path, settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    unread = rewrite(suite, '"toy_spread"]', '"toy_unread"]')
    task = evaluate(pristine_pipeline, unread, settings()).tasks[0]
    whole, found = task.metrics["toy_redness"], task.metrics["toy_unread"]
    assert (found.n_excluded, whole.n_excluded) == (task.images_per_prompt, 0)
    assert found.n_images == whole.n_images - task.images_per_prompt
    assert found.n_prompts == whole.n_prompts - 1
    assert found.status == "ok" and found.value != whole.value
    show_result(evaluate(pristine_pipeline, unread, settings()), settings().out)
    assert f"ok, {task.images_per_prompt} images without a value" in capsys.readouterr().out


def test_prompts_that_were_cut_are_counted_once_for_all_their_images(
    pristine_pipeline: Path, suite: Path, settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = rewrite(suite, '"toy_spread"]', '"toy_long"]')
    result = evaluate(pristine_pipeline, cut, settings())
    assert result.tasks[0].metrics["toy_long"].n_truncated == 2
    assert result.tasks[0].metrics["toy_redness"].n_truncated == 0
    show_result(result, settings().out)
    assert "ok, 2 of 5 prompts cut" in capsys.readouterr().out


def test_the_precision_of_a_metric_stands_in_its_result(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    result = evaluate(pristine_pipeline, rewrite(suite, '"toy_spread"]', '"toy_long"]'), settings())
    assert result.tasks[0].metrics["toy_long"].precision == "bfloat16"
    assert result.tasks[0].metrics["toy_redness"].precision == "float32"


def test_a_task_for_other_models_is_listed_with_its_reason(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    large = (
        '[[tasks]]\nname = "large"\nprompts = "prompts.jsonl"\nmetrics = ["toy_redness"]\npicture_size = "64x64"\n'
    )
    suite.write_text(suite.read_text() + large)
    result = evaluate(pristine_pipeline, str(suite), settings())
    assert [task.status for task in result.tasks] == ["ok", "skipped"]
    assert result.tasks[1].reason == "for models that draw 64x64 pictures; this one draws 16x16"
    assert result.status == "ranked"


def test_a_suite_that_cannot_run_at_all_is_an_error(pristine_pipeline: Path, suite: Path, settings: Make) -> None:
    with pytest.raises(UserError, match="for models that draw 64x64 pictures; this one draws 16x16"):
        evaluate(pristine_pipeline, rewrite(suite, "16x16", "64x64"), settings())
    assert not settings().out.exists()


def test_whether_a_suite_could_run_is_known_without_drawing(pristine_pipeline: Path, suite: Path) -> None:
    model = open_model(pristine_pipeline)
    check(model, str(suite))
    with pytest.raises(UserError, match="for models that draw 64x64 pictures; this one draws 16x16"):
        check(model, rewrite(suite, "16x16", "64x64"))
    rewrite(suite, "64x64", "16x16")
    lacking = rewrite(suite, '"toy_redness"', '"toy_redness", "toy_gone"')
    with pytest.raises(UserError, match=r"^no weights for toy_gone; .*make.them"):
        check(model, lacking)


def test_pictures_of_a_size_that_the_model_does_not_draw_are_skipped_with_the_reason(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    for side in (17, 4096):
        odd = f'[[tasks]]\nname = "odd-{side}"\nprompts = "prompts.jsonl"\nmetrics = ["toy_redness"]\n'
        suite.write_text(suite.read_text() + odd + f"protocol = {{ width = {side}, height = {side} }}\n")
    result = evaluate(pristine_pipeline, str(suite), settings())
    assert [task.status for task in result.tasks] == ["ok", "skipped", "skipped"]
    assert re.search(r"^this model does not draw 17x17 pictures: sides must be multiples of", result.tasks[1].reason)
    assert re.search(r"4096x4096 pictures: its positions end at \d+ pixels a side", result.tasks[2].reason)


def test_tasks_of_equal_prompts_and_protocol_share_images(
    pristine_pipeline: Path, suite: Path, settings: Make
) -> None:
    suite.write_text(TWO_TASKS)
    result = evaluate(pristine_pipeline, str(suite), settings())
    run = settings().out
    assert len(list((run / "few" / "images").rglob("*.png"))) == 10
    assert not (run / "many").exists()
    assert [task.nfe for task in result.tasks] == [3, 3, 6]
    assert [task.metrics["toy_redness"].n_images for task in result.tasks] == [5, 10, 5]
    assert list(result.tasks[0].metrics) == ["toy_redness"]


def test_the_board_gets_result_evidence_and_pictures(
    pristine_pipeline: Path, suite: Path, settings: Make, tmp_path: Path
) -> None:
    board = tmp_path / "board"
    complete = evaluate(pristine_pipeline, str(suite), settings(board=board))
    place = board / "toys" / "tiny.json"
    entry = read_entry(place)
    assert entry.result.evidence == complete.evidence
    assert len(entry.samples) == 10
    before = place.read_bytes()
    evaluate(pristine_pipeline, str(suite), settings("less", board=board, overrides=Overrides(limit=2)))
    assert place.read_bytes() == before  # a partial result does not take a complete one's place


def test_prompts_that_a_model_was_trained_on_are_counted_in_its_result(
    pipeline: Path, suite: Path, settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = evaluate(pipeline, str(suite), settings())
    assert unknown.tasks[0].n_trained_prompts is None
    write_fingerprints(pipeline, ["A red  circle", "a circle and a square", "never evaluated"])
    result = evaluate(pipeline, str(suite), settings("trained"))
    assert result.tasks[0].n_trained_prompts == 2
    show_result(result, Path("out"))
    assert "toys: the model was trained on 2 of its 5 prompts" in capsys.readouterr().out
    assert result.model.weights_digest == unknown.model.weights_digest


def test_groups_of_questions_stand_beside_the_categories_and_pass_the_check_of_evidence(
    pristine_pipeline: Path, suite: Path, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summarise(metric: object, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        values_N = np.asarray(rows["score"], np.float32)
        groups = group_questions([[("entity", float(value)), ("colors", 0.0)] for value in values_N])
        return QuestionSummary(value=float(values_N.mean()), per_image_N=values_N, groups=groups)

    plain = evaluate(pristine_pipeline, str(suite), settings())
    monkeypatch.setattr(toy_metrics.Redness, "summarise", summarise)
    result = evaluate(pristine_pipeline, str(suite), settings("grouped"))
    metric = result.tasks[0].metrics["toy_redness"]
    assert set(metric.categories) == {"colors", "two_object", "entity"}
    # Every image has one question of this group.
    told = metric.categories["entity"]
    assert (told.low, told.high, told.n_prompts, told.n_images) == (None, None, 5, 10)
    assert metric.value is not None and told.value == pytest.approx(metric.value, abs=1e-6)
    # A category of prompts keeps its name, and with it the proof.
    assert metric.categories["colors"] == plain.tasks[0].metrics["toy_redness"].categories["colors"]
    assert result.evidence is not None
    table = evidence.read(
        settings("grouped").out / result.evidence.file, result.evidence.digest, result.evidence.rows
    )
    evidence.check(result, table)


def test_how_a_model_was_trained_goes_into_its_result(pipeline: Path, suite: Path, settings: Make) -> None:
    training = {
        "base": "teacher",
        "method": "rtdmd",
        "config": {"eta": 0.9},
        "seed": 1,
        "rewards": ["toy_redness"],
        "image_free": True,
        "network_passes": 12,
        "curves": [{"iteration": 0, "toy_redness": 0.5}],
    }
    (pipeline / "training.json").write_text(json.dumps(training))
    result = evaluate(pipeline, str(suite), settings())
    assert (result.model.base, result.model.method, result.model.trained_on) == ("teacher", "rtdmd", ["toy_redness"])
    (pipeline / "training.json").write_text('{"method": 3}')
    with pytest.raises(UserError, match=r"training.json: method"):
        evaluate(pipeline, str(suite), settings("other"))
