import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metrics.base import UserError
from metrics.weights import (
    Entry,
    ManifestWeights,
    WeightFile,
    manifest,
    missing_table,
    pinned,
    use_folder,
    what_to_do,
)
from metrics.weights.places import FOLDER, SYNTHETIC


class Bomb:
    """A pickle that runs code when it is opened: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder for the weights "tiny", empty."""
    folder = tmp_path / "mine" / "tiny"
    folder.mkdir(parents=True)
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    return folder


def unpinned(entry: Entry) -> Entry:
    return replace(entry, files=tuple(replace(file, sha256="", bytes=0) for file in entry.files))


def test_published_weights_are_found_in_the_hub_cache_and_read(entry: Entry, snapshot: Path) -> None:
    weights = ManifestWeights(entry)
    assert weights.missing() is None
    weights.check()
    assert weights.folder() == snapshot
    assert weights.path("head.pt") == snapshot / "head.pt"
    assert weights.json("config.json") == {"width": 4}
    assert torch.equal(weights.tensors("model.safetensors")["w"], torch.arange(4.0))
    assert torch.equal(weights.tensors("head.pt")["head"], torch.ones(2).half())
    assert not weights.synthetic()
    assert len({weights, ManifestWeights(entry)}) == 1


def test_what_is_missing_is_named_with_size_licence_and_command(entry: Entry, snapshot: Path) -> None:
    (snapshot / "head.pt").unlink()
    assert str(ManifestWeights(entry).missing()).endswith("lacks head.pt; run: python -m metrics.weights fetch tiny")
    elsewhere = ManifestWeights(replace(entry, repo="lab/other"))
    with pytest.raises(UserError, match=r"Tiny: no weights \(.* bytes|kB.*, MIT\); run: python -m metrics.weights"):
        elsewhere.folder()


def test_another_revision_of_the_cache_is_not_taken_for_the_pinned_one(entry: Entry) -> None:
    assert ManifestWeights(replace(entry, revision="f" * 40)).missing()


def test_an_unpinned_revision_is_the_caches_main(entry: Entry, snapshot: Path) -> None:
    floating = ManifestWeights(replace(entry, revision=""))
    assert floating.missing()
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    assert floating.folder() == snapshot


def test_a_changed_byte_is_refused_with_both_digests(entry: Entry, snapshot: Path) -> None:
    path = snapshot / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    should, found = entry.files[0].sha256, hashlib.sha256(content).hexdigest()
    weights = ManifestWeights(entry)
    assert weights.missing() is None  # the size is right; nothing is read before it is needed
    for use in (weights.check, weights.digest, lambda: weights.tensors("model.safetensors")):
        with pytest.raises(UserError, match=f"model.safetensors: sha256 is {found}, should be {should}; run: python"):
            use()


def test_a_truncated_file_is_refused_before_anything_is_read(entry: Entry, snapshot: Path) -> None:
    path = snapshot / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    should = entry.files[0]
    expected = f"truncated: {should.bytes - 3:,} bytes, should be {should.bytes:,} .sha256 {should.sha256}"
    with pytest.raises(UserError, match=expected):
        ManifestWeights(entry).check()
    path.write_bytes(path.read_bytes() + bytes(99))
    with pytest.raises(UserError, match="another file: "):
        ManifestWeights(entry).check()


def test_weights_of_ones_own_must_be_declared_and_make_results_synthetic(
    entry: Entry, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.zeros(400)}, own / "model.safetensors")
    torch.save({"state_dict": {"head": torch.zeros(2)}}, own / "head.pt")
    (own / "config.json").write_text("{}")
    weights = ManifestWeights(entry)
    with pytest.raises(UserError, match=f"{SYNTHETIC}=1 to use weights of your own: results are synthetic"):
        weights.check()
    monkeypatch.setenv(SYNTHETIC, "1")
    weights.check()
    assert weights.synthetic()
    assert torch.equal(weights.tensors("head.pt")["head"], torch.zeros(2))


def test_weights_whose_digest_nobody_knows_yet_are_read_and_synthetic(entry: Entry) -> None:
    weights = ManifestWeights(unpinned(entry))
    weights.check()
    assert weights.synthetic()
    assert weights.digest() == ManifestWeights(entry).digest()


def test_the_first_digits_in_a_files_name_are_held_to(entry: Entry, own: Path) -> None:
    content = b"another network"
    digits = hashlib.sha256(content).hexdigest()[:8]
    right, wrong = (WeightFile(name=f"vgg16-{eight}.pth", url="https://x") for eight in (digits, "397923af"))
    for file in (right, wrong):
        (own / file.name).write_bytes(content)
    weights = ManifestWeights(replace(entry, repo="", revision="", files=(right,)))
    weights.check()
    assert weights.synthetic()  # eight digits are a check of the download, no identity
    with pytest.raises(UserError, match=f"sha256 is {digits}.*, should begin with 397923af; "):
        ManifestWeights(replace(entry, repo="", revision="", files=(wrong,))).check()


def test_damage_in_the_hub_cache_is_seen_even_where_the_manifest_knows_no_digest(
    entry: Entry, snapshot: Path
) -> None:
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    blob = blobs / entry.files[0].sha256
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    weights = ManifestWeights(unpinned(entry))
    weights.check()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=f"should be {blob.name}"):
        weights.check()


