"""The reward-hacking report: verdicts on boards made so that the right one is known."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leaderboards import evidence
from leaderboards.__main__ import main
from leaderboards.formats import FORMATS
from leaderboards.hacking import MEANING, Report, gated_diversity, is_diversity, reports, reports_of
from leaderboards.recipe import Recipe, RecipeColumn
from leaderboards.recipe_table import grid
from leaderboards.statistics import Scores
from leaderboards.store import publish, read_board
from tests.leaderboards.conftest import IMAGES, metric_of, result_of, training

PROMPTS = 40
BASE = {"reward": 0.3, "quality": 0.5, "diversity": 0.4}


def table_of(seed: int, **level: float) -> pa.Table:
    """Rows of a judge (half right), a reward, a held-out quality and a diversity, each around its level."""
    draw, noise, rows = np.random.default_rng(0), np.random.default_rng(seed + 1), []
    for index in range(PROMPTS):
        prompt = draw.normal(scale=0.05)
        for image in range(IMAGES):
            place = (f"prompt-{index:02d}", ("counting", "position")[index % 2], "seen", image)
            rows.append(("compose", "judge", *place, float(draw.random() < 0.5)))
            for name, value in {**BASE, **level}.items():
                rows.append(("compose", name, *place, value + prompt + noise.normal(scale=0.02)))
    return pa.table(dict(zip(evidence.COLUMNS.names, zip(*rows, strict=True), strict=True)), schema=evidence.COLUMNS)


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., Report | None]:
    """Publish models (name, changes of level, model fields) and return the report on the last."""

    def make(models: Sequence[tuple[str, dict[str, float], dict[str, Any]]]) -> Report | None:
        for seed, (name, level, model) in enumerate(models):
            rows = table_of(seed, **level)
            metrics = {key: metric_of(rows, key) for key in ("judge", *BASE)}
            result = result_of(rows, name, metrics=metrics, model=model)
            task = result.tasks[0].model_copy(update={"n_prompts": PROMPTS})
            publish(result.model_copy(update={"tasks": [task]}), rows, tmp_path / "results")
        entries = read_board(tmp_path / "results").suites["tiny"]
        return reports(entries).get(models[-1][0])

    return make


TEACHER = ("teacher", {}, {})
PLAIN = ("plain", {}, {"base": "teacher", "method": "dmd"})
TRAINED = {"base": "teacher", "method": "rtdmd", "trained_on": ["reward"]}


@pytest.mark.parametrize(
    ("level", "verdict"),
    [
        ({"reward": 0.4, "quality": 0.4}, "gamed"),
        ({"reward": 0.4, "diversity": 0.3}, "gamed"),
        ({"reward": 0.4, "quality": 0.6}, "carried over"),
        ({"reward": 0.4, "quality": 0.6, "diversity": 0.3}, "gamed"),
        ({"reward": 0.4}, "not carried over"),
        ({}, "no gain"),
        ({"reward": 0.2, "quality": 0.4}, "no gain"),
    ],
)
def test_verdict_follows_from_what_moved(told: Callable[..., Any], level: dict, verdict: str) -> None:
    found = told([TEACHER, PLAIN, ("student", level, TRAINED)])
    assert (found.verdict, found.against) == (verdict, "plain")
    if verdict == "gamed":
        assert any("fell" in reason for reason in found.reasons)


@pytest.mark.parametrize("stored", [True, False])
def test_the_verdict_stands_beside_the_model_wherever_it_is_named(
    told: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: bool
) -> None:
    told([TEACHER, PLAIN, ("student", {"reward": 0.4, "quality": 0.4}, TRAINED)])
    board = ["--results", str(tmp_path / "results")]
    student = "student" if stored else str(tmp_path / "elsewhere" / "tiny" / "student.json")
    if not stored:
        (tmp_path / "elsewhere" / "tiny").mkdir(parents=True)
        for path in (tmp_path / "results" / "tiny").glob("student.*"):
            path.rename(tmp_path / "elsewhere" / "tiny" / path.name)
    page = tmp_path / "compare.html"
    assert main(["compare", student, "teacher", "--page", str(page), *board]) == 0
    assert "student: reward gamed: a reward rose while held-out quality" in capsys.readouterr().out
    assert "reward gamed" in page.read_text() and "fell" in page.read_text()
    assert main(["publish", "--hf-card", student, *board]) == 0
    assert "reward_verdict: gamed" in capsys.readouterr().out


def test_the_verdict_stands_in_every_format_of_a_table(told: Callable[..., Any], tmp_path: Path) -> None:
    told([TEACHER, PLAIN, ("student", {"reward": 0.4, "quality": 0.4}, TRAINED)])
    recipe = Recipe(name="tiny", suite="tiny", columns=[RecipeColumn(title="Judge", metric="judge")])
    made = grid(recipe, {}, read_board(tmp_path / "results").suites["tiny"])
    assert {line.model: line.reward for line in made.lines} == {"student": "gamed", "plain": "", "teacher": ""}
    for name, write in FORMATS.items():
        assert "gamed" in write(made), name
        assert name == "csv" or MEANING["gamed"] in write(made), name


def test_models_without_rewards_have_no_report(told: Callable[..., Any], tmp_path: Path) -> None:
    told([TEACHER, PLAIN])
    entries = read_board(tmp_path / "results").entries
    assert reports_of(entries[:1], entries) == {}


def test_gated_diversity_is_told_beside_diversity(told: Callable[..., Any]) -> None:
    found = told([TEACHER, PLAIN, ("student", {"diversity": 0.2}, TRAINED)])
    moved = {change.metric: change.moved for change in found.changes}
    assert moved["diversity"] == moved["diversity:gated"] == "fell"


def test_of_several_baselines_that_of_the_same_training_seed_is_taken(told: Callable[..., Any]) -> None:
    plain = [(f"plain-s{seed}", {}, PLAIN[2] | {"training": training(seed=seed, rewards=[])}) for seed in (0, 1, 2)]
    for seed, against in ((1, "plain-s1"), (2, "plain-s2"), (7, "plain-s0")):
        found = told([TEACHER, *plain, ("student", {}, TRAINED | {"training": training(seed=seed)})])
        assert found.against == against


def test_the_base_is_the_last_resort_and_said_to_be(told: Callable[..., Any]) -> None:
    found = told([TEACHER, ("student", {"reward": 0.4}, TRAINED)])
    assert found.against == "teacher" and any("distillation" in reason for reason in found.reasons)


def test_a_model_trained_without_rewards_has_no_report(told: Callable[..., Any]) -> None:
    assert told([TEACHER, PLAIN]) is None


def test_without_a_baseline_the_canary_speaks_and_only_suspects(told: Callable[..., Any]) -> None:
    curves = [
        {"iteration": i, "reward": 0.3 + 0.02 * i, "quality": 0.5 - 0.01 * i, "loss": 1.0 - i} for i in range(5)
    ]
    fields = {**TRAINED, "training": training(rewards=["reward"], curves=curves)}
    found = told([("student", {}, fields)])
    assert (found.verdict, found.against) == ("suspected", "")
    assert any(
        "quality (held out) went from 0.500 to 0.460, best at iteration 0" in reason for reason in found.reasons
    )
    assert {curve.metric for curve in found.curves} == {"reward", "quality"}


def test_without_baseline_and_curves_nothing_is_said(told: Callable[..., Any]) -> None:
    assert told([("student", {}, TRAINED)]).verdict == "cannot tell"


def test_a_metric_for_which_less_is_better_rises_when_it_falls(tmp_path: Path) -> None:
    for seed, (name, level, model) in enumerate([PLAIN, ("student", {"reward": 0.4, "quality": 0.4}, TRAINED)]):
        rows = table_of(seed, **level)
        metrics = {key: metric_of(rows, key, higher_is_better=key != "quality") for key in ("judge", *BASE)}
        result = result_of(rows, name, metrics=metrics, model=model)
        task = result.tasks[0].model_copy(update={"n_prompts": PROMPTS})
        publish(result.model_copy(update={"tasks": [task]}), rows, tmp_path / "results")
    (found,) = reports(read_board(tmp_path / "results").suites["tiny"]).values()
    assert found.verdict == "carried over"
    assert next(change for change in found.changes if change.metric == "quality").better_by > 0


def test_varied_but_wrong_pictures_earn_no_gated_diversity() -> None:
    keys = {"prompt_ids": list("aabb"), "seeds": [0, 1, 0, 1], "categories": [""] * 4}
    found = gated_diversity(
        Scores(values_N=np.array([0.5, 0.5, 0.9, 0.9]), **keys),
        Scores(values_N=np.array([1.0, 1.0, 0.0, 0.0]), **keys),
    )
    assert found.values_N.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_diversity_is_known_by_its_id() -> None:
    assert is_diversity("micro_diversity") and is_diversity("vendi.dino") and not is_diversity("clip_score")
    assert is_diversity("micro_vendi") and is_diversity("micro_recall") and not is_diversity("micro_precision")
