import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import UserError
from metrics.images import as_pil, as_pils, read_image, to_pil, to_tensor, to_uint8


@pytest.fixture
def png(tmp_path: Path, noise_picture) -> Path:
    path = tmp_path / "picture.png"
    noise_picture(48, 40, 0).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size and whose pixels are not there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1_000) + b"IDAT"


def test_a_picture_is_read_as_it_was_written(png: Path, noise_picture) -> None:
    image = read_image(png)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(noise_picture(48, 40, 0)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_8_bit_modes_become_rgb(png: Path, mode: str) -> None:
    read_image(png).convert(mode).save(png)
    assert read_image(png).mode == "RGB"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_picture_is_refused_by_name(png: Path, keep: float) -> None:
    content = png.read_bytes()
    png.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"picture\.png: truncated or damaged"):
        read_image(png)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"<svg onload='alert(1)'/>", "not a picture"),
        (png_header(30_000, 30_000), "pixels"),
        (png_header(12_000, 12_000), "largest picture read"),
        (png_header(1, 30_000), "factor of at most"),
        (b"\x89PNG\r\n\x1a\n", "truncated|not a picture"),
    ],
    ids=["empty", "text", "bomb", "too large", "a line", "signature only"],
)
def test_what_is_no_usable_picture_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.png: .*({reason})"):
        read_image(path)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM"])
def test_other_formats_are_not_decoded_whatever_their_name(tmp_path: Path, noise_picture, kind: str) -> None:
    noise_picture(16, 16, 0).save(tmp_path / "picture.png", format=kind)
    with pytest.raises(UserError, match=r"picture\.png: not a picture in any of PNG"):
        read_image(tmp_path / "picture.png")


def test_a_missing_picture_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match=tmp_path.name):
        read_image(tmp_path)


def test_16_bit_and_cmyk_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    for name in ("deep.png", "print.jpg"):
        with pytest.raises(UserError, match="not 8-bit RGB"):
            read_image(tmp_path / name)


def test_every_grey_level_survives_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    image = Image.fromarray(levels)
    tensor = to_tensor([image])
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (0, 1)
    assert np.array_equal(np.asarray(to_pil(tensor)[0]), levels)


def test_floats_are_clamped_and_rounded_to_the_nearest_level() -> None:
    values = torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.5]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(values)[0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_arrays_tensors_and_paths_become_the_same_picture(png: Path) -> None:
    image = read_image(png)
    array = np.asarray(image)
    forms = [image, png, str(png), array, array / 255, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for picture in as_pils(forms):
        assert np.array_equal(np.asarray(picture), array)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 4)), torch.zeros(1, 4, 4), 7])
def test_an_object_that_is_no_picture_is_refused(bad: object) -> None:
    with pytest.raises(UserError, match="image 3"):
        as_pil(bad, "image 3")


def test_a_nan_pixel_is_refused() -> None:
    images = torch.zeros(3, 3, 2, 2)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="image 1: a pixel is NaN"):
        to_uint8(images)
