"""FID's Inception against a recorded run of torch-fidelity's, and both resizings against the packages' own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import Prompt, UserError
from metrics.encoders.inception import FILE, CleanResize, FidInception, Tf1Resize, _batch_counters
from metrics.features import FeatureRunner
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.distribution import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "distribution"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return common.load(GOLDEN / "inception.npz")[0]


@pytest.fixture(scope="module")
def seeded_weights(recorded: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published file's seeded double."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in FidInception().state_dict().items()}
    weights = sizes.seeded_weights(shapes)
    assert common.checksum(weights) == str(recorded["checksum"])
    (folder / "inception-2015-12-05").mkdir()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(tensors, folder / "inception-2015-12-05" / FILE)
    return folder


@pytest.fixture
def seeded(seeded_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(FOLDER, str(seeded_weights))
    monkeypatch.setenv(SYNTHETIC, "1")
    yield seeded_weights


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_pool_logits_and_spatial_are_torch_fidelitys(seeded: Path, recorded: dict[str, np.ndarray]) -> None:
    keys = [f"inception/tf1:{output}" for output in ("pool", "logits", "spatial")]
    pictures = [sizes.picture(index) for index in range(4)]
    found = FeatureRunner(keys).run(pictures, [Prompt(text="")] * 4)
    assert recorded["pool"].std(axis=0).mean() > 0.01 * recorded["pool"].mean()  # or else the test is empty
    alone = [FeatureRunner(keys).run([picture], [Prompt(text="")]) for picture in pictures[1:3]]
    for key in keys:
        assert relative(found[key].numpy(), recorded[key.partition(":")[2]][:4]) < 1e-5
        assert relative(torch.cat([each[key] for each in alone]).numpy(), found[key][1:3].numpy()) < 1e-5


def test_both_resizings_are_the_packages_own(recorded: dict[str, np.ndarray]) -> None:
    for index in range(len(sizes.SIZES)):
        picture = [sizes.picture(index)]
        clean, tf1 = (
            resize.from_pil(picture)[0, :, ::23, ::23] * 128 + 128 for resize in (CleanResize(), Tf1Resize())
        )
        assert np.abs(clean.numpy() - recorded["clean"][index]).max() < 1e-4
        assert np.abs(tf1.numpy() - recorded["tf1"][index]).max() < 1e-4


@pytest.mark.parametrize("resize", [CleanResize(), Tf1Resize()])
@pytest.mark.parametrize("size", [(3, 5), (64, 48), (513, 257)])
def test_a_constant_picture_stays_constant(resize: CleanResize | Tf1Resize, size: tuple[int, int]) -> None:
    pixels = resize.from_pil([Image.new("RGB", size, (10, 128, 250))])
    expected = (torch.tensor([10.0, 128, 250]) - 128) / 128
    assert torch.allclose(pixels, expected[:, None, None].expand(1, 3, 299, 299), atol=1e-5)


def test_the_two_roads_differ() -> None:
    picture = [sizes.picture(4)]
    assert (CleanResize().from_pil(picture) - Tf1Resize().from_pil(picture)).abs().max() > 0.05


def test_training_counters_may_be_missing() -> None:
    assert _batch_counters({"a.bn.running_mean": torch.zeros(1), "a.bn.weight": torch.zeros(1)}) == [
        "a.bn.num_batches_tracked"
    ]


def test_there_is_no_gradient_road() -> None:
    with pytest.raises(UserError, match="no gradient"):
        Tf1Resize().from_tensor(torch.zeros(1, 3, 8, 8))
