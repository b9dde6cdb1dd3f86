"""Record what pyiqa's MANIQA makes of seeded, shrunken weights: tox -e parity-maniqa

pyiqa 0.1.14.1 holds the authors' network; of its package only that module is imported. The transformer is timm's,
with patches of 28 pixels and 16 channels, so that everything else has its true depth: 8 x 8 tokens, shifted windows.
"""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from tests.parity import common
from tests.parity.maniqa import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "maniqa" / "network.npz"


def network(scale: float) -> Any:
    """Return pyiqa's MANIQA without its crops, in float64: random weights saturate its attentions, which then make
    differences in the third digit of the rounding of float32."""
    import timm
    from pyiqa.archs import maniqa_arch
    from timm.models.vision_transformer import VisionTransformer

    timm.create_model = lambda *_, **__: VisionTransformer(
        patch_size=sizes.PATCH, embed_dim=sizes.WIDTH, num_heads=sizes.HEADS
    )
    maniqa_arch.uniform_crop = lambda crops, **_: crops
    return (
        maniqa_arch.MANIQA(
            embed_dim=sizes.WIDTH, patch_size=sizes.PATCH, dim_mlp=sizes.MLP, scale=scale, pretrained=False
        )
        .eval()
        .double()
    )


def bare_packages(*names: str) -> None:
    """Let modules of these packages be imported without running their `__init__`, which imports every metric."""
    spec = find_spec("pyiqa")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]).parent
    for name in names:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(root / name.replace(".", "/"))]


def main() -> None:
    bare_packages("pyiqa", "pyiqa.archs", "pyiqa.utils")
    crops = torch.from_numpy(sizes.crops())
    scores, weights = [], {}
    for scale in sizes.SCALES:
        made = network(scale)
        buffers = {name for name in made.state_dict() if name.endswith(sizes.BUFFERS)}
        shapes = {name: tuple(v.shape) for name, v in made.state_dict().items() if name not in buffers}
        weights = common.seeded_weights(shapes)
        made.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
        with torch.no_grad():
            scores.append(made(crops.double() / 2 + 0.5)[:, 0].numpy())
    about = {"pyiqa": "0.1.14.1", "timm": version("timm"), "torch": version("torch"), "scales": sizes.SCALES}
    common.save(GOLDEN, {"scores": np.stack(scores), "checksum": np.asarray(common.checksum(weights))}, about)
    print(np.stack(scores))


if __name__ == "__main__":
    main()
