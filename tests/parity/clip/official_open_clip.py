"""open_clip on seeded weights, as DMD2 and the authors of DFN use it (`tox -e parity-clip`).

    python -m tests.parity.clip.official_open_clip     writes tests/golden/clip_family/open_clip.npz

    dmd2    ViT-g-14's picture transform on DMD2's square, on DMD2's ids (its recipe is written down in `official`)
    dfn     the transform that open_clip lists for the tag `dfn5b`, its own tokens, quick GELU

The architectures are shrunken, so both models have one layout; their seeded weights differ.
"""

import importlib.metadata
from typing import Any

import torch
import torch.nn.functional as F

from tests.parity import common
from tests.parity.clip import sizes
from tests.parity.clip.official import ROOT, Recorder, dmd2_ids, dmd2_square, import_openai


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


@torch.no_grad()
def record(record: Recorder) -> dict[str, str]:
    """Record both scores of every pair; return the weights' checksums."""
    from open_clip import get_tokenizer

    clip, tokenizer = import_openai(), get_tokenizer("ViT-H-14-378-quickgelu")
    g14, g14_weights = make_model(sizes.G14, quick_gelu=False)
    dfn, dfn_weights = make_model(sizes.DFN, quick_gelu=True)
    g14_pixels = transform("ViT-g-14", "laion2b_s12b_b42k")
    dfn_pixels = transform("ViT-H-14-378-quickgelu", "dfn5b")
    for picture, prompt in common.pairs():
        image = g14.encode_image(g14_pixels(dmd2_square(picture))[None])
        dmd2 = F.cosine_similarity(image, g14.encode_text(dmd2_ids(clip, prompt)))[0]
        image, text = dfn.encode_image(dfn_pixels(picture)[None]), dfn.encode_text(tokenizer([prompt]))
        record.add(dmd2=dmd2, dfn=F.cosine_similarity(image, text)[0])
    return {"dmd2": g14_weights, "dfn": dfn_weights}


def main() -> None:
    """Record both."""
    found = Recorder()
    weights = record(found)
    packages = ("open_clip_torch", "openai-clip", "torch", "torchvision", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    path = ROOT / "tests/golden/clip_family/open_clip.npz"
    common.save(path, found.stacked(), {"weights": weights, "versions": versions})
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
