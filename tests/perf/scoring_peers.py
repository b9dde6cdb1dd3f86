"""An official package scoring one prompt's pictures at a time, in its own environment; none of this project's models.

Started by tests.perf.scoring. Called is what the READMEs call, a prompt with its pictures; `loaded` is the package's
own code with the weights in memory. Imports are not counted, downloads neither.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image

from tests.perf.scoring_inputs import Work, serve

Way = Callable[[str, list[Path]], object]


def hpsv2(work: Work) -> Mapping[str, Way]:
    """`hpsv2.score(pictures, prompt)`, which reads the checkpoint at every call; and the loop inside it.

    At the first call it would download the LAION model that it then overwrites; here it finds a model made already.
    """
    from tests.parity.hpsv2.official import import_package, make_model

    package = import_package()
    official = importlib.import_module("hpsv2.img_score")
    model, preprocess = make_model(package, full=not work.small)
    official.device = work.device
    official.model_dict.update(model=model.to(work.device), preprocess_val=preprocess)
    checkpoint = str(work.weights("hps-v2.1"))
    state = torch.load(checkpoint, map_location=work.device, weights_only=True)["state_dict"]
    model.load_state_dict(state)
    model.eval()
    tokenizer = package.get_tokenizer("ViT-H-14")

    def readme(text: str, pictures: list[Path]) -> None:
        official.score([str(path) for path in pictures], text, cp=checkpoint, hps_version="v2.1")

    @torch.no_grad()
    def loaded(text: str, pictures: list[Path]) -> None:
        for path in pictures:
            image, ids = preprocess(Image.open(path))[None].to(work.device), tokenizer([text]).to(work.device)
            with torch.autocast("cuda", enabled=work.device != "cpu"):
                output = model(image, ids)
                torch.diagonal(output["image_features"] @ output["text_features"].T).cpu().numpy()

    return {"readme": readme, "loaded": loaded}


def image_reward(work: Work) -> Mapping[str, Way]:
    """`RM.load` of a file, step by step, since its module needs packages for other scores; then `model.score`."""
    from tests.parity.image_reward.official import build_model, import_package

    package, made = import_package(), []

    def load(text: str, pictures: list[Path]) -> None:
        state = torch.load(work.weights("image-reward-v1"), map_location="cpu")
        model = build_model(package, full=not work.small)
        model.device = work.device
        model.to(work.device).load_state_dict(state, strict=False)
        made[:] = [model.eval()]

    def loaded(text: str, pictures: list[Path]) -> None:
        with torch.no_grad():  # as in the README
            made[0].score(text, [str(path) for path in pictures])

    return {"load": load, "loaded": loaded}


PACKAGES: Mapping[str, Callable[[Work], Mapping[str, Way]]] = {"hpsv2": hpsv2, "image-reward": image_reward}

if __name__ == "__main__":
    name, told = sys.argv[1:]
    work = Work(**json.loads(told))
    serve(PACKAGES[name](work), work)
