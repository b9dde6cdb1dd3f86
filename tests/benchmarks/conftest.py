"""A tiny random SD3 pipeline of stock classes, a prompt file, and a suite of metrics in closed form."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.protocol import Protocol, write_protocol
from benchmarks.workflow import Settings
from tests.benchmarks import toy_metrics

PLUGIN = toy_metrics.__name__
WORDS = ["a", "red", "blue", "circle", "square", "and"]
PROMPTS = [
    {"id": "colors-0", "prompt": "a red circle", "tag": "colors", "split": "seen"},
    {"id": "colors-1", "prompt": "a blue circle", "tag": "colors", "split": "unseen"},
    {"id": "colors-2", "prompt": "a red square", "tag": "colors", "split": "seen"},
    {"id": "two-0", "prompt": "a circle and a square", "tag": "two_object", "split": "seen", "include": [1]},
    {"id": "two-1", "prompt": "a square and a circle", "tag": "two_object", "split": "unseen"},
]
SUITE = """
[[tasks]]
name = "toys"
prompts = "prompts.jsonl"
images_per_prompt = 2
metrics = ["toy_redness", "toy_verdict", "toy_spread"]
picture_size = "16x16"
"""


def word_tokenizer() -> "CLIPTokenizer":  # noqa: F821
    from transformers import CLIPTokenizer

    tokens, merges = ["<|startoftext|>", "<|endoftext|>", "a</w>"], []
    for word in WORDS[1:]:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        left = pieces[0]
        tokens += pieces
        for piece in pieces[1:]:
            merges.append((left, piece))
            left += piece
            tokens.append(left)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=8, pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def pristine_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder with random weights: 8 x 8 latents, 16 x 16 pixels. Do not change it."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers import StableDiffusion3Pipeline as Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        shift_factor=0.1, scaling_factor=1.2, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Pipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    write_protocol(tiny_protocol(), folder)
    return folder


def tiny_protocol() -> Protocol:
    return Protocol(
        sampler="cps",
        eta=0.9,
        num_inference_steps=3,
        height=16,
        width=16,
        call_arguments={"max_sequence_length": 0},
    )


@pytest.fixture
def pipeline(pristine_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline, to be changed at will."""
    return Path(shutil.copytree(pristine_pipeline, tmp_path / "tiny"))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite file of one task over five prompts, with two images of each."""
    lines = [json.dumps(record) for record in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = tmp_path / "toys.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with the run directory tmp_path/<out>, batches of 3 (which cut prompts apart), on the CPU."""

    def make(out: str = "run", **changes: object) -> Settings:
        common = {"board": None, "batch_size": 3, "device": "cpu", "plugins": (PLUGIN,)}
        return Settings(out=tmp_path / out, **{**common, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and the tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
