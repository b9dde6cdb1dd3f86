"""The native side of ImageReward's parity: seeded weights written as the real file is, read by the real loader.

python -m tests.parity.image_reward.native runs/parity/image-reward-full.npz     compare with one official run
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.encoders import blip
from metrics.encoders.blip import BertTokens, BlipFile
from metrics.image_reward import PICTURES
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.common import Stage
from tests.parity.image_reward import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "image_reward" / "shrunken.npz"
TRUE_VISION, TRUE_TEXT = blip.VISION, blip.TEXT
SHRUNKEN_VISION = {**blip.VISION, **sizes.VISION}
SHRUNKEN_TEXT = {**blip.TEXT, **sizes.TEXT, "bos_token_id": None}
FILE = "ImageReward.pt"
EXACT = 1e-12  # of values about 1, in float64
VARIANTS = 16  # pairs that the variants are compared on: their model is the same, and their pictures have all shapes


def official_layout(vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published file by its own keys, written down from the published architecture."""
    seen, read, widths = vision["hidden_size"], text["hidden_size"], (1024, 128, 64, 16, 1)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    vit, bert = "blip.visual_encoder", "blip.text_encoder"
    patch = vision["patch_size"]
    shapes |= {f"{vit}.cls_token": (1, 1, seen)}
    shapes |= {f"{vit}.pos_embed": (1, (vision["image_size"] // patch) ** 2 + 1, seen)}
    shapes |= {f"{vit}.patch_embed.proj.weight": (seen, 3, patch, patch), f"{vit}.patch_embed.proj.bias": (seen,)}
    for block in (f"{vit}.blocks.{index}" for index in range(vision["num_hidden_layers"])):
        norm(f"{block}.norm1", seen)
        norm(f"{block}.norm2", seen)
        linear(f"{block}.attn.qkv", 3 * seen, seen)
        linear(f"{block}.attn.proj", seen, seen)
        linear(f"{block}.mlp.fc1", 4 * seen, seen)
        linear(f"{block}.mlp.fc2", seen, 4 * seen)
    norm(f"{vit}.norm", seen)
    shapes |= {f"{bert}.embeddings.word_embeddings.weight": (text["vocab_size"], read)}
    shapes |= {f"{bert}.embeddings.position_embeddings.weight": (512, read)}
    norm(f"{bert}.embeddings.LayerNorm", read)
    for layer in (f"{bert}.encoder.layer.{index}" for index in range(text["num_hidden_layers"])):
        for attention, source in (("attention", read), ("crossattention", seen)):
            linear(f"{layer}.{attention}.self.query", read, read)
            linear(f"{layer}.{attention}.self.key", read, source)
            linear(f"{layer}.{attention}.self.value", read, source)
            linear(f"{layer}.{attention}.output.dense", read, read)
            norm(f"{layer}.{attention}.output.LayerNorm", read)
        linear(f"{layer}.intermediate.dense", 4 * read, read)
        linear(f"{layer}.output.dense", read, 4 * read)
        norm(f"{layer}.output.LayerNorm", read)
    linear("blip.vision_proj", 256, seen)
    linear("blip.text_proj", 256, read)
    for index, (inputs, outputs) in zip((0, 2, 4, 6, 7), zip((read, *widths), widths, strict=False), strict=True):
        linear(f"mlp.layers.{index}", outputs, inputs)
    return shapes


def write_weights(folder: Path, layout: Mapping[str, tuple[int, ...]], vocabulary: list[str]) -> str:
    """Write both files as FEWSTEP_BENCH_WEIGHTS expects them; return the seeded weights' checksum."""
    weights = sizes.seeded_weights(layout)
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for identity, name in (("image-reward-v1", FILE), ("bert-base-uncased-vocab", "vocab.txt")):
        assert manifest(identity).entry.files[0].name == name
        (folder / identity).mkdir(parents=True)
    torch.save(state, folder / "image-reward-v1" / FILE)
    (folder / "bert-base-uncased-vocab" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return common.checksum(weights)


@torch.no_grad()
def compare(stages: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Iterator[Stage]:
    """Yield every stage of an official run against the model whose weights are written.

    Formulas are compared in float64, where no processor's rounding counts; scores as they are used, in float32."""
    model, exact = (BlipFile(manifest("image-reward-v1"), FILE, torch.device("cpu")) for _ in range(2))
    exact.model.double()
    read = BertTokens(manifest("bert-base-uncased-vocab"))
    tokens = read.tokens(list(sizes.AWKWARD)).numpy()
    yield Stage("token ids", float(np.abs(tokens[:, 0] - stages["ids"]).max()), 0)
    yield Stage("text mask", float(np.abs(tokens[:, 1] - stages["mask"]).max()), 0)
    pairs = list(common.pairs(len(stages["score"])))
    pixels = [PICTURES[""].from_pil([picture]) for picture, _ in pairs]
    found = [common.digest(common.grey_levels(one[0].numpy())) for one in pixels]
    wrong = [ours != theirs for ours, theirs in zip(found, about["pixels"], strict=True)]
    yield Stage("pixels (pictures that differ)", float(sum(wrong)), 0)
    prompts = read.tokens([prompt for _, prompt in pairs])
    singles = [prompts[index : index + 1] for index in range(len(pairs))]
    _, tokens_shown, width = stages["image_64"].shape
    images = [exact.image(one.double()) for one in pixels[: len(stages["image_64"])]]
    corner = torch.cat(images)[:, :tokens_shown, :width]
    yield Stage("image states, float64", _gap(corner, stages["image_64"]), EXACT)
    hidden = torch.cat([exact.model.read(*one) for one in zip(images, singles, strict=False)])
    yield Stage("[CLS] state, float64", _gap(hidden, stages["hidden_64"]), EXACT)
    for name, variant in (("score", ""), ("refl", "-refl"), ("rtdmd", "-rtdmd")):
        seen = pixels
        if variant:
            seen = [PICTURES[variant].from_pil([picture]) for picture, _ in pairs[:VARIANTS]]
        official, label = stages[f"{name}_64"][: len(seen)], f"score, {name}" if variant else name
        in_64 = [exact.score(exact.image(one.double()), read) for one, read in zip(seen, singles, strict=False)]
        yield Stage(f"{label}, float64", _gap(torch.cat(in_64), official), EXACT)
        found = [model.score(model.image(one), read) for one, read in zip(seen, singles, strict=False)]
        yield Stage(label, _gap(torch.cat(found), official), common.rounding(stages, name))
    with torch.enable_grad():
        yield Stage("gradient (relative)", gradient_gap(model, pixels, singles, stages), 1e-5)


def gradient_gap(
    model: BlipFile, pixels: list[Tensor], tokens: list[Tensor], stages: Mapping[str, np.ndarray]
) -> float:
    """Return the largest difference of the gradients in the pixels, relative to the largest of each."""
    gaps = []
    for index, official in enumerate(stages["gradient"]):
        inputs = pixels[index].clone().requires_grad_()
        (found,) = torch.autograd.grad(model.score(model.image(inputs), tokens[index]).sum(), inputs)
        strided = found[0, :, :: sizes.STRIDE, :: sizes.STRIDE]
        gaps.append(_gap(strided, official) / float(stages["grad_max"][index]))
    return max(gaps)


def _gap(found: Tensor, official: np.ndarray) -> float:
    return float(np.abs(found.numpy() - official).max())


def main(path: Path) -> int:
    """Compare the model, of its true size or shrunken, with an official run; return the exit code."""
    stages, about = common.load(path)
    if len(official_layout(SHRUNKEN_VISION, SHRUNKEN_TEXT)) + 1 == about["keys"]:  # with position_ids
        blip.VISION, blip.TEXT = SHRUNKEN_VISION, SHRUNKEN_TEXT
    with tempfile.TemporaryDirectory() as folder:
        if write_weights(Path(folder), official_layout(blip.VISION, blip.TEXT), sizes.VOCABULARY) != about["weights"]:
            print(f"{path}: made with other seeded weights", file=sys.stderr)
            return 1
        os.environ |= {FOLDER: folder, SYNTHETIC: "1"}
        found = list(compare(stages, about))
    for stage in found:
        print(f"{stage.name:30} {stage.difference:.2g} (tolerance {stage.tolerance:g})")
    return int(not all(stage.within for stage in found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
