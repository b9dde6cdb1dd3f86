"""A file says which method it is of, and that word is no part of the run's settings."""

from pathlib import Path

import pytest

from benchmarks.config import UserError, as_table
from trainers.base import available
from trainers.config import read_method, read_run, read_table
from trainers.presets import read_presets
from trainers.run import Arguments, chosen_run

CONFIGS = Path(__file__).resolve().parents[2] / "trainers" / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*.toml") if not path.name.startswith("study-"))
OF_METHODS = sorted((CONFIGS / "presets" / "methods").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED + OF_METHODS, ids=lambda path: path.name)
def test_every_shipped_file_of_a_method_says_so(path: Path) -> None:
    method = read_method(path)
    assert method in available() and path.name.startswith(method.replace("_", "-"))
    assert "method" not in read_table(path)  # nor in any digest that is made of it


def test_presets_are_of_the_methods_of_their_files() -> None:
    for name, preset in read_presets().items():
        assert "method" not in preset.run, name


def test_the_file_names_the_method_where_the_command_line_does_not() -> None:
    path = CONFIGS / "rtdmd-micro.toml"
    method, run, where = chosen_run(Arguments(config=path))
    assert (method, where) == ("rtdmd", str(path)) and run == read_run(path)
    assert "method" not in as_table(run)
    assert chosen_run(Arguments(method="rtdmd", config=path))[0] == "rtdmd"


def test_another_method_than_the_files_is_refused_by_name() -> None:
    path = CONFIGS / "dmd-micro.toml"
    with pytest.raises(UserError, match=r"dmd-micro\.toml is a file of 'dmd', not of 'dmd2': leave the method out"):
        chosen_run(Arguments(method="dmd2", config=path))


def test_the_nearest_file_of_a_chain_counts(tmp_path: Path) -> None:
    base, over = tmp_path / "base.toml", tmp_path / "over.toml"
    base.write_text('method = "dmd"\nname = "base"\nbackbone.path = "p"\nstages.one = { iterations = 5 }\n')
    over.write_text('extends = "base.toml"\nname = "over"\n')
    assert chosen_run(Arguments(config=over))[0] == "dmd"
    over.write_text('extends = "base.toml"\nmethod = "dmd2"\nname = "over"\n')
    method, run, _ = chosen_run(Arguments(config=over))
    assert (method, run.name) == ("dmd2", "over")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("", r"run\.toml names no method: python -m trainers.run METHOD --config"),
        ("method = 3\n", r"run\.toml: method must be the name of a trainer, not 3"),
        ('method = "rtdm"\n', r"run\.toml: method: unknown trainer 'rtdm'; did you mean 'rtdmd'"),
    ],
)
def test_a_file_without_a_method_is_told(head: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(head + 'name = "x"\nbackbone.path = "p"\nstages.one = { iterations = 5 }\n')
    with pytest.raises(UserError, match=message):
        chosen_run(Arguments(config=path))
