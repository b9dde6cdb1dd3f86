"""The package image-reward on seeded weights, stage by stage; own environment (`tox -e parity-image-reward`).

    python -m tests.parity.image_reward.official           shrunken, writes tests/golden/image_reward/shrunken.npz
    python -m tests.parity.image_reward.official --full    447 M parameters, writes runs/parity/image-reward-full.npz

The classes are the package's own. Empty modules stand for its parents, whose imports need diffusers, datasets and
openai-clip, and for fairscale's checkpoint wrapper, which inference never calls; three helpers lie where transformers
kept them when the package was written. The vocabulary is made up: the real one is on the hub, and ids are ids.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from tests.parity import common
from tests.parity.image_reward import sizes

ROOT = Path(__file__).resolve().parents[3]
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
TOKENS, WIDTH = 3, 16  # of the image features that are recorded


def import_package() -> Any:
    """Return ImageReward.ImageReward without running the package's own __init__ files."""
    found = importlib.util.find_spec("ImageReward")
    assert found is not None and found.origin is not None, "run it by `tox -e parity-image-reward`"
    home = Path(found.origin).parent
    for name, folder in (("ImageReward", home), ("ImageReward.models", home / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    parts = ["fairscale", "nn", "checkpoint", "checkpoint_activations"]
    for count in range(1, len(parts) + 1):
        sys.modules[".".join(parts[:count])] = types.ModuleType(".".join(parts[:count]))
    sys.modules[".".join(parts)].checkpoint_wrapper = None  # type: ignore[attr-defined]
    from transformers import modeling_utils, pytorch_utils

    for helper in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        setattr(modeling_utils, helper, getattr(pytorch_utils, helper))
    return importlib.import_module("ImageReward.ImageReward")


def make_tokenizer() -> Any:
    """Return the package's tokenizer over the made-up vocabulary."""
    from transformers import BertTokenizer

    path = Path(tempfile.mkdtemp()) / "vocab.txt"
    path.write_text("\n".join(sizes.VOCABULARY) + "\n", encoding="utf-8")
    blip = importlib.import_module("ImageReward.models.BLIP.blip")
    blip.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda name: BertTokenizer(str(path)))
    return blip.init_tokenizer()


def build_model(package: Any, full: bool) -> Any:
    """Return the package's model as it initialises itself, with the made-up vocabulary."""
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    tokenizer = make_tokenizer()
    pretrain.init_tokenizer = lambda: tokenizer
    if not full:
        vit = importlib.import_module("ImageReward.models.BLIP.vit")
        vision = sizes.VISION

        def create_vit(name: str, image_size: int, *others: Any) -> tuple[Any, int]:
            width, blocks, heads = vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"]
            tower = vit.VisionTransformer(
                img_size=image_size, embed_dim=width, depth=blocks, num_heads=heads, drop_path_rate=0.1
            )
            return tower, width

        pretrain.create_vit = create_vit
    config = Path(tempfile.mkdtemp()) / "med_config.json"
    config.write_text(json.dumps(MED_CONFIG | ({} if full else sizes.TEXT)))
    return package.ImageReward(med_config=str(config))


def make_model(package: Any, full: bool) -> tuple[Any, str, int]:
    """Return the model with seeded weights, these weights' checksum and the number of their keys."""
    model = build_model(package, full)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("position_ids")}
    weights = sizes.seeded_weights(shapes)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, strict=False)
    return model.eval(), common.checksum(weights), len(state)


def floats_of(picture: Any) -> dict[str, torch.Tensor]:
    """Return pixels [1, 3, H, W] as ReFL's and RTDMD's rewards see a picture: floats, each resized in its own way."""
    floats = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).float()[None] / 255
    normalise = Normalize(common.MEAN, common.STD)
    cropped = Compose([Resize(224, interpolation=InterpolationMode.BICUBIC), CenterCrop(224), normalise])(floats)
    squashed = normalise(F.interpolate(floats, size=(224, 224), mode="bicubic", align_corners=False))
    return {"refl": cropped, "rtdmd": squashed}


