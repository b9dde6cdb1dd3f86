import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metrics.base import UserError
from metrics.weights import WeightFolder


@pytest.fixture
def folder(tmp_path: Path) -> WeightFolder:
    save_file({"w": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"width": 4}')
    return WeightFolder(path=tmp_path, mend="run: fetch it", needs=("config.json",))


def test_a_complete_folder_is_read(folder: WeightFolder) -> None:
    assert folder.missing() is None
    assert folder.json("config.json") == {"width": 4}
    assert torch.equal(folder.tensors("model.safetensors")["w"], torch.ones(4))


def test_what_is_missing_is_named_with_the_command_that_mends_it(folder: WeightFolder) -> None:
    (folder.path / "config.json").unlink()
    assert "lacks config.json; run: fetch it" in str(folder.missing())
    (folder.path / "model.safetensors").unlink()
    assert "no .safetensors" in str(folder.missing())
    assert "no weights in" in str(WeightFolder(path=folder.path / "none", mend="run: fetch it").missing())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "head.pth"])
def test_pickled_weights_are_refused(folder: WeightFolder, name: str) -> None:
    (folder.path / "model.safetensors").rename(folder.path / name)
    with pytest.raises(UserError, match=f"{name} is a pickle.*refused; run: fetch it"):
        folder.tensors("model.safetensors")


def test_a_config_that_asks_for_remote_code_is_refused(folder: WeightFolder) -> None:
    (folder.path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match="remote code is never run"):
        folder.check()


def test_truncated_weights_and_broken_json_are_refused_by_name(folder: WeightFolder) -> None:
    weights = folder.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or damaged"):
        folder.tensors("model.safetensors")
    (folder.path / "config.json").write_text('{"width": ')
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        folder.json("config.json")


def test_the_digest_covers_weights_and_configs_but_not_the_place_or_the_readme(folder: WeightFolder) -> None:
    before = folder.digest()
    (folder.path / "README.md").write_text("hello")
    moved = folder.path.rename(folder.path.with_name("moved"))
    folder = WeightFolder(path=moved, mend="")
    assert folder.digest() == before
    (moved / "config.json").write_text('{"width": 5}')
    assert folder.digest() != before
