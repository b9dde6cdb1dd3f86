"""Publishing: complete, checked, repeatable; what is invalid or foreign is refused."""

import ast
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboards import page
from leaderboards.build import LIBRARY, RESULTS, SITE, SUMS, build
from leaderboards.publish import check_site, publish_site
from leaderboards.schema import ResultError

Add = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "plots", lambda: b"fewstep.chunk('plots',true);\n")  # bundling takes seconds


def test_a_publication_holds_page_data_evidence_and_checksums(add: Add, tmp_path: Path) -> None:
    add("student")
    publish_site(tmp_path / "results", tmp_path / "to")
    names = (tmp_path / "to" / "SHA256SUMS").read_text().split()[1::2]
    for wanted in ("index.html", "tiny.md", "data/tiny/student.details.js", "results/tiny/student.evidence.parquet"):
        assert wanted in names
    assert check_site(tmp_path / "to") == len(names)


def test_publishing_again_removes_what_is_gone_and_changes_nothing_else(add: Add, tmp_path: Path) -> None:
    add("student")
    path = add("other")
    publish_site(tmp_path / "results", tmp_path / "to")
    first = (tmp_path / "to" / "SHA256SUMS").read_bytes()
    publish_site(tmp_path / "results", tmp_path / "to")
    assert (tmp_path / "to" / "SHA256SUMS").read_bytes() == first
    for file in path.parent.glob("other*.json"):
        file.unlink()
    publish_site(tmp_path / "results", tmp_path / "to")
    assert not (tmp_path / "to/results/tiny/other.json").exists()
    assert (tmp_path / "to/results/tiny/student.json").is_file()


def test_a_changed_file_is_told(add: Add, tmp_path: Path) -> None:
    add("student")
    publish_site(tmp_path / "results", tmp_path / "to")
    (tmp_path / "to" / "tiny.md").write_text("forged")
    with pytest.raises(ResultError, match="changed since it was published"):
        check_site(tmp_path / "to")


def test_an_invalid_result_is_not_published(add: Add, tmp_path: Path) -> None:
    add("student").write_text("{")
    with pytest.raises(ResultError, match="not published"):
        publish_site(tmp_path / "results", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_folder_with_other_files_is_left_alone(add: Add, tmp_path: Path) -> None:
    add("student")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "thesis.tex").write_text("mine")
    with pytest.raises(ResultError, match="no SHA256SUMS"):
        publish_site(tmp_path / "results", tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["thesis.tex"]


def test_the_committed_page_and_tables_are_those_that_the_committed_results_give(tmp_path: Path) -> None:
    """After a change of results, style or script: python -m leaderboards build."""
    build(RESULTS, tmp_path)
    tables = list(SITE.glob("*.md"))
    assert tables
    assert (tmp_path / SUMS).read_text() == (SITE / SUMS).read_text(), "another page than the committed one"
    for path in tables:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), f"{path} is out of date"


def test_the_page_s_sums_are_of_its_files_but_for_the_library(add: Add, tmp_path: Path) -> None:
    add("student")
    build(tmp_path / "results", tmp_path / "site")
    told = dict(reversed(line.split("  ")) for line in (tmp_path / "site" / SUMS).read_text().splitlines())
    files = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".js", ".html")]
    found = {
        path.relative_to(tmp_path / "site").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert found.pop(LIBRARY)
    assert told == found
    assert "index.html" in told and "data/tiny/student.evidence.js" in told


def test_the_workflow_that_publishes_installs_all_that_this_package_imports() -> None:
    workflow = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    (line,) = re.findall(r"pip install -c constraints.txt (.*)", workflow)
    called = {"PIL": "pillow", "markupsafe": "jinja2"}  # jinja2 brings the other
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "leaderboards").rglob("*.py")]
    modules = {node.module or "" for tree in trees for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {
        name.name for tree in trees for node in tree.body if isinstance(node, ast.Import) for name in node.names
    }
    imported = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"leaderboards"}
    assert {called.get(name, name) for name in imported} <= set(line.split())
