"""The oracles of CLIP, PickScore and the aesthetic head on seeded weights, stage by stage (`tox -e parity-clip`).

    python -m tests.parity.clip.official     writes tests/golden/clip_family/{aesthetic,clip_score*,pick_score*}.npz

Oracles: transformers 4.57's CLIPModel, slow (PIL) processor and fast tokenizer, RTDMD's resizing before the same
model; OpenAI's own package, on the same weights in its own layout, for its tokens, crop and model; the aesthetic head
as a chain of matrix products. DMD2's caption and picture recipe is written down again here, for open_clip's model.
"""

import gzip
import json
import sys
import tempfile
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packaging.version
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as vision

from tests.parity import common
from tests.parity.clip import sizes
from tests.parity.clip.stages import Official, record, save
from tests.parity.common import MEAN, STD

FOLDER = "tests/golden/clip_family"
HEAD = {
    "layers.0": (1024, 768),
    "layers.2": (128, 1024),
    "layers.4": (64, 128),
    "layers.6": (16, 64),
    "layers.7": (1, 16),
}


def import_openai() -> Any:
    """Return OpenAI's package, which asks an old setuptools for `packaging`."""
    stand_in = types.ModuleType("pkg_resources")
    stand_in.packaging = packaging  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", stand_in)
    import clip

    return clip


