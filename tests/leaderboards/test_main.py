"""The command line: what it prints, and the exit code of every mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboards.__main__ import main
from leaderboards.papers import REPORTED
from tests.leaderboards.conftest import training

Add = Callable[..., Path]
PAPERS = "24 tables of papers: ok, 174 rows"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_building_twice_gives_the_same_bytes(add: Add, tmp_path: Path) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model={"method": "rtdmd", "training": training()})
    for out in ("one", "two"):
        assert main(["build", "--results", str(tmp_path / "results"), "--out", str(tmp_path / out)]) == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert {"index.html", "tiny.md", "data/plots.js", "data/tiny/student.details.js"} <= set(
        files_of(tmp_path / "one")
    )


def test_an_empty_board_builds_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--results", str(tmp_path), "--out", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.startswith("no results yet → ")
    assert main(["validate", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no results yet\n{PAPERS}\n"


def test_build_names_what_it_leaves_out_and_shows_the_rest(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add("good")
    add("bad").write_text("{")
    assert main(["build", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site")]) == 0
    caught = capsys.readouterr()
    assert len(caught.err.splitlines()) == 1 and "bad.json" in caught.err
    assert "tiny: 1 results" in caught.out


def test_validate_recomputes_intervals_too(add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, path = add("good"), add()
    table = json.loads(path.read_text())
    table["tasks"][0]["metrics"]["judge"]["low"] -= 0.001
    path.write_text(json.dumps(table))
    assert main(["validate", "--results", str(tmp_path / "results")]) == 2
    caught = capsys.readouterr()
    assert caught.out == f"{good}: ok, 48 rows of evidence\n{PAPERS}\n"
    assert "judge: low is stated as" in caught.err and len(caught.err.splitlines()) == 1


def test_restate_mends_intervals_and_nothing_else(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, path = add("good"), add()
    text, board = path.read_text(), str(tmp_path / "results")
    table = json.loads(text)
    judged = table["tasks"][0]["metrics"]["judge"]
    judged["low"] -= 0.001
    for part in judged["categories"].values():
        part["high"] = 1.0
    path.write_text(json.dumps(table))
    assert main(["restate", "--results", board]) == 0
    assert capsys.readouterr().out == f"{good}: as it was\n{path}: restated\n"
    assert path.read_text() == text
    judged["value"] += 0.001  # no matter of method
    path.write_text(json.dumps(table))
    assert main(["restate", "--results", board]) == 2
    assert "judge: value is stated as" in capsys.readouterr().err
    assert json.loads(path.read_text()) == table


def test_validate_takes_files_folders_and_paths_within_the_board(add: Add, tmp_path: Path) -> None:
    path, board = add(), str(tmp_path / "results")
    for given in (str(path), str(path.parent), str(path.parents[1]), "tiny/student.json", "tiny"):
        assert main(["validate", given, "--results", board]) == 0


def test_validate_covers_the_tables_of_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(REPORTED)]) == 0
    assert "dmdr-v2-table2.json: ok, 19 rows reported by dmdr-v2" in capsys.readouterr().out
    path = tmp_path / "rtdmd-table3.json"
    path.write_text((REPORTED / path.name).read_text().replace('"number": "3"', '"number": "4"'))
    assert main(["validate", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_table_writes_a_paper_table_and_lists_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 24
    assert main(["table", "dmdr-v2-table2", "--format", "latex", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("\\begin{table}")


def test_compare_shows_paired_differences(add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add("strong", 1.0, model={"trained_on": ["score"]})
    add("weak", 0.0)
    assert main(["compare", "strong", "tiny/weak", "--results", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    assert "+1.000" in out and "0.0" in out and "trained on" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--results", "none"], "none: no such folder of results"),
        (["validate", "none"], "none: no such result file or folder"),
        (["table", "dmdr-v2-tabel2"], "did you mean 'dmdr-v2-table2'"),
        (["compare", "studnet", "student"], "studnet: no such result; known: other/student, tiny/student"),
        (["compare", "student", "student"], "in several suites; say which: other/student, tiny/student"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    add()
    add(suite="other")
    board = [] if "--results" in arguments else ["--results", str(tmp_path / "results")]
    assert main([*arguments, *board]) == 2
    caught = capsys.readouterr()
    assert message in caught.err and len(caught.err.splitlines()) == 1 and "Traceback" not in caught.err


def test_models_measured_differently_are_not_compared(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = add("one")
    table = json.loads(path.read_text())
    table["tasks"][0]["prompts_digest"] = "c" * 64
    path.write_text(json.dumps(table))
    add("two")
    assert main(["compare", "one", "two", "--results", str(tmp_path / "results")]) == 2
    assert "no metric in common" in capsys.readouterr().err


def test_unknown_command_is_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bild"]) == 2
    assert capsys.readouterr().err == "unknown: bild; see python -m leaderboards --help\n"


@pytest.mark.parametrize("name", ["../../etc/passwd", "../tiny/student", "tiny/../student", "..", "tiny/*"])
def test_names_with_path_tricks_find_nothing(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    add()
    assert main(["compare", name, "student", "--results", str(tmp_path / "results")]) == 2
    assert "no such result" in capsys.readouterr().err


def test_compare_writes_a_page(add: Add, tmp_path: Path) -> None:
    add("a", 0.9)
    add("b", 0.2, 1)
    page = tmp_path / "new" / "compare.html"
    assert main(["compare", "a", "b", "--page", str(page), "--results", str(tmp_path / "results")]) == 0
    assert "Prompts that changed most" in page.read_text()


def test_an_unknown_view_or_a_missing_page_is_not_photographed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["screenshots", "--to", str(tmp_path / "to"), "--site", str(tmp_path)]
    assert main([*command, "--views", "tables"]) == 2
    assert "no view 'tables'; known: table, " in capsys.readouterr().err
    assert main([*command, "--views", "table", "--widths", "390"]) == 2
    assert "no index.html" in capsys.readouterr().err
