import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import UserError
from metrics.images import to_tensor
from metrics.preprocessing import CLIP_MEAN, CLIP_STD, Resized, SquareFirst, Uint8

SIZES = [(32, 32), (64, 64), (100, 64), (48, 100), (33, 40), (20, 24), (131, 37), (64, 70), (39, 32)]
GREY_LEVEL = 1 / 255 / min(CLIP_STD)  # of a normalised pixel


@pytest.mark.parametrize("size", SIZES)
def test_official_path_equals_transformers_pil_processor(size: tuple[int, int], noise_picture) -> None:
    from transformers import CLIPImageProcessorPil

    image = noise_picture(*size, 0)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(image, return_tensors="pt")["pixel_values"]
    ours = Resized(size=(32, 32), crop_offset="floor").from_pil([image])
    assert (ours - expected).abs().max() < 1e-6


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("size", SIZES)
def test_official_path_equals_open_clip_transform(size: tuple[int, int], resize, noise_picture) -> None:
    from open_clip.transform import image_transform

    image = noise_picture(*size, 0)
    expected = image_transform(32, is_train=False, resize_mode=resize)(image)
    ours = Resized(size=(32, 32), resize=resize).from_pil([image])[0]
    assert (ours - expected).abs().max() < 1e-6


def test_both_paths_agree_where_nothing_is_resized(noise_picture) -> None:
    images = [noise_picture(32, 32, seed) for seed in range(3)]
    preprocessing = Resized(size=(32, 32))
    assert torch.equal(preprocessing.from_pil(images), preprocessing.from_tensor(to_tensor(images)))


@pytest.mark.parametrize("size", SIZES)
def test_the_tensor_path_shows_the_same_picture_up_to_rounding(size: tuple[int, int], noise_picture) -> None:
    # PIL rounds to grey levels after each of its two passes and clips overshoots; the tensor path does neither.
    image = noise_picture(*size, 1)
    preprocessing = Resized(size=(32, 32))
    difference = preprocessing.from_pil([image]) - preprocessing.from_tensor(to_tensor([image]))
    assert difference.abs().median() < GREY_LEVEL
    assert difference.abs().max() < 8 * GREY_LEVEL


def test_gradient_of_the_tensor_path_matches_finite_differences() -> None:
    preprocessing = Resized(size=(4, 4))
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 7, 6, requires_grad=True)
    weights = torch.randn(1, 3, 4, 4)
    (gradient,) = torch.autograd.grad((preprocessing.from_tensor(pixels) * weights).sum(), pixels)
    direction = torch.randn_like(pixels)
    # The map is linear, so one large step is exact and float32 suffices.
    change = preprocessing.from_tensor(pixels + direction) - preprocessing.from_tensor(pixels)
    assert torch.allclose((change * weights).sum(), (gradient * direction).sum(), rtol=1e-4)


def test_equal_preprocessings_are_one_key_and_different_ones_are_two() -> None:
    assert len({Resized(size=(32, 32)), Resized(size=(32, 32)), Resized(size=(32, 32), resize="squash")}) == 2


def test_8_bit_pictures_pass_unchanged_and_without_gradient() -> None:
    levels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (array,) = Uint8().from_pil([Image.fromarray(levels)])
    assert np.array_equal(array, levels)
    with pytest.raises(UserError, match="no gradient"):
        Uint8().from_tensor(torch.zeros(1, 3, 4, 4))


def test_default_statistics_are_clips() -> None:
    white = Resized(size=(1, 1)).from_pil([Image.new("RGB", (1, 1), "white")])
    expected = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(white.flatten(), expected)


def test_a_crop_that_is_not_square_is_refused() -> None:
    with pytest.raises(UserError, match="32x48 pixels needs the preprocessing 'squash'"):
        Resized(size=(32, 48))
    assert Resized(size=(32, 48), resize="squash").from_pil([Image.new("RGB", (7, 9))]).shape == (1, 3, 32, 48)


@pytest.mark.parametrize("size", SIZES)
def test_padded_floats_equal_torchvisions_steps(size: tuple[int, int], noise_picture) -> None:
    from torchvision.transforms import functional as vision

    image = noise_picture(*size, 0)
    scale = 32 / max(size)
    pixels = to_tensor([image])[0]
    if scale != 1:
        height, width = (round(side * scale) for side in size)
        pixels = vision.resize(pixels, [height, width], vision.InterpolationMode.BICUBIC, antialias=True)
        rows, columns = 32 - height, 32 - width
        border = [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]
        pixels = vision.pad(pixels, border)
    expected = vision.normalize(pixels, CLIP_MEAN, CLIP_STD)
    padded = Resized(size=(32, 32), resize="longest", official="tensor")
    assert torch.allclose(padded.from_pil([image])[0], expected, atol=1e-6)
    assert torch.equal(padded.from_pil([image]), padded.from_tensor(to_tensor([image])))


def test_the_border_of_a_padded_picture_is_black_and_longer_below() -> None:
    white = torch.ones(1, 3, 7, 32)
    plain = Resized(size=(32, 32), resize="longest", official="tensor", mean=(0.0,) * 3, std=(1.0,) * 3)
    rows = plain.from_tensor(white)[0, 0].mean(dim=1)
    assert rows.tolist() == [0.0] * 12 + [1.0] * 7 + [0.0] * 13


def test_square_pictures_are_padded_as_they_are_cropped(noise_picture) -> None:
    pixels = to_tensor([noise_picture(100, 100, 3)])
    padded = Resized(size=(32, 32), resize="longest", official="tensor")
    assert torch.equal(padded.from_tensor(pixels), Resized(size=(32, 32)).from_tensor(pixels))


def test_squash_without_antialias_is_plain_interpolation(noise_picture) -> None:
    pixels = to_tensor([noise_picture(100, 64, 3)])
    plain = Resized(
        size=(32, 32), resize="squash", antialias=False, official="tensor", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    assert torch.equal(plain.from_tensor(pixels), torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic"))


def test_what_pil_cannot_do_must_be_declared() -> None:
    with pytest.raises(UserError, match="official='tensor'"):
        Resized(size=(32, 32), resize="longest")
    with pytest.raises(UserError, match="official='tensor'"):
        Resized(size=(32, 32), antialias=False)


def test_the_middle_square_is_taken_before_lanczos(noise_picture) -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    square = SquareFirst(side=64, then=Resized(size=(32, 32)))
    assert torch.equal(square.from_pil([wide]), square.from_pil([Image.new("RGB", (30, 30), "blue")]))
    with pytest.raises(UserError, match="no gradient"):
        square.from_tensor(torch.zeros(1, 3, 8, 8))


def test_floats_in_double_precision_stay_double() -> None:
    assert Resized(size=(8, 8)).from_tensor(torch.rand(1, 3, 20, 20, dtype=torch.float64)).dtype == torch.float64
