"""The package hpsv2 on seeded weights, stage by stage; runs in its own environment (`tox -e parity-hpsv2`).

    python -m tests.parity.hpsv2.official           shrunken, writes tests/golden/clip_family/{hps,hps_v21}.npz
    python -m tests.parity.hpsv2.official --full    the true ViT-H/14, writes runs/parity/hps-full.npz

Of the wheel, only the package's own open_clip and its `img_score.score` are imported: empty modules stand for the
parents, whose imports need packages that scoring does not, and the vocabulary that the wheel lacks is open_clip's.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity import common
from tests.parity.clip import sizes

SHRUNKEN = "ViT-H-14-shrunken"
ROOT = Path(__file__).resolve().parents[3]


def import_package() -> Any:
    """Return hpsv2.src.open_clip without running the package's own __init__ files."""
    found = importlib.util.find_spec("hpsv2")
    assert found is not None and found.origin is not None, "run it by `tox -e parity-hpsv2`"
    home = Path(found.origin).parent
    for name, folder in (("hpsv2", home), ("hpsv2.src", home / "src")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shipped = importlib.util.find_spec("open_clip")
    assert shipped is not None and shipped.origin is not None
    shutil.copy(Path(shipped.origin).parent / vocabulary, home / "src" / "open_clip" / vocabulary)
    progress = types.ModuleType("clint.textui")  # a download bar that is imported and never used
    progress.progress = None  # type: ignore[attr-defined]
    utils = types.ModuleType("hpsv2.utils")
    utils.root_path, utils.hps_version_map = tempfile.gettempdir(), {}  # type: ignore[attr-defined]
    sys.modules |= {"clint": types.ModuleType("clint"), "clint.textui": progress, "hpsv2.utils": utils}
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    return importlib.import_module("hpsv2.src.open_clip")


def make_model(package: Any, full: bool) -> tuple[Any, Any]:
    """Return the model with seeded weights and its preprocessing, as img_score makes them."""
    if not full:
        config = Path(tempfile.mkdtemp()) / f"{SHRUNKEN}.json"
        config.write_text(json.dumps(sizes.HPS))
        package.factory.add_model_config(config)
    model, _, preprocess = package.create_model_and_transforms(
        "ViT-H-14" if full else SHRUNKEN,
        None,
        precision="amp",
        device="cpu",
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
    )
    return model, preprocess


def record(package: Any, full: bool, count: int) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return all stages and what made them."""
    model, preprocess = make_model(package, full)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = common.seeded_weights(shapes)
    digest = common.checksum(weights)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    model.eval()
    tokenizer = package.get_tokenizer("ViT-H-14")
    official, checkpoint = img_score(model, preprocess), write_checkpoint(weights)
    del weights  # 4 GB at the true size
    stages: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ids", "image", "text", "score", "pixels", "gradient")
    }
    raised: dict[str, str] = {}
    for index, (picture, prompt) in enumerate(common.pairs(count)):
        ids = tokenizer([prompt])
        stages["ids"].append(ids[0].numpy().astype(np.uint16))
        stages["text"].append(model.encode_text(ids)[0].detach().numpy())
        pixels = preprocess(picture)[None]
        try:
            score = official.score(picture, prompt, cp=str(checkpoint))[0]
            stages["image"].append(model.encode_image(pixels)[0].detach().numpy())
        except RuntimeError as error:
            raised[str(index)] = str(error).partition("\n")[0]
            score = np.float32("nan")
            stages["image"].append(np.full_like(stages["text"][-1], np.nan))
        stages["score"].append(np.float32(score))
        if index < common.SHOWN:
            stages["pixels"].append(pixels[0].numpy())
            stages["gradient"].append(gradient(model, pixels, ids))
    side = model.visual.image_size[0]
    others = {mode: Image.new(mode, (side, side)) for mode in ("RGBA", "P", "L")}
    for name, picture in (others | {"oblong, longer side fits": Image.new("RGB", (side, side // 2))}).items():
        try:
            official.score(picture, "a", cp=str(checkpoint))
        except RuntimeError as error:
            raised[name] = str(error).partition("\n")[0]
    about: dict[str, object] = {"official": "hpsv2", "weights": digest, "keys": len(shapes), "raised": raised}
    return {name: np.stack(values) for name, values in stages.items()}, about


def record_v21(package: Any, count: int) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return the scores of version v2.1, which differs in its weights alone, and what made them."""
    model, preprocess = make_model(package, full=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = common.seeded_weights(shapes, sizes.HPS_V21)
    official, checkpoint = img_score(model, preprocess), write_checkpoint(weights)
    scores = [
        official.score(picture, prompt, cp=str(checkpoint), hps_version="v2.1")[0]
        for picture, prompt in common.pairs(count)
    ]
    return {"score": np.stack(scores)}, {"official": "hpsv2", "weights": common.checksum(weights)}


def img_score(model: Any, preprocess: Any) -> Any:
    """Return the package's own scoring module, which finds the model made already."""
    module = importlib.import_module("hpsv2.img_score")
    module.model_dict.update(model=model, preprocess_val=preprocess)
    return module


def write_checkpoint(weights: Mapping[str, np.ndarray]) -> Path:
    """Write seeded weights as the published file holds them; return the path."""
    path = Path(tempfile.mkdtemp()) / "seeded.pt"
    torch.save({"state_dict": {name: torch.from_numpy(values) for name, values in weights.items()}}, path)
    return path


def gradient(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Return the gradient of the score in the preprocessed pixels."""
    pixels = pixels.clone().requires_grad_()
    output = model(pixels, ids)
    (found,) = torch.autograd.grad((output["image_features"] * output["text_features"]).sum(), pixels)
    return found[0].numpy()


def main() -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the true architecture: 986 M parameters")
    parser.add_argument("--pairs", type=int, help="pictures with their prompts; default 64, of the true size 8")
    arguments = parser.parse_args()
    full, package = arguments.full, import_package()
    count = arguments.pairs or (8 if full else common.PAIRS)
    found = {"runs/parity/hps-full" if full else "tests/golden/clip_family/hps": record(package, full, count)}
    if not full:
        found["tests/golden/clip_family/hps_v21"] = record_v21(package, count)
    packages = ("hpsv2", "torch", "torchvision", "numpy", "pillow")
    for name, (stages, about) in found.items():
        path = ROOT / f"{name}.npz"
        common.save(path, stages, about | {"versions": {one: importlib.metadata.version(one) for one in packages}})
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
