"""The oracles of CLIP, PickScore and the aesthetic head on seeded weights, stage by stage (`tox -e parity-clip`).

    python -m tests.parity.clip.official     writes tests/golden/clip_family/{clip,pick}.npz

Oracles: transformers 4.57's CLIPModel, slow (PIL) processor and fast tokenizer; OpenAI's own package, on the same
weights in its own layout, for its tokens, crop and model; DMD2's caption and picture recipe, written down again here;
the aesthetic head as a chain of matrix products.
"""

import gzip
import importlib.metadata
import json
import sys
import tempfile
import types
from collections.abc import Mapping
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

ROOT = Path(__file__).resolve().parents[3]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
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
    """Return the pixels [3, side, side] as RTDMD resizes them: floats, torchvision's default interpolation."""
    floats = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).float() / 255
    return vision.normalize(vision.center_crop(vision.resize(floats, side, antialias=True), side), MEAN, STD)


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


def head_score(weights: Mapping[str, np.ndarray], embedding: np.ndarray) -> np.float32:
    """Return the aesthetic head's score of one embedding: five affine maps in float64."""
    values = embedding.astype(np.float64) / np.linalg.norm(embedding.astype(np.float64))
    for layer in HEAD:
        values = weights[f"{layer}.weight"].astype(np.float64) @ values + weights[f"{layer}.bias"]
    return np.float32(values[0])


def grey_levels(pixels: torch.Tensor) -> np.ndarray:
    """Return normalised pixels [3, H, W] as the 8-bit values they were made of."""
    levels = (pixels.double() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    return levels.round().numpy().astype(np.uint8)


class Recorder:
    """Collects one value of each stage per pair."""

    def __init__(self) -> None:
        self.stages: dict[str, list[np.ndarray]] = {}

    def add(self, **values: Any) -> None:
        """Add values by stage."""
        for name, value in values.items():
            array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            self.stages.setdefault(name, []).append(array)

    def stacked(self) -> dict[str, np.ndarray]:
        """Return all stages as arrays."""
        return {name: np.stack(values) for name, values in self.stages.items()}


def record_transformers(
    config: Mapping[str, Any], record: Recorder
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Record what transformers' own classes make of the pairs; return the weights and all image embeddings."""
    from transformers import CLIPImageProcessor

    model, weights = make_model(config)
    tokenizer, side = make_tokenizer(), config["vision_config"]["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    embeddings = []
    for index, (picture, prompt) in enumerate(common.pairs()):
        read = tokenizer([prompt], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        pixels = processor(picture, return_tensors="pt")["pixel_values"].requires_grad_()
        output = model(**read, pixel_values=pixels)
        embeddings.append(output.image_embeds[0].detach().numpy())
        soft = bilinear(picture, side)
        logit = model(**read, pixel_values=soft[None]).logits_per_image[0, 0]
        record.add(
            ids=read["input_ids"][0].numpy().astype(np.uint16),
            cosine=(output.image_embeds * output.text_embeds).sum(),
            logit=output.logits_per_image[0, 0],
            logit_bilinear=logit,
        )
        if index < common.SHOWN:
            (gradient,) = torch.autograd.grad(output.logits_per_image[0, 0], pixels)
            hidden = output.vision_model_output.last_hidden_state[0, 0]
            record.add(
                levels=grey_levels(pixels[0].detach()),
                bilinear=soft,
                gradient=gradient[0],
                image=output.image_embeds[0],
                text=output.text_embeds[0],
                hidden=hidden,
            )
    return weights, embeddings


@torch.no_grad()
def record_openai(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], record: Recorder) -> None:
    """Record what OpenAI's own package, the paper's CLIPScore, DMD2's recipe and the aesthetic head make of them."""
    clip = import_openai()
    model = make_openai(weights, config)
    b32 = make_openai(
        common.seeded_weights({name: value.shape for name, value in weights.items()}, sizes.B32), config
    )
    transform = clip.clip._transform(config["vision_config"]["image_size"])
    for index, (picture, prompt) in enumerate(common.pairs()):
        ids = clip.tokenize([prompt], truncate=True)
        depicts = clip.tokenize(["A photo depicts " + prompt], truncate=True)
        pixels = transform(picture)[None]
        image = model.encode_image(pixels)
        cosine = F.cosine_similarity(b32.encode_image(pixels), b32.encode_text(depicts))[0]
        record.add(
            openai_ids=ids[0].numpy().astype(np.uint16),
            openai_cosine=F.cosine_similarity(image, model.encode_text(ids))[0],
            hessel=2.5 * cosine.clamp(min=0),
            depicts=cosine,
            dmd2_ids=dmd2_ids(clip, prompt)[0].numpy().astype(np.uint16),
        )
        if index < common.SHOWN:
            record.add(openai_levels=grey_levels(transform(picture)))
            record.add(dmd2_levels=grey_levels(transform(dmd2_square(picture))))


def head_weights() -> dict[str, np.ndarray]:
    """Return the seeded weights of the aesthetic head."""
    shapes = {f"{layer}.weight": shape for layer, shape in HEAD.items()}
    return common.seeded_weights(shapes | {f"{layer}.bias": shape[:1] for layer, shape in HEAD.items()})


def main() -> None:
    """Record both models."""
    packages = ("transformers", "openai-clip", "torch", "torchvision", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    for name, config in (("clip", sizes.CLIP), ("pick", sizes.PICK)):
        record = Recorder()
        weights, embeddings = record_transformers(config, record)
        if name == "clip":
            record_openai(config, weights, record)
            head = head_weights()
            for embedding in embeddings:  # of transformers' pass, as in RTDMD's and flow_grpo's code
                record.add(aesthetic=head_score(head, embedding))
        path = ROOT / f"tests/golden/clip_family/{name}.npz"
        stages = record.stacked()
        if name == "pick":  # the same pixels as CLIP's, recorded there
            stages = {stage: rows for stage, rows in stages.items() if stage not in ("levels", "bilinear", "hidden")}
        common.save(path, stages, {"weights": common.checksum(weights), "versions": versions})
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
