"""What official and native side of every parity run share: seeded weights, pairs, the file.

Imports nothing but NumPy and Pillow, so that an environment of old packages makes the same bytes as ours.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PAIRS = 64
SHOWN = 6  # pairs whose pixels and gradients are recorded, too: one of each shape
SIDE = 24  # of the shrunken CLIPs' input
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of every scorer's pixels

SHAPES = (  # H, W
    (SIDE, SIDE),
    (64, 96),
    (90, 30),
    (37, 61),
    (11, 9),
    (1024, 1024),
    (48, 48),
    (31, 29),
    (200, 100),
    (25, 24),
)
MODES = ("RGB", "RGB", "L", "P", "RGBA", "LA")
PROMPTS = (
    "a red circle",
    "",
    "two “curly” quotes and it’s fine",
    "salt &amp; pepper &lt;b&gt;",
    "a café in São Paulo",
    "cafe\u0301 and ﬁne ligatures ﬄ",
    "🦊🌊 a fox 👩‍👩‍👧 by the sea",
    "A   Photo\tof\n\nTWO Dogs!!!",
    "北京的故宫, in winter",
    "a very long prompt about a castle on a hill, " * 12,
    "x" * 400,
    "3 cats, 12 dogs & 1,000 birds: 50% off",
    " ".join(["word"] * 75),
    " ".join(["word"] * 76),
    "ａｎ ｉｍａｇｅ of №5",
    "don't we've I'll they're",
)


@dataclass(frozen=True)
class Stage:
    """How far one stage of ours is from the official one; `tolerance` is what the tests allow."""

    name: str
    difference: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether it is near enough; never for NaN."""
        return self.difference <= self.tolerance


def pair(index: int) -> tuple[Image.Image, str]:
    """Return one picture, in its own mode, and its prompt: whole-number arithmetic only."""
    height, width = SHAPES[index % len(SHAPES)]
    mode = MODES[index // len(SHAPES) % len(MODES)]
    generator = np.random.default_rng(index)
    coarse = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    blocks = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    ramp = (np.arange(height)[:, None] * 5 + np.arange(width)[None] * 3)[..., None] % 64
    noise = generator.integers(0, 64 if index % 2 else 8, (height, width, 3))
    picture = Image.fromarray(((blocks // 2).astype(int) + ramp + noise).astype(np.uint8))
    if mode == "P":
        picture = picture.quantize(32, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    elif mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(noise[..., 0].astype(np.uint8)))
    else:
        picture = picture.convert(mode)
    return picture, PROMPTS[index % len(PROMPTS)]


def pairs(count: int = PAIRS) -> Iterator[tuple[Image.Image, str]]:
    """Return the pairs as both sides see them: alpha dropped, RGB."""
    for index in range(count):
        picture, prompt = pair(index)
        yield picture.convert("RGB"), prompt


def raised(score: Callable[[Image.Image], object], side: int) -> dict[str, str]:
    """Return on which modes of a picture an official scorer fails, and what it says."""
    found = {}
    for mode in ("1", "L", "LA", "P", "RGBA"):
        try:
            score(Image.new(mode, (side, side)))
        except (RuntimeError, ValueError, OSError) as error:
            found[mode] = str(error).partition("\n")[0]
    return found


def seeded_tensor(name: str, shape: tuple[int, ...], model: str = "") -> np.ndarray:
    """Return float32 values of one weight, which depend on name, shape and model alone.

    Biases are not 0 and norms not 1, as they are after the libraries' own initialisation: that hides mistakes.
    """
    seed = int.from_bytes(hashlib.sha256((model + name).encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    values = generator.standard_normal(shape, dtype=np.float32)
    if name == "logit_scale":
        return np.asarray(3 + 0.1 * values, np.float32)
    norm = any(part in name for part in ("ln_", "norm", "layrnorm"))
    if name.endswith("bias") or len(shape) == 1:
        return (1 if norm and name.endswith("weight") else 0) + np.float32(0.2) * values
    if "embedding" in name and "patch" not in name:
        return np.float32(0.5) * values
    return values * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], model: str = "") -> dict[str, np.ndarray]:
    """Return a whole state dict by key; models of one layout and other names get other values."""
    return {name: seeded_tensor(name, tuple(shapes[name]), model) for name in sorted(shapes)}


def halved(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict in half precision, as HPS is published."""
    return {name: values.astype(np.float16) for name, values in weights.items()}


def checksum(weights: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 over names, shapes and values of a state dict."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(f"{name} {weights[name].shape}\n".encode())
        total.update(np.ascontiguousarray(weights[name], np.float32))
    return total.hexdigest()


def save(path: Path, stages: Mapping[str, np.ndarray], about: Mapping[str, object]) -> None:
    """Write one official run: the stages beside what made them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: np.asarray(values) for name, values in stages.items()})
    path.with_suffix(".json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return the stages of an official run and what made them."""
    with np.load(path) as stages:
        return dict(stages), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def rounding(stages: Mapping[str, np.ndarray], name: str) -> float:
    """Return how far float32 scores may be from the official ones in float64 (<name>_64), by their rounding alone.

    Twice what the official float32 ones are: another processor multiplies in another order and rounds otherwise."""
    return 2 * float(np.abs(stages[name] - stages[f"{name}_64"]).max())


def grey_levels(pixels: np.ndarray, *, exact: bool = False) -> np.ndarray:
    """Return normalised pixels [3, H, W], or patches [n, 3, pixels], as the 8-bit values they were made of.

    exact: they must have been made of such."""
    axes = (1, 2) if pixels.shape[0] == 3 and pixels.ndim == 3 else (1,)
    mean, std = (np.expand_dims(np.asarray(values), axes) for values in (MEAN, STD))
    levels = (pixels.astype(np.float64) * std + mean) * 255
    assert not exact or np.abs(levels - levels.round()).max() < 1e-3
    return levels.round().astype(np.uint8)


def digest(values: np.ndarray) -> str:
    """Return the sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
