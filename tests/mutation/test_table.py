"""The table of mutations fits the sources, and the runner tells a killed mutation from a survivor."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.config import UserError
from tests.mutation.trainers import ROOT, SHARED, SURVIVED, Copy, Mutation, digest, read_table

MUTATIONS = read_table()
METHODS = ("dmd", "dmd2", "discriminator", "dmd_lpips", "ac_dmd", "subgrpo", "rtdmd", "dmdr", "dynamic", "rt_dm",
           "renoised", "refl", "grpo", "dpo", "dp_dmd", "first_step", "tdm", "learner", "backbones/lora")  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_has_one_place_in_the_sources(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutation.apply(text) != text
    assert mutation.tests and all((ROOT / "tests" / file).is_file() for file in mutation.tests)


def test_every_method_is_mutated_and_no_mutation_comes_twice() -> None:
    files = Counter(mutation.file for mutation in MUTATIONS)
    assert len(MUTATIONS) >= 40 and {f"trainers/{name}.py" for name in METHODS} <= files.keys()
    assert files["benchmarks/samplers.py"] >= 5
    assert len({(mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(MUTATIONS)


SUM = Mutation(
    name="sum", file="trainers/sum.py", old="a + b", new="a - b", breaks="a sum", tests=("trainers/test_sum.py",)
)
TEST = """
from trainers.sum import add

def test_the_sum_of_one_and_zero() -> None:
    assert add(1, 0) == 1

def test_the_sum_of_one_and_two() -> None:
    assert add(1, 2) == 3
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one function and its test; this project's own package of that name is not imported meanwhile."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trainers"]:
        monkeypatch.delitem(sys.modules, name)
    for folder in ("trainers", "tests/trainers"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    (tmp_path / "tree" / "trainers" / "sum.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tree" / "tests" / "trainers" / "test_sum.py").write_text(TEST)
    (tmp_path / "tree" / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\npythonpath = ["."]\n'
    )
    return tmp_path / "tree"


def test_a_mutation_is_killed_by_the_test_that_fails_and_survives_where_none_does(tree: Path, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", tree)
    assert copy.verdict(SUM) == "tests/trainers/test_sum.py::test_the_sum_of_one_and_two"
    assert copy.verdict(replace(SUM, new="b + a")) == SURVIVED
    assert (tree / "trainers" / "sum.py").read_text() == (copy.folder / "trainers" / "sum.py").read_text()


def test_a_test_that_fails_anyway_proves_nothing(tree: Path, tmp_path: Path) -> None:
    copy, file = Copy(tmp_path / "copy", tree), "tests/trainers/test_sum.py"
    (copy.folder / file).write_text(TEST.replace("== 3", "== 4"))
    tests = [f"{file}::test_the_sum_of_one_and_zero", f"{file}::test_the_sum_of_one_and_two"]
    assert copy.failing(tests) == tests[1:] and copy.failing([]) == []
    with pytest.raises(UserError, match="exit code 4"):
        copy.failing([f"{file}::nowhere"])


def test_a_mutation_that_no_test_can_import_is_no_kill(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sum: pytest ended with exit code"):
        Copy(tmp_path / "copy", tree).verdict(replace(SUM, new="a +"))


@pytest.mark.parametrize(("old", "count"), [("a - b", 0), ("a", 3)])
def test_a_text_that_is_not_there_once_is_named(old: str, count: int) -> None:
    with pytest.raises(UserError, match=rf"sum: '{old}' is {count} times in trainers/sum.py, not once"):
        replace(SUM, old=old).apply("def add(a, b):\n    return a + b\n")


def test_a_verdict_is_known_by_mutation_source_and_tests(tree: Path) -> None:
    for name in SHARED:
        (tree / name).write_text("")
    seen = {digest(SUM, tree), digest(replace(SUM, new="b"), tree)}
    for name in ("trainers/sum.py", "tests/trainers/test_sum.py", "tests/trainers/closed_form.py"):
        (tree / name).write_text((tree / name).read_text() + "\n")
        seen.add(digest(SUM, tree))
    assert len(seen) == 5
