"""What the speed of scoring is measured on: pictures, prompts, and random weights in files of the true layout.

At its top it imports nothing but torch, NumPy and Pillow, so that an environment of old packages can read it, too.
"""

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Peer:
    """An official package: its name in `scoring_peers`, and the tox environment it lives in."""

    name: str
    environment: str
    reads_at_every_call: bool = False  # its README's call reads the weights each time; else a call of its own does


@dataclass(frozen=True, kw_only=True)
class Case:
    """Metrics that are measured together, the weights they need, and whom they are measured against."""

    metrics: tuple[str, ...]
    weights: tuple[str, ...]
    peer: Peer | None = None


CASES = {
    "image_reward": Case(
        metrics=("image_reward",),
        weights=("image-reward-v1", "bert-base-uncased-vocab"),
        peer=Peer("image-reward", "parity-image-reward"),
    ),
    "clip_score_aesthetic": Case(
        metrics=("clip_score", "aesthetic"), weights=("clip-vit-large-patch14", "laion-aesthetic-v2")
    ),
    "hps_v21": Case(
        metrics=("hps_v21",), weights=("hps-v2.1",), peer=Peer("hpsv2", "parity-hpsv2", reads_at_every_call=True)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One measurement, as a worker process is told it."""

    folder: str
    distinct_prompts: int
    images_per_prompt: int
    device: str
    small: bool

    @property
    def images(self) -> int:
        """How many pictures there are."""
        return self.distinct_prompts * self.images_per_prompt

    def pictures(self) -> list[Path]:
        """Return the pictures, in order: those of a prompt follow each other."""
        return [Path(self.folder) / "pictures" / f"{number}.png" for number in range(self.images)]

    def prompts(self) -> list[str]:
        """Return the distinct prompts, in order."""
        return [prompt(number) for number in range(self.distinct_prompts)]

    def by_prompt(self) -> Iterator[tuple[str, list[Path]]]:
        """Yield every prompt with its pictures."""
        pictures = iter(self.pictures())
        for text in self.prompts():
            yield text, list(itertools.islice(pictures, self.images_per_prompt))

    def weights(self, identity: str) -> Path:
        """Return where one file of weights lies."""
        return next((Path(self.folder) / "weights" / identity).iterdir())


def serve(ways: Mapping[str, Callable[[str, list[Path]], object]], work: Work) -> None:
    """Answer each line "<way> <number of a prompt>" with the seconds its pictures take, and the end with the peak of
    memory in GiB. What libraries print goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    prompts = list(work.by_prompt())
    for line in sys.stdin:
        way, number = line.split()
        begin = time.perf_counter()
        ways[way](*prompts[int(number)])
        print(json.dumps(time.perf_counter() - begin), file=answers, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    print(json.dumps(peak), file=answers, flush=True)


def prompt(number: int) -> str:
    """Return one prompt: 14 words, which is usual."""
    return f"a photograph of castle number {number} above a calm sea at dusk, highly detailed, wide"


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write `<n>.png` as a model would draw them: smooth, with some noise, so that PNG packs them as usual."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + generator.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png", compress_level=1)


@contextmanager
def architectures(small: bool) -> Iterator[None]:
    """Let published models be the shrunken ones of the parity tests, or leave them as they are."""
    with ExitStack() as patches:
        if small:
            from metrics.encoders import blip, published
            from tests.parity import clip_native
            from tests.parity.clip import sizes
            from tests.parity.image_reward import native

            for module, name, value in (
                (published, "CLIP_L14", sizes.CLIP),
                (published, "named", clip_native.shrunken),
                (blip, "VISION", native.SHRUNKEN_VISION),
                (blip, "TEXT", native.SHRUNKEN_TEXT),
            ):
                patches.enter_context(mock.patch.object(module, name, value))
        yield


def write_weights(folder: Path, identity: str) -> None:
    """Write FOLDER/<id>/<file> for published weights, with random values, unless it is there."""
    from metrics.weights import find_entry

    path = folder / identity / next(file.name for file in find_entry(identity).files if file.name in FILES)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parents[1] / f"{path.name}.tmp"  # a kill leaves no half file under the true name
    FILES[path.name](partial)
    partial.replace(path)


def random_state(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a state dict with which activations stay finite: tiles of noise, since a billion draws take long."""
    tile = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    state = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        values = tile.repeat(-(-count // len(tile)))[:count].reshape(shape) * 0.02
        is_norm = len(shape) == 1 and name.endswith("weight")
        state[name] = torch.tensor(4.6052, dtype=dtype) if name == "logit_scale" else (values + is_norm).to(dtype)
    return state


def _shapes(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}


def _hps(path: Path) -> None:
    from open_clip.model import CLIP

    from metrics.encoders import published

    config: Any = published.named("ViT-H-14")()
    torch.save({"state_dict": random_state(_shapes(lambda: CLIP(**config)), torch.float16)}, path)


def _clip_l14(path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    from metrics.encoders import published

    config = CLIPConfig.from_dict(dict(published.CLIP_L14))
    save_file(random_state(_shapes(lambda: CLIPModel(config))), path)


def _aesthetic(path: Path) -> None:
    from metrics.aesthetic import AestheticHead

    torch.save(random_state(_shapes(AestheticHead)), path)


def _image_reward(path: Path) -> None:
    from metrics.encoders import blip
    from tests.parity.image_reward import native

    state = random_state(native.official_layout(blip.VISION, blip.TEXT))
    torch.save(state | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}, path)


def _vocabulary(path: Path) -> None:
    from tests.parity.image_reward import sizes

    path.write_text("\n".join(sizes.VOCABULARY) + "\n", encoding="utf-8")


FILES: Mapping[str, Callable[[Path], None]] = {
    "HPS_v2.1_compressed.pt": _hps,
    "model.safetensors": _clip_l14,
    "sac+logos+ava1-l14-linearMSE.pth": _aesthetic,
    "ImageReward.pt": _image_reward,
    "vocab.txt": _vocabulary,
}
