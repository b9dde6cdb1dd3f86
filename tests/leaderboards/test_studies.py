"""Studies: a verdict follows from its interval, or the file is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from leaderboards.build import ROOT
from leaderboards.page import data
from leaderboards.schema import ResultError
from leaderboards.studies import READING, STUDIES, Effect, read_studies, read_study, study_json_schema

CLAIM: dict[str, Any] = {
    "id": "joint-beats-sequential",
    "statement": "Joint training beats DMD followed by RL on held-out metrics.",
    "source": {"paper": "DMDR v2, arXiv:2511.13649", "where": "Table 4"},
    "arms": ["joint", "DMD, then RL"],
    "effect": {"measure": "share of right pictures", "unit": "", "value": 0.04, "low": 0.01, "high": 0.07,
               "claimed": "above", "smallest": 0.02},
    "seeds": [0, 1, 2],
    "prompts": 522,
    "power": 0.8,
    "verdict": "holds",
    "figure": {"title": "t", "x": "iteration", "y": "score",
               "series": [{"name": "joint", "points": [{"x": 1, "y": 0.5, "low": 0.4, "high": 0.6}]}]},
}  # fmt: skip
HEAD = {"schema_version": 1, "title": "Micro", "about": "…", "command": "tox -e study"}
STUDY: dict[str, Any] = {**HEAD, "kind": "claims", "claims": [CLAIM]}
ROW = {"id": "scoring", "what": "scoring", "ours": "one pass", "other": "packages", "ratio": 3.2, "repetitions": 5}
SPEED: dict[str, Any] = {**HEAD, "kind": "speed", "rows": [ROW]}


def written(folder: Path, study: dict[str, Any], **changes: Any) -> Path:
    table = copy.deepcopy(study)
    if "claims" in table:
        effect = changes.pop("effect", {})
        table["claims"][0] |= changes
        table["claims"][0]["effect"] |= effect
    else:
        table["rows"][0] |= changes
    path = folder / "study.json"
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (0.01, 0.07, "above", "holds"),
        (-0.07, -0.01, "below", "holds"),
        (-0.01, 0.015, "above", "does not hold"),  # at most 0.015, and 0.02 would matter
        (-0.015, 0.01, "below", "does not hold"),
        (-0.07, -0.01, "above", "does not hold"),
        (0.01, 0.07, "below", "does not hold"),
        (-0.01, 0.05, "above", "undecided"),
        (-0.05, 0.01, "below", "undecided"),
        (0.0, 0.05, "above", "undecided"),  # touches 0
    ],
)
def test_a_verdict_follows_from_interval_and_smallest_effect(
    low: float, high: float, claimed: str, verdict: str
) -> None:
    effect = Effect(measure="m", unit="", value=(low + high) / 2, low=low, high=high, claimed=claimed, smallest=0.02)  # type: ignore[arg-type]
    assert effect.verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "claimed", "remark"),
    [
        (0.01, 0.07, "above", ""),
        (0.01, 0.015, "above", "by less than 0.02"),  # of two true readings the verdict tells one
        (-0.015, -0.01, "below", "by less than 0.02"),
        (-0.01, 0.015, "above", "any such difference is below 0.02"),
        (-0.015, 0.01, "below", "any such difference is below 0.02"),
        (-0.07, -0.01, "above", "the other way round"),
        (0.01, 0.07, "below", "the other way round"),
        (0.001, 0.015, "apart from", "by less than 0.02"),
        (0.001, 0.04, "apart from", ""),
        (-0.01, 0.05, "above", ""),  # undecided
        (-0.07, -0.03, "not below", ""),
    ],
)
def test_a_remark_tells_what_the_verdict_leaves_open(low: float, high: float, claimed: str, remark: str) -> None:
    effect = Effect(measure="m", unit="", value=(low + high) / 2, low=low, high=high, claimed=claimed, smallest=0.02)  # type: ignore[arg-type]
    assert effect.remark == remark


def test_a_study_is_read_and_told_to_the_page(tmp_path: Path) -> None:
    written(tmp_path, STUDY)
    (tmp_path / "speed.json").write_text(json.dumps(SPEED))
    told = data.studies(read_studies(tmp_path))
    assert [one["sections"][0]["claims"][0]["verdict"] for one in told["claims"]] == ["holds"]
    assert told["speed"][0]["rows"][0]["ratio"] == 3.2 and told["reading"] == READING
    assert read_studies(tmp_path / "none") == {}


def test_measurements_are_told_with_what_stands_beside_them(tmp_path: Path) -> None:
    beside = {"value": 1.21, "what": "a system, Time", "source": "dmdr-v2-table1"}
    row = {
        "id": "a", "what": "seconds of an iteration", "value": 2.5, "unit": "seconds", "repetitions": 3,
        "setting": "a GPU", "versions": {"torch": "2"}, "beside": [beside],
    }  # fmt: skip
    told = {**HEAD, "kind": "measurements", "rows": [row]}
    (tmp_path / "gpu.json").write_text(json.dumps(told))
    (shown,) = data.studies(read_studies(tmp_path))["measurements"]
    assert shown["id"] == "gpu" and shown["rows"][0]["beside"][0]["value"] == 1.21
    (tmp_path / "gpu.json").write_text(json.dumps({**told, "rows": [{**row, "value": 0}]}))
    with pytest.raises(ResultError, match=r"gpu.json: .*value"):
        read_studies(tmp_path)


@pytest.mark.parametrize(
    ("study", "changes", "told"),
    [
        (STUDY, {"verdict": "undecided"}, "does not follow"),
        (STUDY, {"remark": "by far"}, "remark must be ''"),
        (STUDY, {"effect": {"value": 0.012, "high": 0.015}}, "remark must be 'by less than 0.02'"),
        (STUDY, {"verdict": "not judged", "notes": "no", "remark": "so so"}, "no remark"),
        (STUDY, {"effect": {"value": 0.2}}, "outside its interval"),
        (STUDY, {"at": "equal cost"}, "at"),
        (STUDY, {"p": 1.5}, "p"),
        (STUDY, {"seeds": []}, "seeds"),
        (STUDY, {"power": 1.5}, "power"),
        (STUDY, {"id": "../up"}, "id"),
        (STUDY, {"extra": 1}, "extra"),
        (SPEED, {"ratio": 0}, "ratio"),
        (SPEED, {"ratio": None}, "ratio"),
    ],
)
def test_faults_are_named_by_file_and_key(
    tmp_path: Path, study: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    path = written(tmp_path, study, **changes)
    with pytest.raises(ResultError, match=told) as caught:
        read_study(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_committed_schema_and_studies_are_valid() -> None:
    assert (ROOT / "studies.schema.json").read_text(encoding="utf-8") == study_json_schema()
    read_studies(STUDIES)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (-0.01, 0.07, "not below", "holds"),
        (-0.07, 0.01, "not above", "holds"),
        (-0.07, -0.03, "not below", "does not hold"),
        (0.03, 0.07, "not above", "does not hold"),
        (-0.03, -0.01, "not below", "undecided"),
        (-0.01, 0.01, "near", "holds"),
        (0.03, 0.04, "near", "does not hold"),
        (-0.04, -0.03, "near", "does not hold"),
        (-0.01, 0.03, "near", "undecided"),
        (0.001, 0.04, "apart from", "holds"),
        (-0.04, -0.001, "apart from", "holds"),
        (-0.01, 0.01, "apart from", "does not hold"),
        (-0.01, 0.03, "apart from", "undecided"),
    ],
)
def test_claims_of_equality_need_intervals_within_what_would_matter(
    low: float, high: float, claimed: str, verdict: str
) -> None:
    effect = Effect(measure="m", unit="", value=(low + high) / 2, low=low, high=high, claimed=claimed, smallest=0.02)  # type: ignore[arg-type]
    assert effect.verdict == verdict


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seeds_needed": 5}, "must be 'not judged'"),
        ({"effect": {"value": 0.04}, "verdict": "not judged"}, "has all its seeds"),
        ({"seeds": [0, 1], "seeds_needed": 3, "verdict": "holds"}, "2 seeds of 3"),
    ],
)
def test_a_claim_without_its_seeds_is_not_judged(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ResultError, match=told):
        read_study(written(tmp_path, STUDY, **changes))


def test_what_is_not_judged_is_still_listed(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY)
    table = json.loads(path.read_text())
    table["claims"][0] |= {"verdict": "not judged", "seeds": [], "seeds_needed": 3, "effect": None, "power": None}
    path.write_text(json.dumps(table))
    (section,) = data.studies(read_studies(tmp_path))["claims"][0]["sections"]
    assert section["title"] == "Further claims" and section["claims"][0]["verdict"] == "not judged"
