import hashlib
from pathlib import Path

import pytest

from benchmarks import sets
from benchmarks.sets import FOLDER, MissingPrompts, declared_sets, is_named, read_set
from benchmarks.suites import available_suites, read_suite
from metrics.base import UserError


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> str:
    """Declare one set "theirs", of two lines, that is not shipped; return its file's content."""
    content = "a red circle\na blue square\n"
    entry = sets.DeclaredSet(
        file="theirs.txt", source="https://example.org/list.txt", licence="none declared",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setattr(sets, "declared_sets", lambda: {"theirs": entry})
    monkeypatch.delenv("FEWSTEP_BENCH_PROMPTS", raising=False)
    return content


@pytest.mark.parametrize("name", [name for name, entry in declared_sets().items() if entry.shipped])
def test_shipped_sets_are_those_that_were_declared(name: str) -> None:
    assert (
        hashlib.sha256((FOLDER / declared_sets()[name].file).read_bytes()).hexdigest() == declared_sets()[name].sha256
    )
    prompts = read_set(name)
    assert prompts.name == name
    assert len({prompt.id for prompt in prompts.prompts}) == {"imagereward": 100, "coco10k": 10_000}[name]
    assert f"`{name}`" in (FOLDER / "README.md").read_text()


def test_nothing_else_is_shipped() -> None:
    shipped = {entry.file for entry in declared_sets().values() if entry.shipped}
    assert {path.name for path in FOLDER.iterdir()} == shipped | {"README.md", "sets.toml"}


def test_every_set_that_a_suite_names_exists() -> None:
    for suite in available_suites():
        for task in read_suite(suite).tasks:
            assert is_named(task.prompts) or Path(task.prompts).is_file()


def test_a_set_that_is_not_there_says_where_to_get_it(declared: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPrompts, match=r"'theirs' is not shipped .*none declared.*save it as theirs.txt"):
        read_set("theirs")
    with pytest.raises(MissingPrompts, match=r"theirs.txt: no such file; save it as theirs.txt .source: https"):
        read_set("theirs", tmp_path)


def test_the_folder_is_that_of_the_flag_or_of_the_variable(
    declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.txt").write_text(declared)
    assert [prompt.text for prompt in read_set("theirs", tmp_path).prompts] == ["a red circle", "a blue square"]
    monkeypatch.setenv("FEWSTEP_BENCH_PROMPTS", str(tmp_path))
    assert read_set("theirs").digest == read_set("theirs", tmp_path).digest


def test_another_file_than_the_declared_one_is_refused(declared: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text(declared + "one more\n")
    with pytest.raises(UserError, match=r"theirs.txt: sha256 is .*, that of prompt set 'theirs' is") as caught:
        read_set("theirs", tmp_path)
    assert not isinstance(caught.value, MissingPrompts)


def test_an_unknown_set_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match="unknown prompt set 'drawbnch'; did you mean 'drawbench'"):
        read_set("drawbnch")
    with pytest.raises(UserError, match="did you mean 'micro'"):
        read_set("mirco")
