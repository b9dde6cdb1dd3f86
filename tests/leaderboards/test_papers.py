"""The papers' tables: what the files promise, and that a damaged one is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboards.papers import REPORTED, PaperTable, is_paper_table, read_paper_table, read_paper_tables
from leaderboards.schema import ResultError

TABLES = read_paper_tables()
SOURCE = REPORTED / "rtdmd-table4.json"


def test_every_table_of_every_paper_is_there() -> None:
    numbers = {
        paper: [t.number for t in TABLES.values() if t.paper.id == paper]
        for paper in ("dmdr-v1", "dmdr-v2", "rtdmd", "dp-dmd")
    }
    assert numbers == {
        "dmdr-v1": ["1", "2", "3", "4", "5", "6"],
        "dmdr-v2": ["1", "2", "3", "4", "5a", "5b", "5c", "6"],
        "rtdmd": ["1", "2", "3", "4", "5"],
        "dp-dmd": ["1", "2", "3", "4", "5"],
    }
    assert all(table.paper.arxiv for table in TABLES.values())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_of_a_table_can_be_told_apart(table: PaperTable) -> None:
    keys = [(row.group, label, row.nfe) for row, label in zip(table.rows, table.labels(), strict=True)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["rtdmd-table1", "rtdmd-table3", "rtdmd-table4"])
def test_differences_that_rtdmd_prints_are_differences_of_its_scores(name: str) -> None:
    """Against one row of the table, whose own difference is left empty."""
    table, checked = TABLES[name], 0
    (reference,) = [row for row in table.rows if all(v is None for k, v in row.values.items() if "Δ" in k)]
    for row in table.rows:
        for column in table.columns:
            delta, score = row.values[column.name], column.name.replace("Δ(↑)", "Score↑")
            if column.metric.endswith("_delta") and delta is not None:
                ours, base = row.values[score], reference.values[score]
                assert ours is not None and base is not None
                assert delta == pytest.approx(ours - base, abs=1e-9)
                checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", ["dmdr-v2-table3", "rtdmd-table5", "dp-dmd-table5"])
def test_geneval_overall_is_the_mean_of_its_categories_but_for_known_rows(name: str) -> None:
    table = TABLES[name]
    off = []
    for row in table.rows:
        parts = [row.values[column.name] for column in table.columns[1:]]
        mean = sum(part for part in parts if part is not None) / len(parts)
        overall = row.values[table.columns[0].name]
        assert overall is not None
        if abs(overall - mean) > 0.0051:
            off.append(row.name)
    assert len(off) <= 4, off


def test_a_number_is_shown_as_printed() -> None:
    (row,) = [row for row in TABLES["dmdr-v2-table2"].rows if row.text("Aesthetic Score") == "5.6480"]
    assert row.values["Aesthetic Score"] == 5.648 and row.name == "Base-Model"


def test_reference_numbers_of_the_paper_are_left_out_of_names() -> None:
    assert TABLES["dmdr-v1-table1"].rows[3].system == "DMD2 [58]" and TABLES["dmdr-v1-table1"].rows[3].name == "DMD2"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t["rows"][0]["values"].popitem(), "too many or few"),
        (lambda t: t["rows"][0]["printed"].update({"HPSv2 Score↑": "0.2943"}), "is '0.2943', its value is not"),
        (lambda t: t["columns"][0].update(name=t["columns"][1]["name"]), "two columns have one name"),
        (lambda t: t.update(number="3"), "is not that of table 3"),
        (lambda t: t.update(schema_version=2), "schema_version"),
        (lambda t: t["rows"][0].update(rank=1), "rows.0.rank"),
        (lambda t: t["rows"][0]["values"].update({"HPSv2 Score↑": 1e999}), "finite"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, damage: Callable[[dict], object], message: str) -> None:
    table = json.loads(SOURCE.read_text())
    damage(table)
    path = tmp_path / SOURCE.name
    path.write_text(json.dumps(table))
    with pytest.raises(ResultError, match=message) as caught:
        read_paper_table(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(SOURCE.read_bytes())
    assert is_paper_table(path)
    with pytest.raises(ResultError, match="would differ in name"):
        read_paper_table(path)
