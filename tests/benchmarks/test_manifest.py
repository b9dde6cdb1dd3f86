import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.manifest import not_shipped
from metrics import base, features
from metrics.base import Batch, Card, Features, PerImage, Rows
from metrics.features import Encoder, register_encoders
from metrics.weights import WeightFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight folder, with a metric "learned" that reads it; both registered for one test."""
    from safetensors.torch import save_file

    weights = tmp_path / "metrics" / "learned"
    weights.mkdir(parents=True)
    save_file({"w": torch.zeros(2)}, weights / "model.safetensors")
    (weights / "config.json").write_text("{}")
    (weights / "README.md").write_text("not part of the digest")
    monkeypatch.setattr(features, "_FACTORIES", dict(features._FACTORIES))
    monkeypatch.setattr(base, "_METRICS", dict(base._METRICS))

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
