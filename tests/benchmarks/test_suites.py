from pathlib import Path

import pytest

from benchmarks.suites import available_suites, read_suite
from leaderboards.recipe import paper_recipes
from metrics.base import UserError, available

TASK = '[[tasks]]\nname = "{name}"\nprompts = "p.jsonl"\nmetrics = ["m"]\n'


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.toml")


def test_full_holds_every_task_of_every_shipped_suite() -> None:
    full = {task.name for task in read_suite("full").tasks}
    assert full == {task.name for name in available_suites() for task in read_suite(name).tasks}


def test_every_metric_that_a_suite_names_exists() -> None:
    known = available()
    for name in available_suites():
        for task in read_suite(name).tasks:
            assert set(task.metrics) <= known.keys()
            assert name == "micro" or task.min_side == 256 or task.name == "micro"  # micro pictures say nothing there


def test_a_papers_suite_measures_every_column_of_the_papers_tables() -> None:
    for name, recipe in paper_recipes().items():
        tasks = read_suite(recipe.suite).tasks
        columns = [column for column in recipe.columns if column.metric not in ("", "nfe")]
        for column in columns:
            found = [task.name for task in tasks if column.metric in task.metrics and column.task in ("", task.name)]
            assert found, (name, column.title, column.metric)


def test_micro_measures_with_every_metric_of_the_micro_world() -> None:
    (task,) = read_suite("micro").tasks
    assert set(task.metrics) == {"shapes_geneval", *(name for name in available() if name.startswith("micro_"))}
    assert (task.images_per_prompt, task.picture_size, task.prompts) == (4, "64x64", "micro")


def test_includes_come_first_and_duplicates_are_merged(tmp_path: Path) -> None:
    inner = write(tmp_path, "inner", TASK.format(name="a"))
    both = write(tmp_path, "both", f'include = ["{inner}"]\n' + TASK.format(name="b") + TASK.format(name="a"))
    assert [task.name for task in read_suite(both).tasks] == ["a", "b"]


def test_prompt_files_are_found_beside_the_suite(tmp_path: Path) -> None:
    (task,) = read_suite(write(tmp_path, "one", TASK.format(name="a"))).tasks
    assert task.prompts == str(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs at least one task"),
        (TASK.format(name="a") + "images = 3", r"unknown key 'tasks.0.images'; did you mean 'images_per_prompt'"),
        (TASK.format(name="a") + 'images_per_prompt = "4"', "images_per_prompt"),
        (TASK.format(name="a") + "images_per_prompt = 0", "at least one image"),
        (TASK.format(name="../a"), "cannot name a folder"),
        (TASK.format(name="a") + "[tasks.protocol]\nguidance = 1.0", "did you mean 'guidance_scale'"),
        (TASK.format(name="a") + TASK.format(name="a") + "images_per_prompt = 2", "stands twice"),
        ('include = ["miro"]', "did you mean 'micro'"),
        ("tasks = 3 3", "not valid TOML"),
    ],
)
def test_a_bad_suite_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_suite(write(tmp_path, "bad", text))
    assert "\n" not in str(caught.value)


def test_unknown_suites_name_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown suite 'mikro'; did you mean 'micro'"):
        read_suite("mikro")
    with pytest.raises(UserError, match="no such file"):
        read_suite(str(tmp_path / "none.toml"))


def test_a_suite_that_includes_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    with pytest.raises(UserError, match="includes itself"):
        read_suite(write(tmp_path, "loop", f'include = ["{path}"]\n' + TASK.format(name="a")))
