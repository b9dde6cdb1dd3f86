"""The package hpsv2 on seeded weights, stage by stage; runs in its own environment (`tox -e parity-hpsv2`).

    python -m tests.parity.hpsv2.official           shrunken, writes tests/golden/clip_family/{hps_v2,hps_v21}.npz
    python -m tests.parity.hpsv2.official --full    the true ViT-H/14, writes runs/parity/hps_v2-full.npz

Of the wheel, only the package's own open_clip and its `img_score.score` are imported: empty modules stand for the
parents, whose imports need packages that scoring does not, and the vocabulary that the wheel lacks is open_clip's.
"""

import argparse
import importlib
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
from tests.parity.clip.stages import Official, record, save

SHRUNKEN = "ViT-H-14-shrunken"
FOLDER = "tests/golden/clip_family"


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


def record_version(package: Any, version: str, full: bool, count: int) -> None:
    """Record all stages of one version, v2.0 or v2.1: they differ in their weights alone."""
    model, preprocess = make_model(package, full)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = common.halved(common.seeded_weights(shapes, "" if version == "v2.0" else sizes.HPS_V21))
    about: dict[str, Any] = {"weights": common.checksum(weights), "keys": len(shapes)}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    model.eval()
    tokenizer = package.get_tokenizer("ViT-H-14")
    scoring, checkpoint = img_score(model, preprocess), str(write_checkpoint(weights))
    del weights  # 4 GB at the true size

    def reward(pixels: torch.Tensor, prompt: str) -> torch.Tensor:
        output = model(pixels, tokenizer([prompt]))
        return (output["image_features"] * output["text_features"]).sum()

    def score(picture: Image.Image, prompt: str) -> float:
        return float(scoring.score(picture, prompt, cp=checkpoint, hps_version=version)[0])

    official = Official(
        ids=lambda prompt: tokenizer([prompt]),
        pixels=lambda picture: preprocess(picture)[None],
        image=model.encode_image,
        text=lambda prompt: model.encode_text(tokenizer([prompt])),
        reward=reward,
        score=score,
        floats=True,
    )
    stages, recorded = record(official, count)
    side = model.visual.image_size[0]
    try:
        score(Image.new("RGB", (side, side // 2)), "a")
    except RuntimeError as error:
        recorded["raised"] |= {"oblong, longer side fits": str(error).partition("\n")[0]}
    name = "hps_v2" if version == "v2.0" else "hps_v21"
    save(f"runs/parity/{name}-full" if full else f"{FOLDER}/{name}", stages, about | recorded, ("hpsv2",))


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


def main() -> None:
    """Record both versions; of the true size, v2.0 alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the true architecture: 986 M parameters")
    parser.add_argument("--pairs", type=int, help="pictures with their prompts; default 64, of the true size 8")
    arguments = parser.parse_args()
    count = arguments.pairs or (8 if arguments.full else common.PAIRS)
    package = import_package()
    for version in ("v2.0",) if arguments.full else ("v2.0", "v2.1"):
        record_version(package, version, arguments.full, count)


if __name__ == "__main__":
    main()
