from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from benchmarks.groups import group_values
from benchmarks.pictures import is_picture_folder, open_pictures
from metrics.base import Prompt, Summary, UserError
from metrics.images import read_image
from metrics.questions import QuestionSummary, group_questions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of four pictures, each picture of one colour."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "dpg"
    made.mkdir()
    for number, name in enumerate(("0", "partiprompts97")):
        pixels = np.zeros((8, 8, 3), np.uint8)
        for tile in range(4):
            pixels[tile // 2 * 4 : tile // 2 * 4 + 4, tile % 2 * 4 : tile % 2 * 4 + 4] = 50 * tile + number
        Image.fromarray(pixels).save(made / f"{name}.png")
    return made


def test_the_four_pictures_of_a_file_are_read_row_by_row(folder: Path) -> None:
    assert is_picture_folder(folder)
    model = open_pictures(folder, "them")
    assert (model.layout, model.picture_size) == ("dpg", (4, 4))
    for number, name in enumerate(("0", "partiprompts97")):
        for seed in range(4):
            tile = np.asarray(read_image(model.find(Prompt(text="", id=name), seed)))
            assert tile.shape == (4, 4, 3)
            assert (tile == 50 * seed + number).all()


def test_a_file_or_picture_that_is_not_there_is_a_path_that_is_not_there(folder: Path) -> None:
    model = open_pictures(folder, "them")
    assert not model.find(Prompt(text="", id="none"), 0).exists()
    assert not model.find(Prompt(text="", id="0"), 4).exists()


def test_a_file_that_cannot_hold_four_pictures_is_refused(folder: Path) -> None:
    Image.new("RGB", (7, 8)).save(folder / "0.png")
    with pytest.raises(UserError, match="7x8 pixels cannot hold two by two"):
        open_pictures(folder, "them").find(Prompt(text="", id="0"), 0)


def test_groups_of_questions_are_means_over_questions() -> None:
    prompts = [Prompt(text=p, id=p) for p in ("a", "a", "b")]
    groups = group_questions([[("x", 1.0)], [("x", 0.0), ("y", 1.0)], [("x", 0.0), ("x", 0.0)]])
    found = group_values(QuestionSummary(per_image_N=np.zeros(3, np.float32), groups=groups), prompts)
    assert {name: (v.value, v.n_prompts, v.n_images) for name, v in found.items()} == {
        "x": (0.25, 2, 3),
        "y": (1.0, 1, 1),
    }
    assert group_values(Summary(value=1.0), prompts) == {}
