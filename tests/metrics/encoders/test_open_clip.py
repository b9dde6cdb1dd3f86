import json
import shutil
from pathlib import Path

import pytest
import torch

from metrics.base import UserError
from metrics.encoders import open_clip
from metrics.weights import WeightFolder

CPU = torch.device("cpu")


@pytest.fixture
def copy(open_clip_folder: WeightFolder, tmp_path: Path) -> WeightFolder:
    """A copy of the random open_clip folder that a test may damage."""
    shutil.copytree(open_clip_folder.path, tmp_path / "open_clip")
    return WeightFolder(path=tmp_path / "open_clip", mend="mend it", needs=open_clip.FILES)


@torch.no_grad()
def test_embeddings_are_those_of_the_library(open_clip_folder: WeightFolder, pictures) -> None:
    from open_clip import create_model_and_transforms, get_tokenizer

    texts = ["a red circle", "a blue square and a ring " * 9]
    where = f"local-dir:{open_clip_folder.path}"
    model, _, transform = create_model_and_transforms(where)
    model.eval()
    encoders = open_clip.encoders(open_clip_folder, CPU)
    preprocessing = encoders["image"].preprocessing
    assert preprocessing is not None
    image = encoders["image"].forward(preprocessing().from_pil(pictures))
    assert image.dtype == torch.float32
    pixels = torch.stack([transform(picture) for picture in pictures])
    assert torch.allclose(image, model.encode_image(pixels), atol=2e-6, rtol=1e-5)
    text = torch.cat([encoders["text"].forward([text]) for text in texts])
    assert torch.allclose(text, model.encode_text(get_tokenizer(where)(texts)), atol=2e-6)


def test_incomplete_and_truncated_weights_are_refused(copy: WeightFolder) -> None:
    from safetensors.torch import load_file, save_file

    file = copy.path / "open_clip_model.safetensors"
    weights = load_file(file)
    del weights["text_projection"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"text_projection.*mend it"):
        open_clip.encoders(copy, CPU)["text"].forward(["a"])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="mend it"):
        open_clip.encoders(copy, CPU)["text"].forward(["a"])


def test_squash_and_statistics_are_read_from_the_config(copy: WeightFolder) -> None:
    config = copy.json(open_clip.CONFIG)
    config["preprocess_cfg"] = {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.25] * 3}
    (copy.path / open_clip.CONFIG).write_text(json.dumps(config))
    preprocessing = open_clip.read_open_clip_config(copy)
    assert (preprocessing.size, preprocessing.resize) == ((32, 32), "squash")
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_config_that_cannot_be_read_is_refused(copy: WeightFolder) -> None:
    config = copy.json(open_clip.CONFIG)
    config["preprocess_cfg"] = {"resize_mode": "longest"}
    (copy.path / open_clip.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="resize_mode 'longest'"):
        open_clip.read_open_clip_config(copy)
    (copy.path / open_clip.CONFIG).write_text("{}")
    with pytest.raises(UserError, match="no 'model_cfg'"):
        open_clip.read_open_clip_config(copy)
