from pathlib import Path

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
        ("rewards.2.weight=1", "--set rewards.2.weight=1: rewards has entries 0 to 1"),
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
