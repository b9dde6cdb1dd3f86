"""Recipes: every table of the papers has one, users write their own, mistakes are named."""

from pathlib import Path

import pytest

from leaderboards.papers import read_paper_tables
from leaderboards.recipe import find_recipe, paper_recipes
from leaderboards.schema import ResultError

USER = 'suite = "tiny"\n[[columns]]\ntitle = "Judge"\nmetric = "judge"\nscale = 100\n'


def test_every_table_of_the_papers_has_a_recipe_that_names_its_suite() -> None:
    recipes, tables = paper_recipes(), read_paper_tables()
    assert recipes.keys() == tables.keys()
    for name, recipe in recipes.items():
        assert recipe.suite == f"paper-{name.partition('-table')[0].removesuffix('-v1').removesuffix('-v2')}"
        assert [column.paper_column for column in recipe.columns] == [column.name for column in tables[name].columns]


def test_every_score_of_the_papers_has_a_metric_of_ours() -> None:
    """Only differences between rows, seconds of the authors' machine and step counts have none."""
    for name, recipe in paper_recipes().items():
        told = {column.name: column.metric for column in read_paper_tables()[name].columns}
        unmapped = {told[column.title] for column in recipe.columns if not column.metric}
        assert all(metric.endswith("_delta") or metric in ("sec_per_iter", "steps") for metric in unmapped), name


def test_columns_of_two_prompt_sets_come_from_two_tasks() -> None:
    tasks = {column.title: column.task for column in paper_recipes()["dp-dmd-table1"].columns}
    assert tasks["Pick-a-Pic PicS"] != tasks["COCO-10K 2014 PicS"] != ""


def test_a_user_recipe_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(USER)
    recipe = find_recipe(str(path))
    assert (recipe.name, recipe.suite, recipe.columns[0].scale) == ("mine", "tiny", 100.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (USER + "decimal = 2\n", "unknown key 'columns.0.decimal'; did you mean 'decimals'?"),
        (USER.replace("suite", "siute"), "did you mean 'suite'?"),
        ('suite = "tiny"\ncolumns = []\n', "columns: "),
        ("suite = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ResultError) as caught:
        find_recipe(str(path))
    assert message in str(caught.value) and "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("dmdr-v2-tabel2", "did you mean 'dmdr-v2-table2'"), ("no.toml", "No such")]
)
def test_an_unknown_table_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        find_recipe(name)
