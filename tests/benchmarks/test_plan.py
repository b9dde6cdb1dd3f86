"""What is planned: which tasks run, which metrics they measure, and what is missing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.plan import Overrides, Plan, make_plan
from benchmarks.suites import Suite, TaskSpec
from metrics.base import UserError
from tests.benchmarks import toy_metrics  # noqa: F401  (registers its metrics)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function (tasks) -> plan for a folder of 64 x 48 pictures."""
    monkeypatch.delenv("FEWSTEP_BENCH_PROMPTS", raising=False)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "a red circle"}\n{"id": "b", "prompt": "a blue circle"}\n')
    pictures: Any = SimpleNamespace(name="pictures", protocol=None, picture_size=(64, 48))

    def make(*tasks: dict[str, Any], overrides: Overrides | None = None) -> Plan:
        common = {"prompts": str(prompts), "metrics": ("toy_redness",), "images_per_prompt": 2}
        specs = tuple(TaskSpec(name=f"task-{n}", **{**common, **task}) for n, task in enumerate(tasks))
        return make_plan(Suite("suite", "", specs), pictures, overrides or Overrides(), tmp_path)

    return make


def test_a_task_without_its_prompt_set_is_skipped_with_one_line(plan, tmp_path: Path) -> None:
    found = plan({"prompts": "drawbench", "metrics": ("toy_gone", "toy_redness")}, {})
    assert [task.spec.name for task in found.running] == ["task-1"]
    assert found.tasks[0].reason.startswith(f"{tmp_path / 'drawbench.txt'}: no such file; ")
    assert "pass --prompts" in found.tasks[0].reason
    assert "\n" not in found.tasks[0].reason
    assert found.missing == {}  # the task cannot run with or without weights


def test_missing_weights_are_collected_over_the_tasks_that_could_run(plan) -> None:
    found = plan({"metrics": ("toy_gone", "toy_redness")}, {"metrics": ("toy_gone",)}, {})
    assert list(found.missing) == ["toy_gone"]
    assert "python -m make.them (3 GB)" in found.missing["toy_gone"]
    assert [task.metrics for task in found.tasks] == [("toy_redness",), (), ("toy_redness",)]
    assert found.tasks[1].reason.startswith("no metric can be measured: toy_gone: no weights in")


def test_metrics_that_were_not_asked_for_are_not_missing(plan) -> None:
    found = plan({"metrics": ("toy_gone", "toy_redness")}, overrides=Overrides(metrics=("toy_redness",)))
    assert found.missing == {}


def test_a_task_none_of_whose_metrics_is_asked_for_is_not_drawn(plan) -> None:
    found = plan({"metrics": ("toy_verdict",)}, {}, overrides=Overrides(metrics=("toy_redness",)))
    assert [task.reason for task in found.tasks] == ["none of its metrics is among --metrics", ""]


@pytest.mark.parametrize(("side", "runs"), [(48, True), (49, False)])
def test_the_shorter_side_decides_whether_pictures_are_large_enough(plan, side: int, runs: bool) -> None:
    found = plan({"min_side": side, "metrics": ("toy_redness", "toy_gone")})
    assert bool(found.running) == runs
    assert bool(found.missing) == runs
    if not runs:
        assert found.tasks[0].reason == "for models that draw at least 49 pixels a side; this one draws 64x48"


def test_a_metric_that_cannot_judge_the_prompts_fails_with_counts_before_anything_is_drawn(
    plan, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    right = '{"id": "c", "prompt": "a circle", "include": [{"class": "circle", "count": 1}]}\n'
    wrong = '{"id": "d", "prompt": "a cat", "include": [{"class": "circle", "count": 0}]}\n'
    mixed.write_text(right + wrong)
    found = plan(
        {"metrics": ("shapes_geneval", "toy_redness"), "prompts": str(mixed)},
        {"metrics": ("shapes_geneval",)},
        {"metrics": ("ocr_rapid", "toy_redness")},
    )
    assert [task.metrics for task in found.tasks] == [("toy_redness",), (), ("toy_redness",)]
    why = "1 of 2 prompts cannot be judged (first: prompt 'a cat': include count 0 of 'circle' must be at least 1)"
    assert found.tasks[0].unfit == {"shapes_geneval": why}
    assert found.tasks[1].reason.startswith(
        "no metric can be measured: shapes_geneval: 2 of 2 prompts cannot be judged"
    )
    assert "OCR prompt 'a red circle': no text in double quotes" in found.tasks[2].unfit["ocr_rapid"]
    assert found.missing == {}  # whoever cannot judge the prompts needs no weights


def test_too_few_images_are_no_missing_weights(plan) -> None:
    found = plan({"metrics": ("toy_spread",), "images_per_prompt": 1}, {})
    assert "needs at least 2 images of each prompt" in found.tasks[0].reason
    assert found.missing == {}


def test_an_unknown_prompt_set_is_an_error(plan) -> None:
    with pytest.raises(UserError, match="did you mean 'drawbench'"):
        plan({"prompts": "drawbnch"})
