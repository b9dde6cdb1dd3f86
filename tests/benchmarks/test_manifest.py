import hashlib
import json
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.manifest import not_shipped
from metrics import base, features
from metrics.base import Batch, Card, Features, PerImage, Rows
from metrics.features import Encoder, register_encoders
from metrics.weights import ManifestWeights, WeightFolder, manifest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight folder, with a metric "learned" that reads it; both registered for one test."""
    from safetensors.torch import save_file

    weights = tmp_path / "metrics" / "learned"
    weights.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, weights / "model.safetensors")
    (weights / "config.json").write_text("{}")
    (weights / "README.md").write_text("not part of the digest")
    monkeypatch.setattr(features, "_FACTORIES", copy(features._FACTORIES))
    monkeypatch.setattr(base, "_METRICS", copy(base._METRICS))

    @register_encoders("learned")
    def encoders(device: torch.device) -> Mapping[str, Encoder]:
        read = WeightFolder(path=weights, mend="")
        return {"image": Encoder(reads="image", forward=lambda images: images, weights=read)}

    @base.register
    class Learned(PerImage):
        card = Card(
            id="learned", version=1, title="", unit="", higher_is_better=True, range=(0, 1), source="", description=""
        )
        features = ("learned:image",)

        def measure(self, features: Features, batch: Batch) -> Rows:
            raise NotImplementedError

    return weights


def manifest_of(folder: Path, root: Path) -> Path:
    files = {
        path.relative_to(root).as_posix(): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    path = root / "manifest.json"
    path.write_text(json.dumps({"files": files}))
    return path


def test_weights_of_the_manifest_are_shipped_and_others_are_not(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(folder, tmp_path)
    assert not_shipped(["learned"], manifest) == []
    (folder / "config.json").write_text('{"other": 1}')
    assert not_shipped(["learned"], manifest) == ["learned"]
    assert not_shipped(["learned"], tmp_path / "no-manifest.json") == ["learned"]


def test_metrics_that_learned_nothing_need_no_manifest(tmp_path: Path) -> None:
    assert not_shipped(["toy_redness"], tmp_path / "no-manifest.json") == []


def test_published_weights_are_shipped_where_they_are_the_listed_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "laion-aesthetic-v2" / "sac+logos+ava1-l14-linearMSE.pth"
    file.parent.mkdir()
    file.write_bytes(b"weights of one's own")
    monkeypatch.setenv("FEWSTEP_BENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FEWSTEP_BENCH_SYNTHETIC", "1")
    published = manifest("laion-aesthetic-v2")
    encoder = Encoder(reads="image", forward=lambda images: images, weights=published)
    monkeypatch.setitem(features._FACTORIES, "learned", lambda device: {"image": encoder})
    assert not_shipped(["learned"]) == ["learned"]
    listed = replace(
        published.entry,
        files=(replace(published.entry.files[0], sha256=hashlib.sha256(file.read_bytes()).hexdigest()),),
    )
    encoder = replace(encoder, weights=ManifestWeights(listed))
    assert not_shipped(["learned"]) == []
