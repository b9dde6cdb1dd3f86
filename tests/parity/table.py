"""The recorded official runs that `python -m metrics.parity` compares with, by metric."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from metrics.encoders import blip, qwen2_vl
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import clip_native, common
from tests.parity.common import Stage
from tests.parity.hpsv3 import native as hpsv3
from tests.parity.hpsv3 import sizes as hps_v3_sizes
from tests.parity.image_reward import native as image_reward
from tests.parity.image_reward import sizes as image_reward_sizes

CLIP_FAMILY = ("clip_score.unirl", *clip_native.OFFICIAL)
Run = tuple[str, str, list[Stage]]  # the official code, ours, and how far they are apart


@contextmanager
def seeded(write: Callable[[Path], Any], *shrunken: tuple[Any, str, Any]) -> Iterator[None]:
    """Let published models be those whose weights `write` makes; shrunken: modules, their constants, other values."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, {FOLDER: folder, SYNTHETIC: "1"}))
        write(Path(folder))
        for module, constant, value in shrunken:
            stack.enter_context(mock.patch.object(module, constant, value))
        yield


def clip_family(identity: str) -> Run:
    """Return the stages of one metric of the CLIP family."""
    stages, about = clip_native.golden(identity)
    with seeded(clip_native.write_weights), clip_native.networks():
        found = list(clip_native.compare(identity, stages, about))
    packages = clip_native.OFFICIAL[identity.replace("unirl", "rtdmd")]
    return official(about, *packages), "transformers 5, open_clip", found


def run_image_reward() -> Run:
    """Return the stages of ImageReward."""
    stages, about = common.load(image_reward.GOLDEN)
    layout = image_reward.official_layout(image_reward.SHRUNKEN_VISION, image_reward.SHRUNKEN_TEXT)
    with seeded(
        lambda folder: image_reward.write_weights(folder, layout, image_reward_sizes.VOCABULARY),
        (blip, "VISION", image_reward.SHRUNKEN_VISION),
        (blip, "TEXT", image_reward.SHRUNKEN_TEXT),
    ):
        found = list(image_reward.compare(stages, about))
    return official(about, "image-reward", "transformers"), "transformers 5, BLIP", found


def run_hps_v3() -> Run:
    """Return the stages of HPSv3."""
    stages, about = common.load(hpsv3.GOLDEN)
    with seeded(
        hpsv3.write_weights,
        (qwen2_vl, "TEXT", hpsv3.SHRUNKEN_TEXT),
        (qwen2_vl, "VISION", hps_v3_sizes.HPS_V3_VISION),
    ):
        found = list(hpsv3.compare(stages, about))
    return official(about, "hpsv3", "transformers"), "transformers 5, Qwen2-VL", found


def official(about: Mapping[str, Any], *packages: str) -> str:
    """Return the packages of an official run with their versions."""
    return ", ".join(f"{name} {about['versions'][name]}" for name in packages)


def of_clip_family(identity: str) -> Callable[[], Run]:
    """Return what compares one metric."""
    return lambda: clip_family(identity)


RUNS: dict[str, Callable[[], Run]] = {
    **{identity: of_clip_family(identity) for identity in CLIP_FAMILY},
    "hps_v3": run_hps_v3,
    "image_reward": run_image_reward,
}
