import json
import shutil
from pathlib import Path

import pytest
import torch

from metrics.base import UserError
from metrics.encoders import transformers_clip
from metrics.weights import WeightFolder

CPU = torch.device("cpu")


@pytest.fixture
def copy(clip_folder: WeightFolder, tmp_path: Path) -> WeightFolder:
    """A copy of the random CLIPModel folder that a test may damage."""
    shutil.copytree(clip_folder.path, tmp_path / "clip")
    return WeightFolder(path=tmp_path / "clip", mend="mend it", needs=transformers_clip.FILES)


@torch.no_grad()
def test_embeddings_are_those_of_the_library(clip_folder: WeightFolder, pictures) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    texts = ["a red circle", "a blue square and a ring " * 9]
    encoders = transformers_clip.encoders(clip_folder, CPU)
    model = CLIPModel.from_pretrained(clip_folder.path, dtype=torch.float32).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder.path)(pictures, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(clip_folder.path)(
        texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
    )
    official = model(**tokens, **pixels)
    preprocessing = encoders["image"].preprocessing
    assert preprocessing is not None
    image = encoders["image"].forward(preprocessing().from_pil(pictures))
    text = torch.cat([encoders["text"].forward([text]) for text in texts])
    assert image.dtype == text.dtype == torch.float32
    normalise = torch.nn.functional.normalize
    assert torch.allclose(normalise(image), official.image_embeds, atol=2e-6)
    assert torch.allclose(normalise(text), official.text_embeds, atol=2e-6)


def test_weights_are_frozen_and_loaded_once(clip_folder: WeightFolder) -> None:
    towers = transformers_clip.TransformersClip(clip_folder, CPU).clip
    assert towers._model is towers._model
    assert not towers._model.training
    assert not any(parameter.requires_grad for parameter in towers._model.parameters())


def test_incomplete_weights_are_refused(copy: WeightFolder) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy.path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 keys missing, first visual_projection\.weight\); mend it"):
        transformers_clip.encoders(copy, CPU)["text"].forward(["a"])


def test_truncated_weights_are_refused(copy: WeightFolder) -> None:
    weights = copy.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="mend it"):
        transformers_clip.encoders(copy, CPU)["text"].forward(["a"])


def test_weights_of_another_size_are_refused(copy: WeightFolder) -> None:
    config = copy.json("config.json")
    config["projection_dim"] = 20
    (copy.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mend it"):
        transformers_clip.encoders(copy, CPU)["text"].forward(["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"do_normalize": False},
        {"resample": 1},
        {"do_center_crop": False},
        {"crop_size": {"height": 16, "width": 16}},
    ],
)
def test_a_preprocessing_unlike_clips_is_refused(copy: WeightFolder, change: dict[str, object]) -> None:
    config = {**copy.json("preprocessor_config.json"), **change}
    (copy.path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        transformers_clip.read_preprocessor_config(copy)
