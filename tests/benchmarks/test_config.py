from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.config import UserError, as_table, build, config, overridden, read_toml


@config
class Inner:
    """A table inside."""

    eta: float = 0.9


@config
class Outer:
    """A file."""

    steps: int
    limit: float = float("inf")
    inner: Inner = Inner()
    sizes: tuple[int, ...] = ()


@config
class Grid:
    """Even steps, or levels in their place."""

    steps: int = 4
    levels: tuple[float, ...] = ()
    shift: float = 1.0
    inner: Inner = Inner(eta=0.5)
    REPLACES: ClassVar = {"levels": ("shift",), "steps": ("levels",)}


@config
class Method:
    """Fields with defaults of their own."""

    grid: Grid = Grid(steps=8, shift=3.0, inner=Inner(eta=0.2))
    listed: Grid = Grid(levels=(1.0, 0.5))
    other: Grid | None = None


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ({}, {}),
        ({"grid": {}}, {}),
        ({"grid": {"steps": 2}}, {"steps": 2}),
        ({"grid": {"inner": {}}}, {}),
        ({"grid": {"inner": {"eta": 0.7}}}, {"inner": {"eta": 0.7}}),
        ({"grid": {"levels": [1.0]}}, {"levels": [1.0], "shift": 1.0}),  # levels stand for the shift of even steps
    ],
)
def test_a_nested_table_changes_the_keys_that_it_names(table: dict[str, Any], changed: dict[str, Any]) -> None:
    assert as_table(build(Method, table, "m"))["grid"] == as_table(Method())["grid"] | changed


def test_what_has_no_default_of_its_own_has_the_classes() -> None:
    found = build(Method, {"other": {"inner": {}}, "listed": {"steps": 2}}, "m")
    assert found.other == Grid() and found.listed == Grid(steps=2)
    with pytest.raises(UserError, match=r"m: unknown key 'grid.shifft'; did you mean 'shift'"):
        build(Method, {"grid": {"shifft": 1.0}}, "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.toml: key 'steps' is missing"),
        ("steps = '4'", "run.toml: steps: Input should be a valid integer, not '4'"),
        ("steps = 4.5", "run.toml: steps: "),
        ("steps = true", "run.toml: steps: "),
        ("steps = 4\nstep = 3", "unknown key 'step'; did you mean 'steps'"),
        ("steps = 4\ninner = { etaa = 1.0 }", "unknown key 'inner.etaa'; did you mean 'eta'"),
        ("steps = 4\ninner = 3", "run.toml: inner: "),
        ("steps = 4\nsizes = [1, 'two']", "run.toml: sizes.1: Input should be a valid integer, not 'two'"),
        ("steps = 4\ninner = { eta = nan }", "run.toml: inner.eta: Input should be a finite number"),
        ("steps = 4\nlimit = inf", "run.toml: limit: Input should be a finite number"),
        ("steps = ", "run.toml: not valid TOML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError) as error:
        read_toml(Outer, tmp_path / "run.toml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_several_complaints_stand_on_lines_of_their_own() -> None:
    with pytest.raises(UserError) as error:
        build(Outer, {"steps": "four", "sizes": [1, "two"]}, "run.toml")
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all(line.startswith("run.toml: ") for line in lines)


@config
class Positive:
    """A nested config that refuses a value as a whole."""

    low: float = 1.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must be at most high")


@config
class Around:
    """What holds one."""

    inner: Positive = Positive()


def test_a_table_that_is_refused_as_a_whole_is_not_printed() -> None:
    with pytest.raises(UserError) as error:
        build(Around, {"inner": {"low": 3.0}}, "run.toml")
    assert str(error.value) == "run.toml: inner: low must be at most high"


def test_a_config_survives_the_way_through_its_table() -> None:
    settings = Outer(steps=4, limit=2.0, inner=Inner(eta=0.5), sizes=(1, 2))
    assert build(Outer, as_table(settings), "there") == settings


def test_an_override_reaches_into_tables_and_arrays() -> None:
    table = {"rewards": [{"id": "a"}, {"id": "b", "weight": 1.0}], "inner": {"eta": 0.5}}
    changes = ["rewards.1.weight=2.5", "rewards.0.scale=3", "inner.eta=0.1", "new.key=word"]
    assert overridden(table, changes) == {
        "rewards": [{"id": "a", "scale": 3}, {"id": "b", "weight": 2.5}],
        "inner": {"eta": 0.1},
        "new": {"key": "word"},
    }
    for override, message in (
        ("rewards.2.weight=1", r"rewards has entries 0 to 1; .* the whole array: --set 'rewards=\["),
        ("rewards.first=1", "--set rewards.first=1: rewards has entries 0 to 1"),
        ("inner.eta.low=1", "--set inner.eta.low=1: 'eta' is a value, not a table"),
        ("inner", "--set inner: expected key=value"),
    ):
        with pytest.raises(UserError, match=message):
            overridden(table, [override])


@pytest.mark.parametrize("override", ["inner.eta=nan", "inner.eta=-inf"])
def test_no_override_brings_what_is_no_number(override: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("steps = 4")
    with pytest.raises(UserError, match=r"inner.eta: Input should be a finite number"):
        read_toml(Outer, tmp_path / "run.toml", [override])
