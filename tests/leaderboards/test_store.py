"""A board on disk: what publishing writes, and that a hostile file hides itself alone."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leaderboards.schema import ResultError
from leaderboards.store import SAFE_STEM, file_stem, publish, read_board, read_entry, write_atomically
from tests.leaderboards.conftest import SEEN, evidence_table, gallery, metric_of, picture, result_of, training

Add = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_published_result_reads_back_whole(add: Add, tmp_path: Path) -> None:
    add(model={"method": "rtdmd", "trained_on": ["score"], "training": training()})
    board = read_board(tmp_path / "results", intervals=True)
    assert board.errors == ()
    (entry,) = board.entries
    assert entry.result.model.name == "student"
    assert [sample.prompt for sample in entry.samples[:2]] == ["a photo of object 0"] * 2
    assert entry.scores("compose", "judge").values_N.tolist().count(1.0) > 0


def test_publishing_twice_writes_the_same_bytes_and_leaves_nothing_behind(add: Add, tmp_path: Path) -> None:
    add()
    before = files_of(tmp_path)
    add()
    assert files_of(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "results" / "tiny").iterdir()) == [
        "student.evidence.parquet",
        "student.gallery",
        "student.json",
    ]


def test_a_new_gallery_replaces_the_old_one(add: Add, tmp_path: Path) -> None:
    add()
    add(gallery=gallery("blue")[:1])
    assert len(read_board(tmp_path / "results").entries[0].samples) == 1
    add(gallery=[])
    assert not (tmp_path / "results" / "tiny" / "student.gallery").exists()


def test_forged_values_are_not_published(tmp_path: Path) -> None:
    table = evidence_table()
    forged = {"judge": metric_of(table, "judge", value=1.0), "score": metric_of(table, "score")}
    with pytest.raises(ResultError, match="judge: value is stated as"):
        publish(result_of(table, metrics=forged), table, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_pictures_are_made_small_enough_for_a_board(add: Add, tmp_path: Path) -> None:
    large = gallery()[0].model_copy(update={"png": picture(size=700)})
    add(gallery=[large])
    (sample,) = read_board(tmp_path / "results").entries[0].samples
    assert Image.open(io.BytesIO(sample.png)).size == (256, 256)


@given(st.text(min_size=1, max_size=200))
def test_every_name_becomes_a_portable_file_name(name: str) -> None:
    assert SAFE_STEM.fullmatch(file_stem(name))


def test_plain_names_stay_and_strange_ones_never_meet() -> None:
    assert file_stem("rtdmd-micro_v1.2") == "rtdmd-micro_v1.2"
    strange = ["..", ".", "a b", "a/b", "a:b", "שלום", "a" * 200, "con<script>"]
    assert len({file_stem(name) for name in strange}) == len(strange)
    assert not any("/" in file_stem(name) or file_stem(name).startswith(".") for name in strange)


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")


def _other_name(path: Path) -> None:
    shutil.copy(path, path.with_name("someone-else.json"))
    path.unlink()


HOSTILE = {
    "another's file name": (_other_name, "belongs at tiny/student.json"),
    "a path to another's evidence": (
        lambda path: _edit(path, lambda t: t["evidence"].update(file="good.evidence.parquet")),
        "evidence.file must be student.evidence.parquet",
    ),
    "a gallery elsewhere": (lambda path: _edit(path, lambda t: t.update(gallery="..")), "gallery must be"),
    "evidence taken away": (lambda path: _edit(path, lambda t: t.update(evidence=None)), "values without evidence"),
    "a wrong digest": (
        lambda path: _edit(path, lambda t: t["evidence"].update(digest="0" * 64)),
        "it was changed",
    ),
    "a forged value": (
        lambda path: _edit(path, lambda t: t["tasks"][0]["metrics"]["judge"].update(value=0.999)),
        "value is stated as 0.999",
    ),
    "a reported row without source": (
        lambda path: _edit(path, lambda t: t.update(kind="reported")),
        "needs a source",
    ),
    "a doubled task": (
        lambda path: _edit(path, lambda t: t["tasks"].append(t["tasks"][0])),
        "two tasks have one name",
    ),
    "half a picture": (
        lambda path: (path.with_name("student.gallery") / "000.png").write_bytes(picture()[:45]),
        "not a whole PNG",
    ),
    "a picture of another kind": (
        lambda path: (path.with_name("student.gallery") / "000.png").write_bytes(b"<svg onload='alert(1)'/>"),
        "not a whole PNG",
    ),
    "a huge picture": (
        lambda path: (path.with_name("student.gallery") / "000.png").write_bytes(picture(size=300)),
        "300 × 300 pixels",
    ),
    "a missing picture": (
        lambda path: (path.with_name("student.gallery") / "001.png").unlink(),
        "No such file",
    ),
    "a caption with more keys": (
        lambda path: (path.with_name("student.gallery") / "index.json").write_text('[{"file": "/etc/passwd"}]'),
        "gallery/index.json",
    ),
    "a box outside its picture": (lambda path: _see(path, {"boxes": [_box(left=101)]}), "less than or equal to 100"),
    "more boxes than fit": (lambda path: _see(path, {"boxes": [_box()] * 99}), "at most 16 items"),
    "an endless reason": (lambda path: _see(path, {"reasons": ["x" * 10**4]}), "at most 2000 characters"),
    "no JSON": (lambda path: path.write_text("{"), "Expecting property name"),
}


def _box(**changes: float) -> dict[str, object]:
    return {"label": "dog", "left": 1.0, "top": 1.0, "width": 1.0, "height": 1.0, **changes}


def _see(path: Path, view: dict[str, object]) -> None:
    index = path.with_name("student.gallery") / "index.json"
    captions = json.loads(index.read_text())
    captions[0]["seen"] = {"judge": view}
    index.write_text(json.dumps(captions))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_result_is_one_line_and_hides_itself_alone(add: Add, tmp_path: Path, kind: str) -> None:
    add("good", seed=1)
    spoil, message = HOSTILE[kind]
    spoil(add())
    board = read_board(tmp_path / "results")
    assert [entry.result.model.name for entry in board.entries] == ["good"]
    (line,) = board.errors
    assert message in line and line.isprintable() and line.startswith("tiny/")


def test_what_was_seen_is_read_back_and_leaves_no_trace_where_nothing_was(add: Add) -> None:
    path = add()
    first, *others = read_entry(path).samples
    assert first.seen == {"judge": SEEN} and all(one.seen == {} for one in others)
    captions = json.loads((path.with_name("student.gallery") / "index.json").read_text())
    assert ["seen" in caption for caption in captions] == [True] + [False] * 5


def test_a_link_in_a_gallery_is_not_followed(add: Add, tmp_path: Path) -> None:
    path = add()
    target = tmp_path / "elsewhere.png"
    target.write_bytes(picture())
    sample = path.with_name("student.gallery") / "000.png"
    sample.unlink()
    sample.symlink_to(target)
    assert "a link" in read_board(tmp_path / "results").errors[0]


def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leaderboards.store.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert path.read_bytes() == b"old"


def test_what_a_kill_left_behind_goes_with_a_later_write(add: Add, tmp_path: Path) -> None:
    board = tmp_path / "results" / "tiny"

    def left(name: str, hours: float) -> Path:
        path, at = board / name, time.time() - 3600 * hours
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        for one in (path, path.parent):
            os.utime(one, (at, at))
        return path

    fresh = [left(".student.json.abc.tmp", 0.9), left(".new-abc.tmp/000.png", 0.9)]  # somebody may be at work
    others = [left(".another.json.abc.tmp", 9), left("student.json.tmp", 9), left("new-abc.tmp/000.png", 9)]
    old = [left(".student.json.def.tmp", 1.1), left(".student.evidence.parquet.def.tmp", 1.1)]
    old += [left(".new-def.tmp/000.png", 1.1), left(".old-def.tmp/000.png", 1.1)]
    add()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in (*fresh, *others))
    assert sorted(path.name for path in board.glob(".*-*.tmp")) == [".new-abc.tmp"]


def test_a_missing_board_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert read_board(tmp_path).entries == ()
    with pytest.raises(ResultError, match="no such folder"):
        read_board(tmp_path / "none")