def states(model: Any, read: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states [1, N, D] of normalised pixels and the text's [1, L, D], which attends to them."""
    image = model.blip.visual_encoder(pixels)
    text = model.blip.text_encoder(
        read.input_ids,
        attention_mask=read.attention_mask,
        encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.long),
        return_dict=True,
    )
    return image, text.last_hidden_state


def record(package: Any, full: bool, count: int) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return all stages and what made them.

    In float32, and again in float64 (*_64), which does not depend on the processor and shows what float32 costs."""
    model, weights, keys = make_model(package, full)
    tokenizer = model.blip.tokenizer
    stages: dict[str, list[Any]] = {}
    pixel_digests = []

    def add(**values: Any) -> None:
        for name, value in values.items():
            stages.setdefault(name, []).append(value.detach().numpy() if isinstance(value, torch.Tensor) else value)

    cut = {"padding": "max_length", "truncation": True, "max_length": 35, "return_tensors": "pt"}
    for prompt in sizes.AWKWARD:
        read = tokenizer(prompt, **cut)
        add(ids=read.input_ids[0], mask=read.attention_mask[0])
    for index, (picture, prompt) in enumerate(common.pairs(count)):
        read = tokenizer(prompt, **cut)
        pixels = model.preprocess(picture)[None]
        pixel_digests.append(common.digest(common.grey_levels(pixels[0].numpy(), exact=True)))
        rewards = {name: rewarded(model, read, floats) for name, floats in floats_of(picture).items()}
        add(score=np.float32(model.score(prompt, picture)), **{name: np.float32(r) for name, r in rewards.items()})
        if index < common.SHOWN:
            pixels.requires_grad_()
            reward = model.score_gard(read.input_ids, read.attention_mask, pixels)
            (gradient,) = torch.autograd.grad(reward.sum(), pixels)
            strided = gradient[0, :, :: sizes.STRIDE, :: sizes.STRIDE]
            add(gradient=strided, grad_max=gradient.abs().max())
    first, second = [picture for picture, _ in common.pairs(2)]
    ranks = {str(n): repr(model.inference_rank("a", [first, second][:n])[0]) for n in (1, 2)}
    about: dict[str, object] = {
        "official": "image-reward",
        "weights": weights,
        "keys": keys,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "pixels": pixel_digests,
        "ranks": ranks,
        "raised": common.raised(lambda picture: model.score("a", picture), 64),
    }
    model.double()
    for index, (picture, prompt) in enumerate(common.pairs(count)):
        read = tokenizer(prompt, **cut)
        pixels = {"score": model.preprocess(picture)[None], **floats_of(picture)}
        add(**{f"{name}_64": np.float64(rewarded(model, read, one.double())) for name, one in pixels.items()})
        if index < common.SHOWN:
            with torch.no_grad():
                image, text = states(model, read, pixels["score"].double())
            add(image_64=image[0, :TOKENS, :WIDTH], hidden_64=text[0, 0])
    return {name: np.stack(values) for name, values in stages.items()}, about


@torch.no_grad()
def rewarded(model: Any, read: Any, pixels: torch.Tensor) -> float:
    """Return the reward of normalised pixels and a prompt."""
    return model.score_gard(read.input_ids, read.attention_mask, pixels).item()


def main() -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the true architecture: 447 M parameters")
    parser.add_argument("--pairs", type=int, help="pictures with their prompts; default 64, of the true size 8")
    arguments = parser.parse_args()
    full = arguments.full
    stages, about = record(import_package(), full, arguments.pairs or (8 if full else common.PAIRS))
    packages = ("image-reward", "torch", "torchvision", "transformers", "timm", "numpy", "pillow")
    about["versions"] = {name: importlib.metadata.version(name) for name in packages}
    path = ROOT / ("runs/parity/image-reward-full.npz" if full else "tests/golden/image_reward/shrunken.npz")
    common.save(path, stages, about)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
