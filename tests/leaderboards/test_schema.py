"""What a result file may hold, and the one line that a bad one gets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboards import schema
from leaderboards.__main__ import SCHEMA
from leaderboards.schema import SCHEMA_VERSION, ResultError, dump_result, json_schema, read_result

Add = Callable[..., Path]
GOLDEN = Path(__file__).parent / "golden"


def test_committed_json_schema_is_the_generated_one() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema()


def test_a_result_survives_its_file(add: Add) -> None:
    path = add()
    assert dump_result(read_result(path)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"suite": "tiny"', '"suite": "tiny", "surprise": 1', "surprise: Extra inputs"),
        ('"suite": "tiny"', '"suite": "../tiny"', "suite: String should match"),
        ('"suite": "tiny"', '"suite": "ti\\u202eny"', "suite: String should match"),
        ('"suite": "tiny"', '"suite": "ti\\ud800ny"', "surrogates"),
        ('"name": "student"', f'"name": "{"x" * 10_000}"', "at most 200"),
        ('"nfe": 4', '"nfe": "4"', "valid integer"),
        ('"nfe": 4', '"nfe": -4', "greater than or equal to 0"),
        ('"nfe": 4', f'"nfe": 1{"0" * 5000}', "digit"),
        ('"sampler": "cps"', '"sampler": NaN', "NaN is not a finite number"),
        ('"sampler": "cps"', '"sampler": 1e999', "1e999 is not a finite number"),
        ('"status": "ok"', '"status": "failed"', "value exactly when its status is ok"),
        ('"schema_version": 1', '"schema_version": 2', "newer than 1"),
        ('"schema_version": 1', '"schema_version": 0', "no known schema_version"),
        ('"schema_version": 1', '"schema_version": "1"', "no known schema_version"),
    ],
)
def test_a_forged_result_gets_one_line(add: Add, old: str, new: str, message: str) -> None:
    path = add()
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ResultError, match=message) as caught:
        read_result(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "Expecting value"), (b"[]", "JSON object"), (b"\xff", "utf-8"), (b"[" * 200_000, "nested too deeply")],
)
def test_what_is_no_json_object_gets_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "student.json"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=message):
        read_result(path)


def test_a_missing_and_an_absurdly_large_file_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_result(tmp_path / "none.json")
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (2**24 + 1))
    with pytest.raises(ResultError, match="larger than 16 MiB"):
        read_result(path)


def test_control_characters_of_a_file_never_reach_the_terminal(add: Add) -> None:
    path = add()
    table = json.loads(path.read_text(encoding="utf-8"))
    table["\x1b[31m\nok"] = 1
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ResultError) as caught:
        read_result(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("result-v*.json")), ids=lambda path: path.stem)
def test_a_result_of_every_older_version_is_still_read(path: Path) -> None:
    result = read_result(path)
    assert result.schema_version == SCHEMA_VERSION and result.model.trained_on == ["score"]
    assert result.tasks[0].metrics["judge"].value == 0.29166666666666663 and result.model.training is not None


def test_every_version_has_a_golden_file() -> None:
    assert {path.name for path in GOLDEN.glob("result-v*.json")} == {
        f"result-v{version}.json" for version in range(1, SCHEMA_VERSION + 1)
    }


def test_older_versions_are_lifted_one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def lift(table: dict[str, Any]) -> dict[str, Any]:
        return {**table, "schema_version": table["schema_version"] + 1, "steps": [*table.get("steps", []), "one"]}

    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(schema, "MIGRATIONS", {1: lift, 2: lift})
    assert schema.upgrade({"schema_version": 1}) == {"schema_version": 3, "steps": ["one", "one"]}
    with pytest.raises(ResultError, match="newer than 3"):
        schema.upgrade({"schema_version": 4})
    with pytest.raises(ResultError, match="no known schema_version"):
        schema.upgrade({"schema_version": 0})
