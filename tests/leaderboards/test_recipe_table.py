"""Tables of recipes: golden files of every format, bold by significance, and what stands beside a paper's rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboards.formats import FORMATS, latex, to_csv, to_latex, to_markdown
from leaderboards.papers import read_paper_tables
from leaderboards.recipe import Recipe, RecipeColumn, find_recipe
from leaderboards.recipe_table import Grid, grid
from leaderboards.schema import ResultError
from leaderboards.store import read_board
from tests.leaderboards.conftest import evidence_table, metric_of

Add = Callable[..., Path]
GOLDEN = Path(__file__).parent / "golden"
SUFFIX = {"md": "md", "latex": "tex", "csv": "csv", "json": "json", "html": "html"}
NFE = RecipeColumn(title="NFE", metric="nfe")
JUDGE = RecipeColumn(title="Judge ↑", metric="judge", scale=100.0, decimals=1)
COUNTING = RecipeColumn(title="counting", metric="judge", category="counting")
SCORE = RecipeColumn(title="Score", metric="score")


@pytest.fixture
def made(add: Add, tmp_path: Path) -> Callable[..., Grid]:
    """Make the table of a recipe over a board of three models; the best was trained on the score."""
    add("strong", 0.98, seed=1, model={"trained_on": ["score"]})
    add("also strong", 0.98, seed=2)
    add("weak & <b>", 0.05, seed=3)
    add("quick look", 0.5, seed=4, status="partial")

    def make(*columns: RecipeColumn, **changes: Any) -> Grid:
        recipe = Recipe(name="tiny-table", suite="tiny", columns=list(columns), **changes)
        return grid(recipe, read_paper_tables(), read_board(tmp_path / "results").suites["tiny"])

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_those_of_the_golden_files(made: Callable[..., Grid], format: str) -> None:
    ours = FORMATS[format](made(NFE, JUDGE, COUNTING, SCORE, caption="A tiny board: 100 % made up."))
    assert ours == (GOLDEN / f"tiny.{SUFFIX[format]}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "format"), [("dmdr-v2-table2", "latex"), ("rtdmd-table4", "md"), ("dp-dmd-table1", "csv")]
)
def test_tables_of_papers_are_those_of_the_golden_files(name: str, format: str) -> None:
    ours = FORMATS[format](grid(find_recipe(name), read_paper_tables(), []))
    assert ours == (GOLDEN / f"{name}.{SUFFIX[format]}").read_text(encoding="utf-8")


def test_bold_marks_every_model_that_none_surely_beats(made: Callable[..., Grid]) -> None:
    bold = {line.model: line.values[0].bold for line in made(JUDGE).lines}
    assert bold == {"strong": True, "also strong": True, "weak & <b>": False, "quick look": False}


def test_nothing_is_bold_where_no_model_is_surely_beaten(add: Add, tmp_path: Path) -> None:
    for seed in (1, 2):
        add(f"model {seed}", 0.5, seed=seed)
    entries = read_board(tmp_path / "results").suites["tiny"]
    found = grid(Recipe(name="t", suite="tiny", columns=[JUDGE]), {}, entries)
    assert not any(value.bold for line in found.lines for value in line.values)


def test_a_paper_row_has_no_interval_and_is_never_bold(made: Callable[..., Grid]) -> None:
    column = RecipeColumn(title="HP Score", metric="judge", paper_column="HP Score")
    found = made(column, reported="dmdr-v2-table2")
    reported = [line for line in found.lines if line.origin == "reported"]
    assert len(reported) == 19 and len(found.lines) == 19 + 4
    assert not any(value.bold or value.low is not None for line in reported for value in line.values)
    assert "not re-measured" in found.notes and "Table 2" in found.notes


def test_every_line_of_every_format_says_what_was_measured_and_what_reported(made: Callable[..., Grid]) -> None:
    found = made(RecipeColumn(title="HP Score", metric="judge"), reported="dmdr-v2-table2")
    for line in to_csv(found).splitlines()[1:]:
        assert line.startswith(("reported,", "measured,"))
    assert r"\emph{Measured here}" in to_latex(found) and r"\emph{Reported: SDXL-Base}" in to_latex(found)
    assert "| Reported: SDXL\\-Base |" in to_markdown(found) or "| Reported: SDXL-Base |" in to_markdown(found)


def test_intervals_and_values_are_scaled_together(made: Callable[..., Grid]) -> None:
    value = next(line for line in made(JUDGE).lines if line.model == "weak & <b>").values[0]
    assert value.low is not None and value.high is not None and value.number is not None
    assert value.low <= value.number <= value.high and value.high > 1


def test_numbers_measured_differently_do_not_share_a_column(add: Add, tmp_path: Path) -> None:
    add("one")
    add("two", 0.6, seed=1)
    rows = evidence_table()
    add("other", metrics={"judge": metric_of(rows, "judge", variant="corrected"), "score": metric_of(rows, "score")})
    entries = read_board(tmp_path / "results").suites["tiny"]
    found = grid(Recipe(name="t", suite="tiny", columns=[JUDGE]), {}, entries)
    assert {line.model: line.values[0].text for line in found.lines}["other"] == "–"


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ([RecipeColumn(title="x", metric="jugde")], {}, "no metric 'jugde'; did you mean 'judge'"),
        ([RecipeColumn(title="x", metric="judge", task="other")], {}, "on task 'other'"),
        ([JUDGE], {"models": ["storng"]}, "did you mean 'strong'"),
        ([JUDGE], {"reported": "dmdr-v2-table9"}, "no reported table 'dmdr-v2-table9'"),
    ],
)
def test_mistakes_name_the_nearest(made: Callable[..., Grid], columns: list, changes: dict, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        made(*columns, **changes)


def test_models_of_a_recipe_stand_in_its_order(made: Callable[..., Grid]) -> None:
    found = made(JUDGE, models=["weak & <b>", "strong"])
    assert [line.model for line in found.lines] == ["weak & <b>", "strong"]


def test_text_of_others_is_inert_in_every_format(made: Callable[..., Grid]) -> None:
    found = made(JUDGE, SCORE)
    assert "<b>" not in FORMATS["html"](found) and "&lt;b&gt;" in FORMATS["html"](found)
    assert r"weak \& <b>" in to_latex(found)
    assert latex(r"\input{/etc/passwd} 100% $x_1^2$ ~") == (
        r"\textbackslash{}input\{/etc/passwd\} 100\% \$x\_1\textasciicircum{}2\$ \textasciitilde{}"
    )


def test_a_name_that_looks_like_a_formula_is_text_in_a_spreadsheet(add: Add, tmp_path: Path) -> None:
    add("=1+1")
    found = grid(Recipe(name="t", suite="tiny", columns=[JUDGE]), {}, read_board(tmp_path / "results").suites["tiny"])
    assert "measured,,'=1+1," in to_csv(found)


def test_json_holds_all_of_it(made: Callable[..., Grid]) -> None:
    found = json.loads(FORMATS["json"](made(JUDGE, COUNTING)))
    weak = next(line for line in found["lines"] if line["model"].startswith("weak"))
    assert weak["values"][0]["low"] is not None and found["match"] and found["notes"]
