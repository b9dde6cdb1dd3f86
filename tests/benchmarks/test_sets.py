import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from benchmarks import sets
from benchmarks.dpg_questions import git_blob_id
from benchmarks.prompts import Fields, read_prompts
from benchmarks.sets import FOLDER, MissingPrompts, declared_sets, is_named, read_set
from benchmarks.suites import available_suites, read_suite
from metrics import dpg
from metrics.base import UserError


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Declare one set "theirs", of two lines, that is not shipped; return its file's content."""
    content = "a red circle\na blue square\n"
    entry = sets.DeclaredSet(
        file="theirs.txt", source="https://example.org/list.txt", licence="none declared",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setattr(sets, "declared_sets", lambda: {"theirs": entry})
    monkeypatch.delenv("FEWSTEP_BENCH_PROMPTS", raising=False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return content


@pytest.mark.parametrize("name", [name for name, entry in declared_sets().items() if entry.shipped])
def test_shipped_sets_are_those_that_were_declared(name: str) -> None:
    assert (
        hashlib.sha256((FOLDER / declared_sets()[name].file).read_bytes()).hexdigest() == declared_sets()[name].sha256
    )
    entry = declared_sets()[name]
    prompts = read_prompts(FOLDER / entry.file, Fields(id=entry.id_field, category=entry.category_field))
    ids = {"imagereward": 100, "coco10k": 10_000, "geneval": 553, "dpg": 1065, "ocr": 1018}
    assert len({prompt.id for prompt in prompts.prompts}) == ids[name]
    assert len({prompt.text for prompt in prompts.prompts}) == entry.prompts
    assert prompts.listed == (entry.listed or entry.prompts)
    assert prompts.repeats == prompts.listed - entry.prompts
    assert f"`{name}`" in (FOLDER / "README.md").read_text()
    assert f"`{entry.file}`" in (FOLDER / "NOTICE.md").read_text()


def test_nothing_else_is_shipped() -> None:
    shipped = {entry.file for entry in declared_sets().values() if entry.shipped}
    suites = (task.prompts for suite in available_suites() for task in read_suite(suite).tasks)
    shipped |= {Path(prompts).name for prompts in suites if Path(prompts).parent.name == FOLDER.name}
    assert {path.name for path in FOLDER.iterdir()} == shipped | {"README.md", "NOTICE.md", "sets.toml"}


def test_every_set_that_a_suite_names_exists() -> None:
    for suite in available_suites():
        for task in read_suite(suite).tasks:
            assert is_named(task.prompts) or Path(task.prompts).is_file()


def test_a_set_that_is_not_there_says_where_to_get_it(declared: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPrompts, match=r"'theirs' is not shipped .*none declared.*save it as theirs.txt"):
        read_set("theirs")
    with pytest.raises(MissingPrompts, match=r"theirs.txt: no such file; .*save it as theirs.txt .source: https"):
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


def test_a_set_of_which_git_s_id_is_known_is_held_to_it(
    declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(sets.declared_sets()["theirs"], sha256="", git_blob=git_blob_id(declared.encode()))
    monkeypatch.setattr(sets, "declared_sets", lambda: {"theirs": entry})
    (tmp_path / "theirs.txt").write_text(declared)
    assert len(read_set("theirs", tmp_path).prompts) == 2
    (tmp_path / "theirs.txt").write_text(declared + "one more\n")
    with pytest.raises(UserError, match=r"theirs.txt: git's id is .*, that of prompt set 'theirs' is"):
        read_set("theirs", tmp_path)


def test_what_can_be_fetched_is_held_to_a_digest_at_a_whole_commit() -> None:
    for entry in declared_sets().values():
        assert not entry.url or entry.sha256 or entry.git_blob
        for url in (entry.url, entry.questions.url if entry.questions else ""):
            assert not url or re.search(r"/[0-9a-f]{40}/", url)


def test_an_unknown_set_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match="unknown prompt set 'drawbnch'; did you mean 'drawbench'"):
        read_set("drawbnch")
    with pytest.raises(UserError, match="did you mean 'micro'"):
        read_set("mirco")


QUESTIONS = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,\
question_natural_language
a,x,,1,0,entity,whole,entity - whole (dog),Is there a dog?
a,x,,2,1,attribute,color,"attribute - color (dog, red)",Is the dog red?
7,y,,1,0,entity,whole,entity - whole (cat),Is there a cat?
"""


@pytest.fixture
def dpg_like(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Declare a set of two prompts whose questions lie in a table beside it; return the table."""
    table = tmp_path / "questions.csv"
    table.write_text(QUESTIONS)
    (tmp_path / "two.jsonl").write_text('{"item_id": "a", "prompt": "x"}\n{"item_id": "7", "prompt": "y"}\n')
    questions = sets.Companion(file=table.name, url="https://e.org/q.csv", git_blob=git_blob_id(table.read_bytes()))
    entry = sets.DeclaredSet(file="two.jsonl", source="here", licence="MIT", id_field="item_id", questions=questions)
    monkeypatch.setattr(sets, "declared_sets", lambda: {"two": entry})
    return table


def test_questions_are_joined_in_the_table_s_order(dpg_like: Path, tmp_path: Path) -> None:
    first, second = read_set("two", tmp_path).prompts
    assert [(q.id, q.parents, q.category, q.row) for q in dpg.questions_of(first)] == [
        (1, (), "entity - whole", 0),
        (2, (1,), "attribute - color", 1),
    ]
    assert second.id == "7"
    assert dpg.questions_of(second)[0].text == "Is there a cat?"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7,y,,1,0", "7,y,,1,3", "question 1 depends on 3, which does not exist"),
        ("7,y,,1,0", "b,y,,1,0", r"1 of 2 prompts have no question \(first: 7\)"),
        ("a,x,,2,1", "a,x,,2,2", "in a circle"),
        ("a,x,,2,1", "a,x,,two,1", "row 1: proposition_id 'two' is no number"),
        ("proposition_id", "proposition", "no column proposition_id"),
        ("Is there a cat?\n", "Is there a cat?\na,x,,3,0,e,w,entity - whole (z),z?\n", "prompt 'a' begins again"),
        ('a,x,,2,1,attribute,color,"attribute - color (dog, red)",Is the dog red?', "a,x,,2", "fewer columns"),
    ],
)
def test_a_bad_table_of_questions_is_one_clear_line(
    old: str, new: str, message: str, dpg_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = QUESTIONS.replace(old, new)
    assert text != QUESTIONS
    dpg_like.write_text(text)
    with pytest.raises(UserError, match="git's id of it is"):
        read_set("two", tmp_path)
    companion = sets.Companion(file=dpg_like.name, url="u", git_blob=git_blob_id(text.encode()))
    entry = sets.DeclaredSet(file="two.jsonl", source="", licence="", id_field="item_id", questions=companion)
    monkeypatch.setattr(sets, "declared_sets", lambda: {"two": entry})
    with pytest.raises(UserError, match=message):
        read_set("two", tmp_path)


def test_questions_that_are_not_there_are_one_clear_line(dpg_like: Path, tmp_path: Path) -> None:
    dpg_like.unlink()
    with pytest.raises(MissingPrompts, match="the questions of prompt set 'two' are not shipped; run: python -m"):
        read_set("two", tmp_path)


def test_git_s_id_of_a_file_is_git_s() -> None:
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