def make_tokenizer() -> Any:
    """Return transformers' fast tokenizer over the vocabulary in OpenAI's package."""
    from transformers import CLIPTokenizerFast

    clip = import_openai()
    shipped = clip.clip._tokenizer
    path = Path(clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps(shipped.encoder))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def make_model(config: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Return transformers' model with seeded weights, and these weights."""
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**config)).eval()
    weights = common.seeded_weights({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return model, weights


def openai_layout(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return transformers' state dict under OpenAI's names: q, k and v fused, projections transposed."""
    state = {}
    for name, values in weights.items():
        if any(f"self_attn.{part}_proj" in name for part in "kv"):
            continue
        if "self_attn.q_proj" in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            values = np.concatenate(parts)
        if name in ("visual_projection.weight", "text_projection.weight"):
            values = values.T
        for old, new in (
            ("visual_projection.weight", "visual.proj"),
            ("text_projection.weight", "text_projection"),
            ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
            ("vision_model.embeddings.patch_embedding", "visual.conv1"),
            ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
            ("vision_model.pre_layrnorm", "visual.ln_pre"),
            ("vision_model.post_layernorm", "visual.ln_post"),
            ("vision_model.encoder.layers", "visual.transformer.resblocks"),
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.final_layer_norm", "ln_final"),
            ("text_model.encoder.layers", "transformer.resblocks"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(old, new)
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    return state


def make_openai(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """Return OpenAI's own model with the same weights."""
    clip = import_openai()
    seen, read = config["vision_config"], config["text_config"]
    model = clip.model.CLIP(
        config["projection_dim"],
        seen["image_size"],
        seen["num_hidden_layers"],
        seen["hidden_size"],
        seen["patch_size"],
        sizes.CONTEXT,
        sizes.VOCABULARY,
        read["hidden_size"],
        read["num_attention_heads"],
        read["num_hidden_layers"],
    )
    model.load_state_dict(openai_layout(weights))
    return model.eval()


def bilinear(picture: Image.Image, side: int) -> torch.Tensor:
    """Return the pixels [1, 3, side, side] as RTDMD resizes them: floats, torchvision's default interpolation."""
    floats = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
    return vision.normalize(vision.center_crop(vision.resize(floats, side, antialias=True), side), MEAN, STD)[None]


def dmd2_ids(clip: Any, prompt: str) -> torch.Tensor:
    """Return the ids [1, 77] of DMD2's evaluator."""
    ids = clip.tokenize([prompt], truncate=True)
    words = clip.tokenize("A photo depicts ")[:, 1:4]
    ids = torch.cat([ids[:, :1], words, ids[:, 1:]], dim=1)[:, :77]
    last = ids[:, 76:]
    last[last > 0] = 49407
    return torch.cat([ids[:, :76], last], dim=1)


def dmd2_square(picture: Image.Image) -> Image.Image:
    """Return the 256 x 256 picture of DMD2's evaluator."""
    return vision.center_crop(picture, min(picture.size)).resize((256, 256), Image.LANCZOS)


def head_weights() -> dict[str, np.ndarray]:
    """Return the seeded weights of the aesthetic head."""
    shapes = {f"{layer}.weight": shape for layer, shape in HEAD.items()}
    return common.seeded_weights(shapes | {f"{layer}.bias": shape[:1] for layer, shape in HEAD.items()})


def head_score(weights: Mapping[str, np.ndarray], embedding_BD: torch.Tensor) -> torch.Tensor:
    """Return the aesthetic head's scores of embeddings: five affine maps in float64."""
    values = F.normalize(embedding_BD.double())
    for layer in HEAD:
        weight, bias = (torch.from_numpy(weights[f"{layer}.{part}"]).double() for part in ("weight", "bias"))
        values = values @ weight.T + bias
    return values[:, 0]


def of_transformers(config: Mapping[str, Any]) -> tuple[Official, Official, Any, dict[str, np.ndarray]]:
    """Return transformers' own scorer, RTDMD's on the same model, this model and its weights; both give logits."""
    from transformers import CLIPImageProcessor

    model, weights = make_model(config)
    tokenizer, side = make_tokenizer(), config["vision_config"]["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def read(prompt: str) -> Any:
        return tokenizer([prompt], padding="max_length", truncation=True, max_length=77, return_tensors="pt")

    slow = Official(
        ids=lambda prompt: read(prompt)["input_ids"],
        pixels=lambda picture: processor(picture, return_tensors="pt")["pixel_values"],
        image=model.get_image_features,
        text=lambda prompt: model.get_text_features(**read(prompt)),
        reward=lambda pixels, prompt: model(**read(prompt), pixel_values=pixels).logits_per_image[0, 0],
    )
    return slow, replace(slow, pixels=lambda picture: bilinear(picture, side), floats=True), model, weights


def of_openai(model: Any, side: int, prefix: str = "") -> Official:
    """Return the cosine of OpenAI's own package."""
    clip = import_openai()
    transform = clip.clip._transform(side)

    def ids(prompt: str) -> torch.Tensor:
        return clip.tokenize([prefix + prompt], truncate=True)

    def text(prompt: str) -> torch.Tensor:
        return model.encode_text(ids(prompt))

    return Official(
        ids=ids,
        pixels=lambda picture: transform(picture)[None],
        image=model.encode_image,
        text=text,
        reward=lambda pixels, prompt: F.cosine_similarity(model.encode_image(pixels), text(prompt)),
    )


def hidden_states(official: Official, model: Any) -> np.ndarray:
    """Return the class token's last state, before the last norm, of a few pictures."""
    pictures = [picture for picture, _ in common.pairs(common.SHOWN)]
    with torch.no_grad():
        states = [model.vision_model(official.pixels(one)).last_hidden_state[0, 0] for one in pictures]
    return torch.stack(states).numpy()


def record_clip() -> None:
    """Record the scores of CLIP ViT-L/14 and of the heads on it."""
    slow, rtdmd, model, weights = of_transformers(sizes.CLIP)
    scale, head = model.logit_scale.exp(), head_weights()
    about, packages = {"weights": common.checksum(weights)}, ("transformers", "openai-clip")  # its vocabulary
    cosine = replace(slow, reward=lambda pixels, prompt: slow.reward(pixels, prompt) / scale)
    stages, pixels = record(cosine)
    save(f"{FOLDER}/clip_score", stages | {"hidden": hidden_states(slow, model)}, about | pixels, packages)
    stages, raised = record(replace(rtdmd, reward=lambda pixels, prompt: rtdmd.reward(pixels, prompt) / 100))
    save(f"{FOLDER}/clip_score.rtdmd", stages, about | raised, packages)
    aesthetic = replace(slow, reward=lambda pixels, _: head_score(head, slow.image(pixels)))
    stages, pixels = record(aesthetic)
    del stages["ids"], stages["text"]  # no prompt is read
    save(f"{FOLDER}/aesthetic", stages, about | pixels | {"head": common.checksum(head)}, packages)

    side = sizes.CLIP["vision_config"]["image_size"]
    stages, pixels = record(of_openai(make_openai(weights, sizes.CLIP), side))
    save(f"{FOLDER}/clip_score.imagereward", stages, about | pixels, ("openai-clip",))
    b32 = common.seeded_weights({name: value.shape for name, value in weights.items()}, sizes.B32)
    depicts = of_openai(make_openai(b32, sizes.CLIP), side, prefix="A photo depicts ")
    stages, pixels = record(
        replace(depicts, reward=lambda pixels, prompt: 2.5 * depicts.reward(pixels, prompt).clamp(min=0))
    )
    save(f"{FOLDER}/clip_score.hessel", stages, {"weights": common.checksum(b32)} | pixels, ("openai-clip",))


def record_pick() -> None:
    """Record PickScore."""
    slow, rtdmd, _, weights = of_transformers(sizes.PICK)
    about, packages = {"weights": common.checksum(weights)}, ("transformers", "openai-clip")
    stages, pixels = record(slow)
    save(f"{FOLDER}/pick_score", stages, about | pixels, packages)
    stages, raised = record(replace(rtdmd, reward=lambda pixels, prompt: rtdmd.reward(pixels, prompt) / 26))
    save(f"{FOLDER}/pick_score.rtdmd", stages, about | raised, packages)


if __name__ == "__main__":
    record_clip()
    record_pick()
