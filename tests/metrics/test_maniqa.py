"""MANIQA against a recorded run of the authors' network on seeded weights, and the geometry of its crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import UserError
from metrics.encoders import maniqa as network
from metrics.encoders.maniqa import Crops, ManiqaFile, TransposedAttention, weighted_mean
from metrics.loaded import LoadedMetric
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.maniqa import sizes

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "maniqa" / "network.npz"
SHRUNKEN = network.Sizes(patch=sizes.PATCH, width=sizes.WIDTH, heads=sizes.HEADS, mlp=sizes.MLP)
FILES = {"maniqa-pipal": "MANIQA_PIPAL-ae6d356b.pth", "maniqa-koniq10k": "ckpt_koniq10k.pt"}


def published_layout() -> dict[str, torch.Tensor]:
    """Return seeded weights under the keys of a published file, those among them that nobody reads."""
    from timm.models.vision_transformer import VisionTransformer

    whole = VisionTransformer(patch_size=sizes.PATCH, embed_dim=sizes.WIDTH, num_heads=sizes.HEADS)
    shapes = {f"vit.{name}": tuple(value.shape) for name, value in whole.state_dict().items()}
    shapes |= {name: tuple(value.shape) for name, value in network.Maniqa(SHRUNKEN).state_dict().items()}
    weights = common.seeded_weights(shapes)
    assert common.checksum(weights) == str(common.load(GOLDEN)[0]["checksum"])
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    return tensors | {f"swintransformer1.layers.0.blocks.1{name}": torch.zeros(2) for name in sizes.BUFFERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("maniqa")
    for identity, file in FILES.items():
        (made / identity).mkdir()
        torch.save(published_layout(), made / identity / file)
    return made


@pytest.fixture(autouse=True)
def shrunken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(SYNTHETIC, "1")
    monkeypatch.setattr(network, "SIZES", SHRUNKEN)


def file_of(identity: str) -> ManiqaFile:
    return ManiqaFile(network.manifest(identity), FILES[identity], torch.device("cpu"))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (1 + height // 16, 1 + width // 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width])


@pytest.mark.parametrize("number", [0, 1])
def test_scores_are_those_of_the_authors_network(number: int) -> None:
    official_B = common.load(GOLDEN)[0]["scores"][number]
    loaded = file_of("maniqa-pipal").network.double()
    ours_B = loaded(torch.from_numpy(sizes.crops()).double(), sizes.SCALES[number])
    assert official_B.std() > 1e-2 * official_B.mean()  # or else any network would pass
    np.testing.assert_allclose(ours_B, official_B, rtol=1e-9)


def test_another_models_file_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "maniqa-pipal").mkdir()
    tensors = published_layout()
    tensors.pop("conv2.bias")
    torch.save(tensors, tmp_path / "maniqa-pipal" / FILES["maniqa-pipal"])
    with pytest.raises(UserError, match=r"not the weights of MANIQA \(1 keys missing, first conv2\.bias"):
        _ = file_of("maniqa-pipal").network


def test_equal_weights_give_the_mean_of_the_tokens() -> None:
    score_BN = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    torch.testing.assert_close(weighted_mean(score_BN, torch.full((2, 3), 0.3)), torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weighted_mean(score_BN, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 3.0]])),
                               torch.tensor([1.0, 2.25]))  # fmt: skip


def test_transposed_attention_keeps_the_authors_order_of_axes() -> None:
    block = TransposedAttention(2)
    with torch.no_grad():
        for layer in (block.c_q, block.c_k):
            layer.weight.zero_()
            layer.bias.zero_()
        block.c_v.weight.copy_(torch.eye(2))
        block.c_v.bias.zero_()
    x_BCN = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
    # Without similarities each channel gets the mean channel (2, 20); transposed and read again: 2 2 | 2 20 | 20 20.
    expected = x_BCN + torch.tensor([[[2.0, 2.0], [2.0, 20.0], [20.0, 20.0]]])
    torch.testing.assert_close(block(x_BCN), expected)


def test_the_grid_reaches_every_edge_and_is_fixed() -> None:
    corners = Crops(rule="grid").corners(1024, 512)
    assert len(corners) == len(set(corners)) == 20
    assert sorted({top for top, _ in corners}) == [0, 267, 533, 800]
    assert sorted({left for _, left in corners}) == [0, 72, 144, 216, 288]


def test_all_crops_of_a_224_picture_are_the_picture() -> None:
    image = picture(224, 224)
    (crops,) = Crops(rule="grid").from_pil([image])
    pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert crops.shape == (20, 3, 224, 224) and all(torch.equal(crop, pixels_CHW) for crop in crops)
    scaled = file_of("maniqa-koniq10k")
    single = scaled.network(crops[:1].float() / 127.5 - 1, 0.8)
    torch.testing.assert_close(scaled.score([crops], scale=0.8), single)


def test_crops_are_taken_top_first_at_native_resolution() -> None:
    image = picture(300, 500)
    (crops,) = Crops(rule="grid").from_pil([image])
    top, left = Crops(rule="grid").corners(300, 500)[7]
    assert (top, left) == (25, 138)
    expected = np.array(image)[top : top + 224, left : left + 224].transpose(2, 0, 1)
    np.testing.assert_array_equal(crops[7].numpy(), expected)


def test_small_pictures_are_enlarged_by_the_grid_alone() -> None:
    (crops,) = Crops(rule="grid").from_pil([picture(64, 96)])
    assert crops.shape == (20, 3, 224, 224)
    assert Crops(rule="dp_dmd").corners(224, 224) == [(0, 0)] * 10
    with pytest.raises(UserError, match="a picture of 96x64 pixels; these crops need 224 each way: take `maniqa`"):
        Crops(rule="dp_dmd").from_pil([picture(64, 96)])
    with pytest.raises(UserError, match="these crops need 225 each way"):
        Crops(rule="official").from_pil([picture(224, 224)])


def test_random_crops_are_numpys_with_seed_20_top_before_left() -> None:
    np.random.seed(20)
    drawn = [(np.random.randint(0, 1024 - 224 + 1), np.random.randint(0, 600 - 224 + 1)) for _ in range(10)]
    assert Crops(rule="dp_dmd").corners(1024, 600) == drawn
    np.random.seed(20)
    drawn = [(np.random.randint(0, 1024 - 224), np.random.randint(0, 600 - 224)) for _ in range(20)]
    assert Crops(rule="official").corners(1024, 600) == drawn


def test_the_variants_differ_and_no_other_picture_matters() -> None:
    images = [picture(230, 260, seed) for seed in range(2)]
    values = {}
    for identity in ("maniqa", "maniqa.koniq", "maniqa.official", "maniqa.dp_dmd"):
        metric = LoadedMetric(identity)
        both = metric(images, ["a", "b"])
        assert torch.equal(both[1:], metric(images[1:], ["b"]))
        values[identity] = both[0].item()
    assert len(set(values.values())) == 4  # one set of weights here: scale and crops make the difference
