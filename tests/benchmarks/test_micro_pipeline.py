"""The shipped micro world: complete, small, unchanged since it was made, and loadable by the stock library."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.micro.check import digests, write_prompts
from benchmarks.micro.pipeline import PROTOCOL, draw, load
from benchmarks.protocol import read_protocol

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "benchmarks" / "micro"
FOLDERS = [MICRO / "pipeline", *(ROOT / "metrics" / "micro" / name for name in ("clip", "clip_heldout", "aesthetic"))]


@pytest.fixture(scope="module")
def pipeline():
    return load(MICRO / "pipeline")


def test_all_weights_together_are_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for folder in FOLDERS for file in folder.rglob("*") if file.is_file()) <= 8e6


def test_every_file_is_the_one_of_the_manifest() -> None:
    manifest = json.loads((MICRO / "manifest.json").read_text())
    assert digests(FOLDERS, ROOT) == manifest["files"]


def test_prompt_files_are_those_that_the_code_makes(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    for name in ("prompts.jsonl", "prompts_dev.jsonl"):
        assert (tmp_path / name).read_bytes() == (MICRO / name).read_bytes()


def test_weights_are_float16_and_the_folder_carries_its_protocol(pipeline) -> None:
    from safetensors import safe_open

    for file in (MICRO / "pipeline").rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} <= {torch.float16, torch.int64}  # noqa: SIM118
    assert read_protocol(MICRO / "pipeline") == PROTOCOL
    assert pipeline.text_encoder_3 is None


def test_it_draws_what_depends_on_prompt_and_seed(pipeline) -> None:
    prompts = ["a red circle", "a red circle", "a blue square"]
    first, again = (draw(pipeline, prompts, seed=3, steps=3, bfloat16=False) for _ in range(2))
    assert first.shape == (3, 64, 64, 3)
    assert (first == again).all()
    assert not np.array_equal(first[0], first[1])  # another place in the list is another noise


def test_every_word_of_every_prompt_is_one_token(pipeline) -> None:
    for line in (MICRO / "prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)["prompt"]
        assert len(pipeline.tokenizer(prompt).input_ids) == len(prompt.split()) + 2 <= 12
