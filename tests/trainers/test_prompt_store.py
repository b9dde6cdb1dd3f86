"""Prompts' embeddings on disk: found again bit for bit, never those of other encoders, never made twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.config import UserError
from benchmarks.models import open_model
from tests.shrunken.families import make
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.backbones.prompt_store import PromptStore, encoders_digest, keep_prompts, offloaded

CPU = torch.device("cpu")
TEXTS = ["a photo of a red circle", "a blue square", "a red cross"]


def leaves(embeddings: Any) -> list[torch.Tensor]:
    return [x for part in embeddings for x in (part if isinstance(part, list) else [part])]


def forbid(module: nn.Module) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a text encoder ran")

    module.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("family", ["sd3", "sdxl", "z_image"])  # rows of one length, and each of its own
def test_a_second_run_encodes_nothing_and_gets_the_same_bits(family: str, tmp_path: Path) -> None:
    path = str(make(family, tmp_path / family))
    bare = BackboneConfig(kind=family, path=path, lora=LoraConfig(rank=2))
    kept = replace(bare, prompt_cache_folder=str(tmp_path / "prompts"))
    plain, first = load(bare, CPU).encode(TEXTS), load(kept, CPU).encode(TEXTS)
    again = load(kept, CPU)
    for name, part in again.pipeline.components.items():  # type: ignore[attr-defined]
        if name.startswith("text_encoder") and part is not None:
            forbid(part)
    later = again.encode(TEXTS[::-1])
    assert len(leaves(plain)) == len(leaves(later)) > 0
    assert all(torch.equal(a, b) for a, b in zip(leaves(plain), leaves(first), strict=True))
    in_order = leaves(again.encode(TEXTS))
    assert all(torch.equal(a, b) for a, b in zip(leaves(plain), in_order, strict=True))
    with pytest.raises(AssertionError, match="a text encoder ran"):
        again.encode(["a new prompt"])


def test_the_encoders_files_are_read_once_for_rows_and_for_teacher_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counting(folder: Path, *others: Any) -> str:
        read.append(folder)
        return encoders_digest(folder, *others)

    monkeypatch.setattr("trainers.backbones.family.encoders_digest", counting)
    path, kept = make("sd3", tmp_path / "sd3"), tmp_path / "prompts"
    backbone = load(BackboneConfig(kind="sd3", path=str(path), prompt_cache_folder=str(kept)), CPU)
    assert backbone.teacher_digest() == backbone.teacher_digest()
    assert read == [path]
    (folder,) = kept.iterdir()
    assert folder.name == encoders_digest(path, backbone.protocol().call_arguments, CPU)[:32]


def test_rows_of_other_encoders_are_other_rows(tmp_path: Path) -> None:
    one, two = make("z_image", tmp_path / "one"), make("z_image", tmp_path / "two", seed=1)
    digests = [encoders_digest(one, {}, CPU), encoders_digest(two, {}, CPU), encoders_digest(one, {"a": 1}, CPU)]
    assert len(set(digests)) == 3
    (one / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(
        (two / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert encoders_digest(one, {}, CPU) == digests[0]  # the trained network has no say in it
    assert open_model(one).digest != open_model(two).digest


def test_a_missing_prompt_runs_the_whole_batch_and_is_kept(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def embed(prompts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        calls.append(prompts)
        return [(torch.full((2,), float(len(p))), torch.tensor(len(calls))) for p in prompts]

    remembered = PromptStore(tmp_path, CPU).remembering(embed)
    first = remembered(["a", "bb", "", ""])
    assert calls == [["a", "bb", "", ""]] and [int(row[1]) for row in first] == [1] * 4
    assert [row[0].tolist() for row in remembered(["bb", "a", ""])] == [[2, 2], [1, 1], [0, 0]]
    assert len(calls) == 1
    remembered(["a", "ccc"])
    assert calls[1:] == [["a", "ccc"]]
    store = PromptStore(tmp_path, CPU)
    assert int(store.read("a")[1]) == 1 and int(store.read("ccc")[1]) == 2  # type: ignore[index]
    store.path("a").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"damaged .*delete it"):
        remembered(["a"])


def test_encoders_are_on_the_device_only_while_they_run() -> None:
    places: list[str] = []

    class Encoder(nn.Module):
        def to(self, device: Any) -> "Encoder":
            places.append(str(device))
            return self

    embed = offloaded(
        lambda prompts: [(torch.tensor(len(places)),) for _ in prompts], [Encoder()], torch.device("meta")
    )
    assert places == ["cpu"]
    assert int(embed(["a"])[0][0]) == 2 and places == ["cpu", "meta", "cpu"]


def test_a_backbone_that_cannot_do_it_says_so() -> None:
    settings = BackboneConfig(kind="other", path="x", offload_text_encoders=True)
    with pytest.raises(UserError, match="kind = 'other' cannot keep prompts on disk"):
        keep_prompts(object(), settings)
    keep_prompts(object(), replace(settings, offload_text_encoders=False))
