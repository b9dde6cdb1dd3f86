"""The recorded official runs that `python -m metrics.parity` compares with, by metric."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from metrics.encoders import blip, published, qwen2_vl
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import clip_native, common
from tests.parity.clip import sizes as clip_sizes
from tests.parity.hpsv3 import native as hpsv3
from tests.parity.hpsv3 import sizes as hps_v3_sizes
from tests.parity.image_reward import native as image_reward
from tests.parity.image_reward import sizes as image_reward_sizes
from tests.parity.image_reward.native import Stage

Run = tuple[str, str, list[Stage]]  # the official code, ours, and how far they are apart
SCORES = {  # of the CLIP family: the recorded run, its stage, what it is divided by, the tolerance
    "clip_score": ("clip", "cosine", 1.0, 1e-6),
    "clip_score.rtdmd": ("clip", "logit_bilinear", 100.0, 1e-6),
    "clip_score.unirl": ("clip", "logit_bilinear", 30.0, 1e-6 * 100 / 30),
    "clip_score.imagereward": ("clip", "openai_cosine", 1.0, 1e-6),
    "clip_score.hessel": ("clip", "hessel", 1.0, 2.5e-6),
    "clip_score.dmd2": ("open_clip", "dmd2", 1.0, 1e-6),
    "dfn_clip": ("open_clip", "dfn", 1.0, 1e-6),
    "aesthetic": ("clip", "aesthetic", 1.0, 1e-5),
    "pick_score": ("pick", "logit", 1.0, 1e-4),
    "pick_score.rtdmd": ("pick", "logit_bilinear", 26.0, 1e-4 / 26),
    "hps_v21": ("hps_v21", "score", 1.0, 1e-6),
}
ORACLES = {"clip": "transformers", "pick": "transformers", "open_clip": "open_clip_torch", "hps_v21": "hpsv2"}
OPENAI = ("clip_score.imagereward", "clip_score.hessel")  # recorded beside transformers' run, by OpenAI's package


@contextmanager
def seeded(write: Callable[[Path], Any], **shrunken: Any) -> Iterator[None]:
    """Let published models be the shrunken ones whose weights `write` makes; shrunken: "module_CONSTANT" = value."""
    modules = {"published": published, "blip": blip, "qwen": qwen2_vl}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {FOLDER: folder, SYNTHETIC: "1"}):
        write(Path(folder))
        patches = [
            mock.patch.object(modules[module], constant, value)
            for module, constant, value in ((*name.split("_", 1), value) for name, value in shrunken.items())
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def clip_family(identity: str) -> Run:
    """Return the scores of one metric of the CLIP family; of HPS, its stages too."""
    name, stage, divisor, tolerance = SCORES[identity]
    stages, about = common.load(clip_native.GOLDEN / f"{name}.npz")
    with seeded(
        clip_native.write_weights,
        published_CLIP_L14=clip_sizes.CLIP,
        published_CLIP_B32=clip_sizes.CLIP,
        published_PICK=clip_sizes.PICK,
        published_named=clip_native.shrunken,
    ):
        found = clip_native.scores(identity)
    end = Stage("score, end to end", float(np.abs(found - stages[stage] / divisor).max()), tolerance)
    oracle = "openai-clip" if identity in OPENAI else ORACLES[name]
    return official(about, oracle), "transformers 5, open_clip", [end]


def run_hps_v2() -> Run:
    """Return the stages of HPS v2.0."""
    from metrics.encoders.open_clip import OpenClipFile
    from metrics.weights import manifest

    stages, about = common.load(clip_native.GOLDEN / "hps.npz")
    with seeded(clip_native.write_weights, published_named=clip_native.shrunken):
        model = OpenClipFile(manifest("hps-v2"), "HPS_v2_compressed.pt", torch.device("cpu"), lambda: clip_sizes.HPS)
        found = clip_native.compare(stages, model)
    return official(about, "hpsv2"), "open_clip", [Stage(name, *values) for name, values in found.items()]


def run_image_reward() -> Run:
    """Return the stages of ImageReward."""
    stages, about = common.load(image_reward.GOLDEN)
    layout = image_reward.official_layout(image_reward.SHRUNKEN_VISION, image_reward.SHRUNKEN_TEXT)
    with seeded(
        lambda folder: image_reward.write_weights(folder, layout, image_reward_sizes.VOCABULARY),
        blip_VISION=image_reward.SHRUNKEN_VISION,
        blip_TEXT=image_reward.SHRUNKEN_TEXT,
    ):
        found = list(image_reward.compare(stages, about))
    return official(about, "image-reward", "transformers"), "transformers 5, BLIP", found


def run_hps_v3() -> Run:
    """Return the stages of HPSv3."""
    stages, about = common.load(hpsv3.GOLDEN)
    with seeded(hpsv3.write_weights, qwen_TEXT=hpsv3.SHRUNKEN_TEXT, qwen_VISION=hps_v3_sizes.HPS_V3_VISION):
        found = list(hpsv3.compare(stages, about))
    return official(about, "hpsv3", "transformers"), "transformers 5, Qwen2-VL", found


def official(about: Mapping[str, Any], *packages: str) -> str:
    """Return the packages of an official run with their versions."""
    return ", ".join(f"{name} {about['versions'][name]}" for name in packages)


def of_clip_family(identity: str) -> Callable[[], Run]:
    """Return what compares one metric."""
    return lambda: clip_family(identity)


RUNS: dict[str, Callable[[], Run]] = {
    **{identity: of_clip_family(identity) for identity in SCORES},
    "hps_v2": run_hps_v2,
    "hps_v3": run_hps_v3,
    "image_reward": run_image_reward,
}
