"""One measurement of an official package, in the package's own environment; none of this project's models.

Started by tests.perf.scoring; prints {"readme": seconds, "peak_gb": …} or {"loaded": …} for all pictures together.
Called is what the READMEs call, once for each prompt with its pictures. Imports are not counted, downloads neither.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from tests.perf.scoring_inputs import Work

Way = Callable[[Work], float]


def seconds(score: Callable[[str, list[str]], object], work: Work, begin: float | None = None) -> float:
    """Return the duration of scoring all pictures, from `begin` or from now on."""
    begin = time.perf_counter() if begin is None else begin
    for text, pictures in work.by_prompt():
        score(text, [str(path) for path in pictures])
    return time.perf_counter() - begin


def _warm(score: Callable[[str, list[str]], object], work: Work) -> None:
    text, pictures = next(work.by_prompt())
    score(text, [str(pictures[0])])


def hpsv2_readme(work: Work) -> float:
    """`hpsv2.score(pictures, prompt)`: it reads the checkpoint at every call.

    At the first one it would download the LAION model that it then overwrites; here it finds a model made already.
    """
    official, _, _ = _hpsv2(work)
    checkpoint = str(work.weights("hps-v2.1"))
    return seconds(lambda text, paths: official.score(paths, text, cp=checkpoint, hps_version="v2.1"), work)


def hpsv2_loaded(work: Work) -> float:
    """The loop inside `hpsv2.score`, its model loaded once: each picture by itself, with its prompt every time."""
    _, package, (model, preprocess) = _hpsv2(work)
    state = torch.load(work.weights("hps-v2.1"), map_location=work.device, weights_only=True)["state_dict"]
    model.load_state_dict(state)
    model.eval()
    tokenizer = package.get_tokenizer("ViT-H-14")

    @torch.no_grad()
    def score(text: str, paths: list[str]) -> None:
        for path in paths:
            image, ids = preprocess(Image.open(path))[None].to(work.device), tokenizer([text]).to(work.device)
            with torch.autocast("cuda", enabled=work.device != "cpu"):
                output = model(image, ids)
                torch.diagonal(output["image_features"] @ output["text_features"].T).cpu().numpy()

    _warm(score, work)
    return seconds(score, work)


def _hpsv2(work: Work) -> tuple[Any, Any, tuple[Any, Any]]:
    """Return the package's img_score and open_clip, and a model with its preprocessing."""
    from tests.parity.hpsv2.official import import_package, make_model

    package = import_package()
    official = importlib.import_module("hpsv2.img_score")
    model, preprocess = make_model(package, full=not work.small)
    official.device = work.device
    official.model_dict.update(model=model.to(work.device), preprocess_val=preprocess)
    return official, package, (model, preprocess)


def image_reward_readme(work: Work) -> float:
    """`RM.load` of a file, step by step, since its module needs packages for other scores; then `model.score`."""
    from tests.parity.image_reward.official import import_package

    package = import_package()
    begin = time.perf_counter()
    return seconds(_image_reward(package, work), work, begin)


def image_reward_loaded(work: Work) -> float:
    """`model.score` alone."""
    from tests.parity.image_reward.official import import_package

    score = _image_reward(import_package(), work)
    _warm(score, work)
    return seconds(score, work)


def _image_reward(package: Any, work: Work) -> Callable[[str, list[str]], object]:
    from tests.parity.image_reward.official import build_model

    state = torch.load(work.weights("image-reward-v1"), map_location="cpu")
    model = build_model(package, full=not work.small)
    model.device = work.device
    model.to(work.device).load_state_dict(state, strict=False)
    model.eval()
    # The README scores within torch.no_grad().
    return torch.no_grad()(model.score)


PACKAGES: Mapping[str, Mapping[str, Way]] = {
    "hpsv2": {"readme": hpsv2_readme, "loaded": hpsv2_loaded},
    "image-reward": {"readme": image_reward_readme, "loaded": image_reward_loaded},
}

if __name__ == "__main__":
    name, way, told = sys.argv[1:]
    found = PACKAGES[name][way](Work(**json.loads(told)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    print(json.dumps({way: found, "peak_gb": peak}))
