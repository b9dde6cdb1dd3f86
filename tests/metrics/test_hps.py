"""HPS: its two versions, and pictures on which the package fails. Against the package: test_clip_parity."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics.loaded import LoadedMetric
from tests.parity import clip_native


def test_the_versions_do_not_share_weights() -> None:
    (v20, about), (v21, about_v21) = clip_native.golden("hps_v2"), clip_native.golden("hps_v21")
    assert about_v21["weights"] != about["weights"]
    assert np.abs(v21["score"] - v20["score"]).max() > 1e-2


@pytest.mark.parametrize("identity", ["hps_v2", "hps_v21"])
def test_what_the_package_fails_on_is_scored(identity: str, clip_family: Path) -> None:
    pictures = [Image.new("RGBA", (24, 24), "red"), Image.new("RGB", (24, 12), "red")]
    assert LoadedMetric(identity)(pictures, ["a", "a"]).isfinite().all()
