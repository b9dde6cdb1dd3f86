"""Table recipes: which of our numbers stand under which heading, and beside which rows of a paper.

A recipe of a user is one TOML file:

    suite = "micro"                       results of which suite
    reported = "dmdr-v2-table2"           a paper's table to stand beside; may be left out
    caption = "…"                         may be left out
    models = ["teacher", "student"]       may be left out: all
    [[columns]]
    title = "GenEval"
    metric = "geneval"                    id of a metric of the suite; "nfe" = network passes per image
    task = "geneval"                      may be left out: the first task that has the metric
    category = "counting"                 may be left out: the metric's value
    scale = 100                           may be left out: 1
    decimals = 2                          may be left out: 3

The papers' own tables need no list: `leaderboards/recipes/<paper>.toml` maps what a column measures to our metric.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from leaderboards.papers import PaperColumn, PaperTable, read_paper_tables
from leaderboards.schema import ResultError, Strict, first_fault

RECIPES = Path(__file__).parent / "recipes"
Likeness = Literal["same", "differs", "unknown"]
T = TypeVar("T", bound=Strict)


class RecipeColumn(Strict):
    """One column: a heading, and the number of ours below it."""

    title: str
    metric: str  # "" = nothing of ours belongs here
    task: str = ""
    category: str = ""
    scale: float = 1.0
    decimals: int = Field(default=3, ge=0, le=9)
    paper_column: str = ""  # the name of the paper's column
    scorer: Likeness = "unknown"  # whether the paper's scorer is known to be ours
    note: str = ""


class Recipe(Strict):
    """A table: results of one suite, beside the rows of a paper or alone."""

    name: str
    suite: str
    columns: list[RecipeColumn] = Field(min_length=1)
    reported: str = ""
    caption: str = ""
    models: list[str] = Field(default_factory=list)
    sampler: str = ""  # how the paper samples, as far as it says


class _ColumnRule(Strict):
    """How a column of a paper is measured here."""

    metric: str
    category: str = ""
    scale: float = 1.0
    scorer: Likeness = "unknown"
    note: str = ""


class _PaperRecipes(Strict):
    """A file of `leaderboards/recipes`."""

    suite: str
    tables: list[str]
    sampler: str
    columns: dict[str, _ColumnRule]
    tasks: dict[str, str] = Field(default_factory=dict)


def paper_recipes(folder: Path = RECIPES, tables: Mapping[str, PaperTable] | None = None) -> dict[str, Recipe]:
    """Return a recipe for every table of the papers, by the table's id. Raises ResultError for a faulty file."""
    known = read_paper_tables() if tables is None else tables
    found: dict[str, Recipe] = {}
    for path in sorted(folder.glob("*.toml")):
        rules = _read(path, _PaperRecipes)
        for name in rules.tables:
            if name not in known:
                raise ResultError(f"{path}: no table {name!r}; {_nearest(name, known)}")
            columns = [_column(column, rules, known[name]) for column in known[name].columns]
            found[name] = Recipe(
                name=name,
                suite=rules.suite,
                reported=name,
                caption=known[name].caption,
                columns=columns,
                sampler=rules.sampler,
            )
    return found


def find_recipe(name: str) -> Recipe:
    """Return a paper's recipe by the table's id, or a user's by the path of its file. Raises ResultError."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ResultError(f"{path}: not valid TOML: {error}") from error
        return _validated(path, {"name": path.stem, **table}, Recipe)
    recipes = paper_recipes()
    if name not in recipes:
        raise ResultError(f"{name}: no such table; {_nearest(name, recipes)}, or a path to your own recipe (.toml)")
    return recipes[name]


def _column(column: PaperColumn, rules: _PaperRecipes, table: PaperTable) -> RecipeColumn:
    decimals = max((len(row.text(column.name).partition(".")[2]) for row in table.rows), default=3)
    name = column.name
    if column.metric == "nfe":
        return RecipeColumn(title=name, paper_column=name, metric="nfe", decimals=decimals, scorer="same")
    rule = rules.columns.get(column.metric)
    if rule is None:  # differences to a row of the paper, seconds on the authors' machine
        return RecipeColumn(title=name, paper_column=name, metric="", decimals=decimals)
    task = next((task for start, task in rules.tasks.items() if name.startswith(start)), "")
    return RecipeColumn(
        title=name,
        paper_column=name,
        metric=rule.metric,
        task=task,
        category=rule.category,
        scale=rule.scale,
        decimals=decimals,
        scorer=rule.scorer,
        note=rule.note,
    )


def _read(path: Path, kind: type[_PaperRecipes]) -> _PaperRecipes:
    return _validated(path, tomllib.loads(path.read_text(encoding="utf-8")), kind)


def _validated(path: Path, table: dict[str, Any], kind: type[T]) -> T:
    try:
        # TOML knows no difference between 100 and 100.0 that a reader would mean.
        return TypeAdapter(kind).validate_python(table, strict=False)
    except ValidationError as error:
        # A key misspelt is unknown and missing at once: the first says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        if first["type"] == "extra_forbidden":
            owner = RecipeColumn if "columns" in first["loc"] else kind
            hint = _nearest(str(first["loc"][-1]), owner.model_fields)
            raise ResultError(f"{path}: unknown key {'.'.join(map(str, first['loc']))!r}; {hint}") from error
        raise ResultError(f"{path}: {first_fault(error, 'recipe')}") from error


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
