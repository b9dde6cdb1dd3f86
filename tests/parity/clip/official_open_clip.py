"""open_clip on seeded weights, as DMD2 and the authors of DFN use it (`tox -e parity-clip`).

    python -m tests.parity.clip.official_open_clip     writes tests/golden/clip_family/{clip_score.dmd2,dfn_clip,
                                                       dfn_clip.224}.npz, or those that are named

DMD2: ViT-g-14's picture transform on DMD2's square, on DMD2's ids (its recipe is written down in `official`).
DFN: the transform that open_clip lists for the tag `dfn5b`, its own tokens, quick GELU, at 378 and at 224 pixels.

The architectures are shrunken, so all models have one layout; their seeded weights differ.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from tests.parity import common
from tests.parity.clip import sizes
from tests.parity.clip.official import FOLDER, dmd2_ids, dmd2_square, import_openai
from tests.parity.clip.stages import Official, record, save


def make_model(model: str, quick_gelu: bool) -> tuple[Any, str]:
    """Return open_clip's model with the seeded weights of that name, and their checksum."""
    from open_clip.model import CLIP

    made = CLIP(**sizes.HPS, quick_gelu=quick_gelu).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    weights = common.seeded_weights(shapes, model)
    made.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return made, common.checksum(weights)


def transform(architecture: str, tag: str) -> Any:
    """Return open_clip's own picture transform for published weights, at the shrunken size."""
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2

    listed = get_pretrained_cfg(architecture, tag)
    settings = {name: listed[name] for name in ("mean", "std", "interpolation", "resize_mode") if name in listed}
    return image_transform_v2(PreprocessCfg(**settings, size=common.SIDE), is_train=False)


def of_dmd2() -> tuple[Official, str]:
    """Return the cosine of DMD2's evaluator, and the weights' checksum."""
    clip, pixels = import_openai(), transform("ViT-g-14", "laion2b_s12b_b42k")
    model, weights = make_model(sizes.G14, quick_gelu=False)

    def reward(pixels: torch.Tensor, prompt: str) -> torch.Tensor:
        return F.cosine_similarity(model.encode_image(pixels), model.encode_text(dmd2_ids(clip, prompt)))

    official = Official(
        ids=lambda prompt: dmd2_ids(clip, prompt),
        pixels=lambda picture: pixels(dmd2_square(picture))[None],
        image=model.encode_image,
        text=lambda prompt: model.encode_text(dmd2_ids(clip, prompt)),
        reward=reward,
    )
    return official, weights


def of_dfn(name: str, seeded: str) -> tuple[Official, str]:
    """Return open_clip's cosine under the published settings of a DFN architecture, and the weights' checksum."""
    from open_clip import get_model_config, get_tokenizer

    tokenizer, pixels = get_tokenizer(name), transform(name, "dfn5b")
    model, weights = make_model(seeded, quick_gelu=get_model_config(name)["quick_gelu"])

    def reward(pixels: torch.Tensor, prompt: str) -> torch.Tensor:
        return F.cosine_similarity(model.encode_image(pixels), model.encode_text(tokenizer([prompt])))

    def prepared(picture: Image.Image) -> torch.Tensor:
        return pixels(picture)[None]

    official = Official(
        ids=lambda prompt: tokenizer([prompt]),
        pixels=prepared,
        image=model.encode_image,
        text=lambda prompt: model.encode_text(tokenizer([prompt])),
        reward=reward,
    )
    return official, weights


if __name__ == "__main__":
    made = {
        "clip_score.dmd2": of_dmd2,
        "dfn_clip": lambda: of_dfn("ViT-H-14-378-quickgelu", sizes.DFN),
        "dfn_clip.224": lambda: of_dfn("ViT-H-14-quickgelu", sizes.DFN_224),
    }
    for metric in sys.argv[1:] or made:
        official, weights = made[metric]()
        stages, about = record(official)
        save(f"{FOLDER}/{metric}", stages, about | {"weights": weights}, ("open_clip_torch", "openai-clip"))
