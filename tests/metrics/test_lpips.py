"""LPIPS against a recorded run of the package's own pair loop, and what the linear form must keep."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.base import Prompt, UserError
from metrics.encoders.lpips import TRUNKS, LpipsFile, LpipsNetwork, NativeSize
from metrics.lpips import lpips_distance, mean_pairwise_lpips
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.distribution import sizes

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "distribution" / "lpips.npz"
Taps = list[torch.Tensor]


def random_taps(seed: int, dtype: torch.dtype = torch.float64) -> Taps:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 3, 6, 5), (1, 4, 3, 2))
    return [torch.randn(shape, generator=generator, dtype=dtype).relu() for shape in shapes]


HEADS = [torch.tensor([0.5, 1, 2], dtype=torch.float64), torch.tensor([0.1, 3, 0, 1], dtype=torch.float64)]


def test_the_linear_form_is_the_mean_over_pairs() -> None:
    pictures = [random_taps(seed) for seed in range(5)]
    pairs = [lpips_distance(a, b, HEADS).item() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert mean_pairwise_lpips(pictures, HEADS) == pytest.approx(np.mean(pairs), rel=1e-10)
    assert mean_pairwise_lpips(pictures[::-1], HEADS) == pytest.approx(np.mean(pairs), rel=1e-10)


def test_distance_to_itself_is_zero_and_pairs_have_no_order() -> None:
    a, b = random_taps(0), random_taps(1)
    assert lpips_distance(a, a, HEADS).item() == 0
    assert lpips_distance(a, b, HEADS).item() == lpips_distance(b, a, HEADS).item() > 0
    assert mean_pairwise_lpips([a, a, a], HEADS) == 0


def test_nearly_equal_pictures_keep_their_digits() -> None:
    a = random_taps(0)
    b = [tap * (1 + 1e-7 * torch.randn(tap.shape, generator=torch.Generator().manual_seed(1))) for tap in a]
    exact = lpips_distance(a, b, HEADS).item()
    assert 0 < exact < 1e-12
    assert mean_pairwise_lpips([a, b], HEADS) == pytest.approx(exact, rel=1e-6)


def test_gradients_are_finite_where_all_channels_are_zero() -> None:
    a = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    lpips_distance([a], [random_taps(0)[0][..., :2, :2]], HEADS[:1]).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_too_few_pictures_and_unequal_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="prompt 'x': diversity needs at least two"):
        mean_pairwise_lpips([random_taps(0)], HEADS, "prompt 'x': ")
    with pytest.raises(UserError, match="differ in size"):
        mean_pairwise_lpips([random_taps(0), random_taps(1)[::-1]], HEADS)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_values_are_those_of_the_package(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, _ = common.load(GOLDEN)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(SYNTHETIC, "1")
    with torch.device("meta"):
        network = LpipsNetwork(net)  # type: ignore[arg-type]
    shapes = {name: tuple(v.shape) for name, v in network.state_dict().items() if name.startswith("features.")}
    weights = sizes.seeded_weights(shapes)
    assert common.checksum(weights) == str(recorded[f"{net}_checksum"])
    folder = tmp_path / f"lpips-{net}"
    folder.mkdir()
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, folder / TRUNKS[net])
    heads = {
        f"lin{i}.model.1.weight": torch.from_numpy(recorded[f"{net}_head{i}"])[None, :, None, None] for i in range(5)
    }
    torch.save(heads, folder / f"{net}.pth")
    lpips = LpipsFile(net, torch.device("cpu"))  # type: ignore[arg-type]
    pictures = NativeSize().from_pil([sizes.picture(6 * index) for index in range(sizes.SEEDS)])
    with torch.no_grad():
        found = lpips.diversity(pictures, [Prompt(text="a")] * sizes.SEEDS)
        taps = [lpips.network(picture) for picture in pictures]
        pairs = [lpips_distance(a, b, lpips.network.heads).item() for i, a in enumerate(taps) for b in taps[:i]]
    assert np.abs(np.asarray(pairs) - recorded[f"{net}_pairs"]).max() < 1e-6
    assert found.tolist() == pytest.approx([recorded[f"{net}_pairs"].mean()] * sizes.SEEDS, abs=1e-6)
