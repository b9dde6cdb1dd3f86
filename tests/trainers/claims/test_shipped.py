"""The committed study against the committed records of its runs."""

from pathlib import Path

import pytest

from leaderboards.studies import STUDIES, Claims, read_study
from leaderboards.study_report import write_study
from trainers.claims.plan import FOLDER
from trainers.claims.plan import read_study as read_plan
from trainers.claims.record import Records, read_record
from trainers.claims.report import claims_of
from trainers.claims.runs import Runs
from trainers.claims.schedule import ordered

COMMITTED = STUDIES / "micro-claims.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("runs")
    return Runs(read_plan(FOLDER / "micro.toml"), place, Records(COMMITTED.with_suffix("") / "runs"))


def test_every_record_is_of_the_shipped_plan(runs: Runs) -> None:
    names = {item.name: item for item in ordered(runs.study)}
    for path in sorted(runs.records.folder.glob("*.json")):
        assert read_record(path) == runs.record(names[path.stem]), (
            f"{path.name}: the plan has changed since: run it anew"
        )


def test_the_study_follows_from_the_records(runs: Runs) -> None:
    committed = read_study(COMMITTED)
    assert isinstance(committed, Claims)
    assert close(claims_of(runs, committed.command).model_dump(), committed.model_dump())


def test_its_pictures_and_text_are_what_is_made_of_it(tmp_path: Path) -> None:
    committed = read_study(COMMITTED)
    assert isinstance(committed, Claims)
    write_study(committed, tmp_path / COMMITTED.name)
    assert (tmp_path / COMMITTED.with_suffix(".md").name).read_text() == COMMITTED.with_suffix(".md").read_text()
    made, kept = (
        {path.name: path.read_text() for path in folder.glob("*.svg")}
        for folder in (tmp_path / COMMITTED.stem, COMMITTED.with_suffix(""))
    )
    assert made == kept and made.keys() == {f"{figure.id}.svg" for figure in committed.figures}


def close(found: object, stated: object) -> bool:
    """Return whether nested tables are alike, numbers within what another processor's rounding makes of them."""
    if isinstance(found, dict) and isinstance(stated, dict):
        return found.keys() == stated.keys() and all(close(found[key], stated[key]) for key in found)
    if isinstance(found, list) and isinstance(stated, list):
        return len(found) == len(stated) and all(map(close, found, stated))
    return found == (pytest.approx(stated, rel=1e-6, abs=1e-9) if isinstance(stated, float) else stated)
