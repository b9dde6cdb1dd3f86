"""Small stand-ins: a tiny random SD3 pipeline of stock classes, prompts."""

import json
from pathlib import Path

import pytest
import torch

from metrics.base import Prompt
from tests.trainers.closed_form import reward_bank
from trainers.learner import Learner

WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "cross", "and"]


def word_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-pair vocabulary in which every word of WORDS is one token."""
    tokens, merges = ["<|startoftext|>", "<|endoftext|>"], []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        tokens += pieces
        left = pieces[0]
        for piece in pieces[1:]:
            merges.append((left, piece))
            left += piece
            tokens.append(left)
    return {token: n for n, token in enumerate(dict.fromkeys(tokens))}, list(dict.fromkeys(merges))


@pytest.fixture
def closed_form_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every run two rewards without weights: "redness", and the verdict "judge"."""
    monkeypatch.setattr("trainers.start.load_rewards", lambda settings, device: reward_bank(judge=True))


@pytest.fixture
def averaged_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every iteration is added at whose end the student is averaged."""
    iterations: list[int] = []
    monkeypatch.setattr(Learner, "average", lambda self, iteration: iterations.append(iteration))
    return iterations


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    colours, shapes = ["red", "green", "blue"], ["circle", "square", "cross"]
    texts = [f"a photo of a {colour} {shape}" for colour in colours for shape in shapes]
    return [Prompt(text=text, id=f"p-{n}", category=text.split()[-1]) for n, text in enumerate(texts)]


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt]) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "tiny.jsonl"
    lines = [json.dumps({"id": p.id, "prompt": p.text, "category": p.category}) for p in prompts]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder with random weights: 8 x 8 latents, 16 x 16 pixels, one text token width."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers import StableDiffusion3Pipeline as Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    vocabulary, merges = word_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=12, pad_token="<|endoftext|>")
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3"
    Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
            pos_embed_max_size=8, qk_norm="rms_norm",
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
            shift_factor=0.1, scaling_factor=1.2, use_quant_conv=False, use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
        text_encoder=CLIPTextModelWithProjection(text), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    ).save_pretrained(folder)  # fmt: skip
    protocol = {"height": 16, "width": 16, "call_arguments": {"max_sequence_length": 0}, "guidance_scale": 3.0}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    return folder
