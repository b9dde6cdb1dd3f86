import re

import pytest

from metrics.weights import PICKLES, Entry, entries
from metrics.weights.entries import MANIFEST

SHORT_IDS = {
    "clip-vit-large-patch14",
    "clip-vit-b-32",
    "clip-vit-g-14-laion2b",
    "dfn5b-clip-vit-h-14",
    "dfn5b-clip-vit-h-14-378",
    "laion-aesthetic-v2",
    "pick-score-v1",
    "hps-v2",
    "hps-v2.1",
    "hps-v3",
    "image-reward-v1",
    "bert-base-uncased-vocab",
}


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.id)
def test_every_entry_says_where_its_files_come_from_and_what_they_are(entry: Entry) -> None:
    assert entry.title
    assert entry.licence
    assert entry.page.startswith("https://")
    if entry.repo and not entry.revision:
        assert not entry.pinned  # whatever the hub gives is taken, so results with it are synthetic
    else:
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision) or not entry.repo
    assert len({file.name for file in entry.files}) == len(entry.files) > 0
    for file in entry.files:
        assert re.fullmatch(r"[0-9a-f]{64}|", file.sha256)
        assert bool(file.sha256) or not file.bytes  # a size stands only where the file was described as a whole
        named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
        assert not named or file.digits.startswith(named[1])  # the publisher's own check of the digest
        assert not (file.bytes and file.about)
        assert file.pickle == any(file.name.endswith(suffix) for suffix in PICKLES)
        assert bool(file.url) != bool(entry.repo)
        if file.url:
            assert file.url.startswith("https://")


def test_the_manifest_says_which_digests_of_preference_weights_are_not_known() -> None:
    unknown = {identity for identity in SHORT_IDS if not entries()[identity].pinned}
    assert unknown == {"dfn5b-clip-vit-h-14", "pick-score-v1", "hps-v2", "hps-v3", "image-reward-v1"}
    tables = MANIFEST.read_text(encoding="utf-8").split("\n\n")
    for identity in unknown:
        (table,) = (one for one in tables if one.startswith((f"[[{identity}.files]]", f'[["{identity}".files]]')))
        assert 'sha256 = "" # not known' in table


def test_what_is_not_known_is_told_apart() -> None:
    known = entries()
    assert known["clip-vit-large-patch14"].unknown == ()
    assert known["pick-score-v1"].unknown == ("digest",)
    assert known["visualquality-r1-7b"].unknown == ("revision", "digest")
    assert known["laion-aesthetic-v2"].unknown == ()  # outside the hub, files have urls instead of a revision


def test_the_manifest_knows_the_digests_of_composition_and_distribution_but_for_five() -> None:
    first = list(entries()).index("mask2former-swin-s-mmdet")
    unknown = {identity for identity in list(entries())[first:] if not entries()[identity].pinned}
    assert unknown == {
        "mask2former-swin-s-meta",
        "maniqa-pipal",
        "visualquality-r1-7b",
        "dinov2-large-imagenet-linear4",
        "dinov2-base-imagenet1k-1-layer",
    }


def test_all_weights_of_the_preference_metrics_are_listed() -> None:
    assert entries().keys() >= SHORT_IDS


def test_sizes_are_readable_and_never_invented() -> None:
    known = entries()
    assert known["laion-aesthetic-v2"].size == "3.7 MB"
    assert known["pick-score-v1"].size == "about 3.9 GB"
    assert known["qwen2-vl-7b-instruct-tokenizer"].size == "size not known"
    assert not known["pick-score-v1"].pinned
    assert known["hps-v2.1"].pinned
