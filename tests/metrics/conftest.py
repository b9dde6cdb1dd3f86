"""Tiny random CLIP models of both families, saved the way their libraries save them, and pictures to score."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import base, features
from metrics.clip import ClipScore
from metrics.diversity import PairwiseDiversity
from metrics.encoders import open_clip, transformers_clip
from metrics.weights import WeightFolder

PictureMaker = Callable[[int, int, int], Image.Image]


def save_tokenizer(folder: Path) -> None:
    """Write a CLIPTokenizer whose tokens are single letters, as CLIP's byte-level vocabulary falls back to."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=32).save_pretrained(folder)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> WeightFolder:
    """A random transformers CLIPModel folder: 32x32 pixels, context of 32 tokens, weights stored in float16."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**common, "vocab_size": 54, "max_position_embeddings": 32, "bos_token_id": 52, "eos_token_id": 53}
    vision = {**common, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    torch.nn.init.normal_(model.visual_projection.weight)  # the default is so small that all embeddings look alike
    model.half().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    save_tokenizer(folder)
    return WeightFolder(path=folder, mend="run the test again")


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> WeightFolder:
    """A random open_clip folder: a ModifiedResNet for 32x32 pixels, its tokenizer in the folder."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(1)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 16}
    text = {"context_length": 32, "vocab_size": 54, "width": 16, "heads": 2, "layers": 2}
    model = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)
    for weight in model.visual.parameters():
        if weight.ndim == 4:  # untrained convolutions map all pictures to nearly one embedding
            torch.nn.init.orthogonal_(weight, gain=2.0)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text["hf_tokenizer_name"] = "in this folder"
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return WeightFolder(path=folder, mend="run the test again")


@pytest.fixture
def noise_picture() -> PictureMaker:
    """Return a function (height, width, seed) -> smooth colour noise, which resizing changes but does not erase."""

    def make(height: int, width: int, seed: int) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)

    return make


@pytest.fixture
def pictures(noise_picture: PictureMaker) -> list[Image.Image]:
    """Six RGB pictures of two sizes."""
    return [noise_picture(32 + 16 * (seed % 2), 40, seed) for seed in range(6)]


@pytest.fixture
def toy_metrics(
    monkeypatch: pytest.MonkeyPatch, clip_folder: WeightFolder, open_clip_folder: WeightFolder
) -> dict[str, type]:
    """Register toy_clip, toy_clip_heldout and toy_diversity over the tiny random models, for one test."""

    def make_card(identity: str, **extra: object) -> base.Card:
        return base.Card(
            id=identity,
            version=1,
            title=identity,
            unit="cosine",
            higher_is_better=True,
            range=(-1.0, 1.0),
            source="test",
            description="test",
            **extra,
        )

    class ToyClip(ClipScore):
        card = make_card("toy_clip", differentiable=True)
        features = ("toy/clip:image", "toy/clip:text")

    class ToyClipHeldout(ClipScore):
        card = make_card("toy_clip_heldout", differentiable=True)
        features = ("toy/clip_heldout:image", "toy/clip_heldout:text")

    class ToyDiversity(PairwiseDiversity):
        card = make_card("toy_diversity", min_images_per_prompt=2)
        features = ("toy/clip_heldout:image",)

    metrics = {cls.card.id: cls for cls in (ToyClip, ToyClipHeldout, ToyDiversity)}
    base.available()  # register the built-in ones first: their modules register when they are imported
    for identity, cls in metrics.items():
        monkeypatch.setitem(base._METRICS, identity, cls)
    factories = {
        "toy/clip": lambda device: transformers_clip.encoders(clip_folder, device),
        "toy/clip_heldout": lambda device: open_clip.encoders(open_clip_folder, device),
    }
    for name, factory in factories.items():
        monkeypatch.setitem(features._FACTORIES, name, factory)
    return metrics


@pytest.fixture(scope="session")
def clip_family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded, shrunken weights of the whole CLIP family under their true file names and keys; no test changes it."""
    from tests.parity import clip_native

    folder = tmp_path_factory.mktemp("clip_family")
    clip_native.write_weights(folder)
    return folder


@pytest.fixture
def clip_family(clip_family_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let every published CLIP be the shrunken one for one test; return the folder of weights."""
    from metrics.weights.places import FOLDER, SYNTHETIC
    from tests.parity import clip_native

    monkeypatch.setenv(FOLDER, str(clip_family_folder))
    monkeypatch.setenv(SYNTHETIC, "1")
    with clip_native.networks():
        yield clip_family_folder
