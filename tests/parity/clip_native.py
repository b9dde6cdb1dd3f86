"""The native side of the CLIP family's parity: seeded weights in the real files' form, read by the real loaders.

python -m tests.parity.clip_native runs/parity/hps-full.npz     compare HPS with one official run, stage by stage
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metrics.aesthetic import AestheticHead
from metrics.base import Batch, Prompt
from metrics.encoders import published
from metrics.encoders.clip_tokens import OpenAiTokens
from metrics.encoders.open_clip import OpenClipFile
from metrics.loaded import Scorer
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.clip import sizes

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clip_family"
QUICK_HPS = {**sizes.HPS, "quick_gelu": True}


def layout(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by key, without making them."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}


def transformers_layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the layout of a CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    return layout(lambda: CLIPModel(CLIPConfig(**config)))


def open_clip_layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the layout of an open_clip model."""
    from open_clip.model import CLIP

    return layout(lambda: CLIP(**config))


def seeded(shapes: Mapping[str, tuple[int, ...]], model: str = "") -> dict[str, Tensor]:
    """Return the seeded state dict of a layout."""
    return {name: torch.from_numpy(values) for name, values in common.seeded_weights(shapes, model).items()}


def write_weights(folder: Path) -> None:
    """Write the shrunken family as FEWSTEP_BENCH_WEIGHTS expects it: true file names, wrappers and keys."""
    from safetensors.torch import save_file

    clip, pick = seeded(transformers_layout(sizes.CLIP)), seeded(transformers_layout(sizes.PICK))
    b32 = seeded(transformers_layout(sizes.CLIP), sizes.B32)
    # Models of one architecture have other values each: one in the place of another shows.
    hps, hps_v21, g14, dfn = (
        seeded(open_clip_layout(sizes.HPS), model) for model in ("", sizes.HPS_V21, sizes.G14, sizes.DFN)
    )
    counters = {f"{side}_model.embeddings.position_ids": torch.arange(9)[None] for side in ("text", "vision")}
    for identity, content in {
        "clip-vit-large-patch14": clip | counters,
        "clip-vit-b-32": b32 | counters,
        "pick-score-v1": pick,
        "hps-v2": {"epoch": 1, "state_dict": hps},
        "hps-v2.1": {"epoch": 1, "state_dict": hps_v21},
        "clip-vit-g-14-laion2b": g14,
        "dfn5b-clip-vit-h-14-378": dfn,
        "laion-aesthetic-v2": seeded(layout(AestheticHead)),
    }.items():
        path = folder / identity / manifest(identity).entry.files[0].name
        path.parent.mkdir()
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)


def shrunken(architecture: str) -> Callable[[], Mapping[str, Any]]:
    """Return what stands for `published.named`: the shrunken config of any open_clip architecture."""
    return lambda: QUICK_HPS if "quickgelu" in architecture else sizes.HPS


def scores(identity: str, count: int = common.PAIRS, block: int = 8) -> np.ndarray:
    """Return a metric's scores of the first pairs, in blocks."""
    found = []
    scorer = Scorer([identity])
    pictures, texts = zip(*common.pairs(count), strict=True)
    for start in range(0, count, block):
        prompts = [Prompt(text=text) for text in texts[start : start + block]]
        batch = Batch(prompts=prompts, seeds=range(len(prompts)))
        found.append(scorer.score(pictures[start : start + block], batch)[identity]["score"])
    return torch.cat(found).numpy()


def main(path: Path) -> int:
    """Compare ViT-H/14, of its true size or shrunken, with an official run; return the exit code."""
    stages, about = common.load(path)
    config = sizes.HPS if about["keys"] == len(open_clip_layout(sizes.HPS)) else published.named("ViT-H-14")()
    weights = common.seeded_weights(open_clip_layout(config))
    if common.checksum(weights) != about["weights"]:
        print(f"{path}: made with other seeded weights", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hps-v2" / "HPS_v2_compressed.pt"
        file.parent.mkdir()
        torch.save({"state_dict": {name: torch.from_numpy(values) for name, values in weights.items()}}, file)
        del weights
        os.environ |= {FOLDER: folder, SYNTHETIC: "1"}
        differences = compare(
            stages, OpenClipFile(manifest("hps-v2"), file.name, torch.device("cpu"), lambda: config)
        )
    for stage, (difference, tolerance) in differences.items():
        print(f"{stage:8} {difference:.2g} (tolerance {tolerance:g})")
    return int(any(not difference <= tolerance for difference, tolerance in differences.values()))


@torch.no_grad()
def compare(stages: Mapping[str, np.ndarray], clip: OpenClipFile) -> dict[str, tuple[float, float]]:
    """Return the largest difference and the tolerance of each stage, all from the stage before's own values."""
    pictures, prompts = zip(*common.pairs(len(stages["score"])), strict=True)
    fits = np.isfinite(stages["score"])  # the official package fails on some
    ids = OpenAiTokens().ids(prompts)
    side = stages["pixels"].shape[-1]
    pixels = torch.cat([published.padded(side).from_pil([picture]) for picture in pictures])
    image, text = (nn.functional.normalize(rows) for rows in (clip.image(pixels[fits]), clip.text(ids)))
    official = {name: nn.functional.normalize(torch.from_numpy(stages[name])) for name in ("image", "text")}
    score = (image * text[fits]).sum(dim=1).numpy()
    return {
        "ids": (float(np.abs(ids.numpy() - stages["ids"].astype(int)).max()), 0),
        "pixels": (float(np.abs(pixels[: len(stages["pixels"])].numpy() - stages["pixels"]).max()), 1e-6),
        "image": (float((image - official["image"][fits]).abs().max()), 1e-6),
        "text": (float((text - official["text"]).abs().max()), 1e-6),
        "score": (float(np.abs(score - stages["score"][fits]).max()), 1e-6),
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
