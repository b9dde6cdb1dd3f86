from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from metrics.base import UserError
from metrics.weights import Entry, ManifestWeights
from metrics.weights.hub import fetch
from metrics.weights.places import FOLDER


@pytest.fixture
def hub(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A hub that serves the published files; the list holds what was asked of it."""
    served = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    asked: list[dict[str, object]] = []

    def download(repo: str, name: str, *, revision: str, local_dir: Path | None, force_download: bool) -> str:
        asked.append({"name": name, "revision": revision, "force": force_download})
        target = (local_dir or snapshot) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(served[name])
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_only_what_is_missing_or_damaged_is_fetched(
    entry: Entry, snapshot: Path, hub: list[dict[str, object]]
) -> None:
    assert [line.rpartition(": ")[2] for line in fetch(entry)] == ["here", "here", "here"]
    (snapshot / "config.json").unlink()
    (snapshot / "head.pt").write_bytes(b"damaged")
    assert [line.rpartition(": ")[2] for line in fetch(entry)] == ["here", "downloaded", "downloaded"]
    assert hub == [
        {"name": "head.pt", "revision": entry.revision, "force": True},
        {"name": "config.json", "revision": entry.revision, "force": False},
    ]
    ManifestWeights(entry).check()


def test_the_users_folder_is_fetched_into(
    entry: Entry, hub: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine" / "tiny"
    mine.mkdir(parents=True)
    monkeypatch.setenv(FOLDER, str(mine.parent))
    assert len(list(fetch(entry))) == len(hub) == 3
    assert ManifestWeights(entry).folder() == mine


def test_a_source_that_serves_another_file_is_refused(
    entry: Entry, hub: list[dict[str, object]], snapshot: Path
) -> None:
    (snapshot / "config.json").unlink()
    other = replace(entry, files=(replace(entry.files[2], sha256="0" * 64),))
    with pytest.raises(UserError, match=f"should be {'0' * 64}: the source serves another file; it is not used"):
        list(fetch(other))


def test_what_the_manifest_does_not_know_is_printed_to_be_filled_in(entry: Entry, snapshot: Path) -> None:
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    unknown = replace(entry, revision="", files=(replace(entry.files[2], sha256="", bytes=0),))
    lines = list(fetch(unknown))
    assert f"bytes = {entry.files[2].bytes}, sha256 = '{entry.files[2].sha256}'" in lines[1]
    assert f"revision = '{snapshot.name}'" in lines[2]


def test_an_unreachable_hub_says_how_to_go_on(entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **named: object) -> str:
        raise LocalEntryNotFoundError("cannot find the file; check your connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    (snapshot / "head.pt").unlink()
    with pytest.raises(
        UserError, match="source cannot be reached, or HF_HUB_OFFLINE is set; bring it from https://x"
    ):
        list(fetch(entry))


def test_files_outside_the_hub_are_fetched_whole_or_not_at_all(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    file = replace(entry.files[1], url=(snapshot / "head.pt").as_uri())
    outside = replace(entry, repo="", revision="", files=(file,))
    assert ManifestWeights(outside).missing()
    with pytest.raises(UserError, match=r"invalid hash value.*it is not used"):
        list(fetch(replace(outside, files=(replace(file, sha256="0" * 64),))))
    assert ManifestWeights(outside).missing()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached, or HF_HUB_OFFLINE is set"):
        list(fetch(outside))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert [line.rpartition(": ")[2] for line in fetch(outside)] == ["downloaded"]
    assert ManifestWeights(outside).tensors("head.pt").keys() == {"head"}
