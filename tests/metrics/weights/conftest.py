"""Published weights in miniature, in a hub cache of the test's own: nothing of the user's is read or written."""

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from metrics.weights import Entry, WeightFile
from metrics.weights.places import FOLDER, SYNTHETIC

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv(SYNTHETIC, raising=False)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The folder of a pinned revision in the hub cache, with a model and a pickled head, as they were published."""
    folder = tmp_path / "hub" / "models--lab--tiny" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")
    torch.save({"epoch": 3, "state_dict": {"head": torch.ones(2).half()}}, folder / "head.pt")
    (folder / "config.json").write_text('{"width": 4}')
    return folder


@pytest.fixture
def entry(snapshot: Path) -> Entry:
    """The manifest's entry for these files."""

    def listed(name: str, **more: object) -> WeightFile:
        content = (snapshot / name).read_bytes()
        return WeightFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), **more)

    files = (
        listed("model.safetensors", tensors=1, dtype="float32"),
        listed("head.pt", pickle=True, unwrap="state_dict", tensors=1, dtype="float16"),
        listed("config.json"),
    )
    return Entry(
        id="tiny", title="Tiny", licence="MIT", page="https://x", repo="lab/tiny", revision=COMMIT, files=files
    )