def test_the_users_folder_comes_first_and_stands_alone(entry: Entry, snapshot: Path, own: Path) -> None:
    for path in snapshot.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    assert ManifestWeights(entry).folder() == own
    (own / "head.pt").unlink()
    assert "lacks head.pt" in str(ManifestWeights(entry).missing())
    own.rename(own.parent / "another")
    assert ManifestWeights(entry).folder() == snapshot


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        use_folder(tmp_path / "nowhere")


def test_a_pickle_beside_the_listed_files_is_refused_by_name(entry: Entry, own: Path) -> None:
    (own / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: a pickle can run code and is refused"):
        ManifestWeights(entry).check()


def test_a_pickle_under_the_name_of_safetensors_is_refused(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYNTHETIC, "1")
    (snapshot / "model.safetensors").write_bytes((snapshot / "head.pt").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors is a pickle, which can run code"):
        ManifestWeights(entry).tensors("model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle at all",
        pickle.dumps({"state_dict": [1, 2]}),
        pickle.dumps({"other": {}}),
        b"PK\x03\x04" + bytes(200),
    ],
    ids=["empty", "text", "no dict", "not wrapped", "half a zip"],
)
def test_a_listed_pickle_that_is_no_state_dict_is_one_clear_line(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv(SYNTHETIC, "1")
    (snapshot / "head.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"head\.pt: .*run: python -m metrics.weights fetch tiny$") as error:
        ManifestWeights(entry).tensors("head.pt")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_never_runs_code(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zipped: bool
) -> None:
    monkeypatch.setenv(SYNTHETIC, "1")
    content = {"state_dict": {"head": torch.ones(2)}, "bomb": Bomb(tmp_path / "exploded")}
    torch.save(content, snapshot / "head.pt", _use_new_zipfile_serialization=zipped)
    refused = r"head\.pt: damaged, or asks to run code, which is refused \(it names \w+\.mkdir\); run: "
    with pytest.raises(UserError, match=refused):  # and no word of torch's on how to load it all the same
        ManifestWeights(entry).tensors("head.pt")
    assert not (tmp_path / "exploded").exists()


def test_every_truncation_of_a_pickle_is_one_clear_line(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYNTHETIC, "1")
    for save in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"head": torch.ones(2)}}, snapshot / "head.pt", **save)
        content = (snapshot / "head.pt").read_bytes()
        for length in range(0, len(content) - 1, max(1, len(content) // 40)):
            (snapshot / "head.pt").write_bytes(content[:length])
            with pytest.raises(UserError, match=r"head\.pt"):
                ManifestWeights(entry).tensors("head.pt")


def test_a_config_that_asks_for_remote_code_is_refused(entry: Entry, snapshot: Path) -> None:
    (snapshot / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(UserError, match="remote code is never run"):
        ManifestWeights(unpinned(entry)).check()


def test_an_unknown_id_or_file_names_the_nearest_one(entry: Entry) -> None:
    with pytest.raises(UserError, match=r"unknown weights 'hps-v22'; did you mean 'hps-v2"):
        manifest("hps-v22")
    with pytest.raises(UserError, match=r"'tiny' have no file 'modl.safetensors'; did you mean 'model.safetensors'"):
        ManifestWeights(entry).path("modl.safetensors")


def test_the_table_of_what_is_missing_joins_metrics_that_wait_for_the_same_weights(entry: Entry) -> None:
    here, missing = ManifestWeights(entry), manifest("hps-v2.1")
    assert missing_table({"toy": [here]}) is None
    table = missing_table({"toy": [here], "hps_v21": [missing], "hps_v21.rtdmd": [here, missing]})
    assert table is not None
    cells = [next(iter(column.cells)) for column in table.columns]
    command = "python -m metrics.weights fetch hps-v2.1"
    assert cells == ["HPS v2.1", "hps_v21, hps_v21.rtdmd", "2.0 GB", "Apache-2.0", command]
    assert table.row_count == 1


def test_weights_that_are_here_and_refused_are_told_from_absent_ones(entry: Entry, snapshot: Path) -> None:
    assert what_to_do(manifest("hps-v2.1")) == "run: python -m metrics.weights fetch hps-v2.1"
    file = snapshot / entry.files[0].name
    file.write_bytes(file.read_bytes()[:-1])
    told = what_to_do(ManifestWeights(entry))
    assert "truncated" in told
    assert entry.files[0].sha256 in told
    assert told.endswith(entry.mend)


def test_a_file_in_the_place_of_another_is_named_even_where_the_right_digest_is_not_known(
    entry: Entry, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(entry, id="other", files=(replace(entry.files[0], name="theirs.safetensors"),))
    monkeypatch.setattr(pinned, "entries", lambda: {"other": other})
    ManifestWeights(entry).check()  # two entries may hold the same file
    unknown = replace(entry, files=(replace(entry.files[0], bytes=0, sha256=""),))
    with pytest.raises(
        UserError, match=r"model\.safetensors: this is theirs\.safetensors of other; run: .* fetch tiny"
    ):
        ManifestWeights(unknown).check()
    wrong = replace(entry, files=(replace(entry.files[0], sha256="0" * 64),))
    with pytest.raises(UserError, match=r"\(theirs\.safetensors of other\), should be 0{64}"):
        ManifestWeights(wrong).check()
