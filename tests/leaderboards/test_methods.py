"""The list of methods: complete for the papers' tables, and true of this tree."""

from pathlib import Path

import pytest

from leaderboards.methods import ROOT, Method, limits_markdown, read_methods
from leaderboards.papers import read_paper_tables
from leaderboards.schema import ResultError

# Rows that name no method: settings of an ablation, a base model by its role, sums.
ROLES = ("Teacher", "Base", "Ours", "init", "CFG=", "5", "30", "3", "2.0", "10", "1", "0.", "-Dynamic")


def names() -> list[str]:
    return [row.name for table in read_paper_tables().values() for row in table.rows]


def parts(name: str) -> tuple[str, ...]:
    """A system's name, and what it was trained with: "SD3.5-M w/ TDM-R1"."""
    return name, *name.split(" w/ ")[1:]


def test_every_system_of_every_table_is_accounted_for() -> None:
    known = tuple(start for method in read_methods() for start in method.rows) + ROLES
    for name in names():
        assert any(part.startswith(known) for part in parts(name)), name


def test_every_row_a_method_claims_is_in_a_table() -> None:
    for method in read_methods():
        for start in method.rows:
            assert any(part.startswith(start) for name in names() for part in parts(name)), (
                f"{method.name}: no table has {start!r}"
            )


def test_a_method_is_implemented_only_where_all_its_files_are() -> None:
    fields = {"name": "X", "kind": "k", "named_by": ["DMDR"], "why": "because"}
    assert Method(**fields, files=["leaderboards/vote.py"]).state == "implemented"
    assert Method(**fields, files=["leaderboards/vote.py", "none.py"], rows=["X"]).state == "reported only"
    assert Method(**fields, files=["none.py"]).state == "not implemented"
    assert Method(**fields).state == "not implemented"


def test_names_are_given_once_and_files_lie_within_the_tree() -> None:
    methods = read_methods()
    assert len({method.name for method in methods}) == len(methods)
    for name in (name for method in methods for name in method.files):
        assert (ROOT / name).resolve().is_relative_to(ROOT)


def test_the_list_tells_the_file_or_the_reason() -> None:
    text = limits_markdown(read_methods())
    assert "| DMD | implemented | `trainers/dmd.py` |" in text
    assert "| GDMD | reported only | no public code" in text


def test_an_unknown_key_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "methods.toml"
    path.write_text('[[methods]]\nname = "X"\nkind = "k"\nnamed_by = ["a"]\nwhy = "b"\nwy = "c"\n')
    with pytest.raises(ResultError, match="wy"):
        read_methods(path)
