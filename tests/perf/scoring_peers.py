"""One measurement of an official package, in the package's own environment; imports nothing of this project's models.

Started by tests.perf.scoring; prints {"readme": seconds} or {"loaded": seconds} for all pictures together.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image


def prompt(number: int) -> str:
    """Return the prompt of a picture, as tests.perf.scoring_inputs does."""
    return f"a photograph of castle number {number} above a calm sea at dusk, highly detailed, wide"


def hpsv2(way: str, pictures: list[Path], weights: Path) -> float:
    """Time package hpsv2: `score()` for each picture, or its inner loop without reading the checkpoint again.

    `score()` would first download the LAION model that it then overwrites; here it finds a model made already.
    """
    from tests.parity.hpsv2.official import import_package

    package = import_package()
    checkpoint = weights / "hps-v2.1" / "HPS_v2.1_compressed.pt"
    official = importlib.import_module("hpsv2.img_score")
    model, _, preprocess = package.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    official.model_dict.update(model=model, preprocess_val=preprocess)
    if way == "readme":
        begin = time.perf_counter()
        for number, path in enumerate(pictures):
            official.score(str(path), prompt(number), cp=str(checkpoint), hps_version="v2.1")
        return time.perf_counter() - begin
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    tokenizer = package.get_tokenizer("ViT-H-14")
    model.eval()
    return _time_each(pictures, lambda path, number: _hps_score(model, preprocess, tokenizer, path, number))


def _hps_score(model: Any, preprocess: Any, tokenizer: Any, path: Path, number: int) -> float:
    with torch.no_grad():
        image, text = preprocess(Image.open(path))[None], tokenizer([prompt(number)])
        output = model(image, text)
        return float((output["image_features"] @ output["text_features"].T).diagonal()[0])


def _time_each(pictures: list[Path], score: Any) -> float:
    score(pictures[0], 0)
    begin = time.perf_counter()
    for number, path in enumerate(pictures):
        score(path, number)
    return time.perf_counter() - begin


PACKAGES = {"hpsv2": hpsv2}

if __name__ == "__main__":
    name, way = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder = Path(os.environ["FEWSTEP_BENCH_PICTURES"])
    found = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))
    print(json.dumps({way: PACKAGES[name](way, found, Path(os.environ["FEWSTEP_BENCH_WEIGHTS"]))}))
