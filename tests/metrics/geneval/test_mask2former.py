"""The detector: mmdet's layout into transformers' class, mmdet's pictures and read-out, CLIP's colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.base import Prompt, UserError
from metrics.features import Encoder
from metrics.geneval import mask2former
from metrics.geneval.classes import CLASSES, COCO_NAMES
from metrics.geneval.colour import ColourClassifier, cut_out, texts_of
from metrics.geneval.detector import Perceiver, coloured
from metrics.geneval.mask2former import Detector, MmdetPictures, full_masks, read_out, target_size
from metrics.geneval.mmdet_keys import from_mmdet
from metrics.geneval.verdict import GENEVAL_COLOURS
from metrics.preprocessing import Uint8
from tests.metrics.geneval import mmdet_network
from tests.metrics.geneval.mmdet_network import HEAD, SWIN


class Checkpoint:
    """Seeded random weights in mmdet's layout, as `metrics.weights.Weights`."""

    mend = "run the test again"

    def __init__(self, folder: Path) -> None:
        self.content = mmdet_network.seeded(mmdet_network.SMALL)
        self.path = folder
        (folder / "some.pth").touch()

    def folder(self) -> Path:
        return self.path

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self.content)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(mask2former, "SWIN_S", SWIN)
    monkeypatch.setattr(mask2former, "HEAD", HEAD)
    return Checkpoint(tmp_path)


def test_another_model_s_file_is_refused(checkpoint: Checkpoint) -> None:
    checkpoint.content["backbone.stages.0.blocks.5.norm1.weight"] = torch.ones(12)
    with pytest.raises(UserError, match=r"not mmdet's Mask2Former with Swin-S \(1 unexpected"):
        mask2former.load_mmdet(checkpoint, torch.device("cpu"))
    checkpoint.content.pop("panoptic_head.cls_embed.bias")
    with pytest.raises(UserError, match=r"no panoptic_head\.cls_embed"):
        mask2former.load_mmdet(checkpoint, torch.device("cpu"))
    assert "head.unknown" in from_mmdet({"head.unknown": torch.ones(1)})


def test_all_eighty_labels_are_coco_s_by_index(checkpoint: Checkpoint) -> None:
    # torchvision's list has COCO's 91 ids with holes: without them and the background, it is the same order
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    things = [name for name in coco if name not in ("__background__", "N/A")]
    assert len(CLASSES) == len(things) == 80
    assert [COCO_NAMES.get(name, name) for name in CLASSES] == things
    assert (CLASSES[0], CLASSES[64], CLASSES[65], CLASSES[66], CLASSES[79]) == (
        "person",
        "computer mouse",
        "tv remote",
        "computer keyboard",
        "toothbrush",
    )
    labels = mask2former.config().id2label
    assert [labels[index] for index in range(80)] == list(CLASSES)


@pytest.mark.parametrize(
    ("size", "target"),
    [((512, 512), (800, 800)), ((1024, 1024), (800, 800)), ((480, 1333), (480, 1333)), ((300, 900), (444, 1333))],
)
def test_pictures_are_resized_as_mmdet_does(size: tuple[int, int], target: tuple[int, int]) -> None:
    assert target_size(*size) == target


def test_padding_is_grey_and_colours_swap_only_where_asked() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[..., 0] = 255
    (plain,) = MmdetPictures().from_pil([Image.fromarray(picture)]).pictures
    (swapped,) = MmdetPictures(swapped=True).from_pil([Image.fromarray(picture)]).pictures
    assert plain.resized == (444, 1333)
    assert plain.pixels_3HW.shape == (3, 448, 1344)
    mean, std = torch.tensor(mask2former.MEAN), torch.tensor(mask2former.STD)
    pixel = lambda prepared, y, x: (prepared.pixels_3HW[:, y, x] * std + mean).round().tolist()  # noqa: E731
    assert pixel(plain, 10, 10) == [255, 0, 0]
    assert pixel(swapped, 10, 10) == [0, 0, 255]
    assert pixel(plain, 446, 10) == pixel(plain, 10, 1340) == [128, 128, 128]
    assert np.array_equal(swapped.picture, picture)  # what the colour classifier sees
    assert MmdetPictures() == MmdetPictures() != MmdetPictures(swapped=True)


def test_the_read_out_of_constructed_logits() -> None:
    # Query 0: a block of 2 x 3 cells of logit 2 in an 8 x 8 map, all else -4; query 1: nothing.
    masks = torch.full((2, 8, 8), -4.0)
    masks[0, 2:4, 3:6] = 2.0
    logits = torch.full((2, 81), -10.0)
    logits[0, 16], logits[0, 15] = 5.0, 4.0  # one query under two labels
    logits[1, 0] = 5.0
    found = {(entry.label, entry.query): entry for entry in read_out(logits, masks, (32, 32), (32, 32))}
    probabilities = logits.softmax(dim=-1)
    full = F.interpolate(masks[None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
    inside = full > 0
    mask_score = float((full.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
    assert found[16, 0].score == pytest.approx(float(probabilities[0, 16]) * mask_score, rel=1e-5)
    assert found[15, 0].score == pytest.approx(float(probabilities[0, 15]) * mask_score, rel=1e-5)
    ys, xs = inside.nonzero(as_tuple=True)
    assert found[16, 0].box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert found[0, 1].score == 0
    assert found[0, 1].box == (0, 0, 0, 0)
    assert len(found) == 100  # of 160
    assert 80 not in {label for label, _ in found}


def test_what_cannot_reach_the_least_score_is_left_out_before_its_mask_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn((6, 8, 8), generator=generator) + 0.5
    logits = 3 * torch.randn((6, 81), generator=generator)
    logits[4:, 80] += 20  # no object
    everything = read_out(logits, masks, (32, 32), (32, 32))
    made: list[torch.Tensor] = []
    plain = mask2former.full_masks
    monkeypatch.setattr(
        mask2former, "full_masks", lambda *arguments: (made.extend(arguments[0]), plain(*arguments))[1]
    )
    some = read_out(logits, masks, (32, 32), (32, 32), least=0.2)
    kept = [entry for entry in everything if entry.score >= 0.2]
    assert [entry for entry in some if entry.score >= 0.2] == kept
    assert 0 < len(kept) < len(some) < len(everything)
    assert len(made) == len({entry.query for entry in some}) < 6


def test_masks_are_cropped_before_they_are_resized_to_the_picture() -> None:
    mask = torch.full((8, 8), -4.0)
    mask[:, :4] = 4.0  # the left half of the padded map
    whole = full_masks(mask[None], (32, 20), (64, 40))[0] > 0  # 20 of 32 columns are picture
    assert whole.shape == (64, 40)
    assert int(whole[0].sum()) == pytest.approx(40 * 16 / 20, abs=1)


def test_masks_are_cropped_in_rows_by_the_height_and_in_columns_by_the_width() -> None:
    mask = torch.full((8, 8), -4.0)
    mask[:4] = 4.0  # the upper half of the padded map
    low = full_masks(mask[None], (20, 32), (40, 64))[0] > 0  # 20 of 32 rows are picture
    assert low.shape == (40, 64)
    assert int(low[:, 0].sum()) == pytest.approx(40 * 16 / 20, abs=1)
    left = full_masks(mask.T[None], (20, 32), (40, 64))[0] > 0  # all columns are
    assert int(left[0].sum()) == pytest.approx(64 * 16 / 32, abs=1)


def test_pictures_of_two_sizes_go_through_the_detector_like_single_ones(checkpoint: Checkpoint) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, side, 3), np.uint8)) for side in (40, 60)]
    small = lambda h, w: (64, 64 if h == w else 96)  # noqa: E731
    patch = pytest.MonkeyPatch()
    patch.setattr(mask2former, "target_size", small)
    detector = Detector(checkpoint, torch.device("cpu"), mmdet=True)
    with torch.no_grad():
        together = list(detector.logits(MmdetPictures().from_pil([images[0], images[1], images[0]])))
        alone = list(detector.logits(MmdetPictures().from_pil([images[1]])))
    patch.undo()
    assert together[0][0].shape == (10, 81)
    torch.testing.assert_close(together[1][0], alone[0][0])
    torch.testing.assert_close(together[0][1], together[2][1])
    assert together[1][1].shape == (10, 16, 24)


class FlatClip:
    """A stand-in for CLIP: a picture's embedding is its mean colour, a text's the colour that it names."""

    def __init__(self) -> None:
        self.rgb = dict(zip(GENEVAL_COLOURS, np.random.default_rng(0).permutation(np.eye(10)), strict=True))

    def encoders(self) -> dict[str, Encoder]:
        return {
            "image-openai": Encoder(reads="image", forward=self.image, preprocessing=Uint8ToTensor),
            "text-openai": Encoder(reads="text", forward=self.text),
        }

    def image(self, means_B3: Tensor) -> Tensor:
        palette = torch.tensor([PALETTE[name] for name in GENEVAL_COLOURS]).float()
        nearest = torch.cdist(means_B3, palette).argmin(dim=1).tolist()
        return torch.tensor(np.stack([self.rgb[GENEVAL_COLOURS[index]] for index in nearest])).float()

    def text(self, texts: list[str]) -> Tensor:
        return torch.tensor(np.stack([self.rgb[text.split()[4].split("-")[0]] for text in texts])).float()


PALETTE = {
    "red": (230, 20, 20),
    "orange": (240, 150, 20),
    "yellow": (240, 240, 20),
    "green": (20, 180, 20),
    "blue": (20, 20, 230),
    "purple": (120, 20, 160),
    "pink": (250, 150, 190),
    "brown": (120, 70, 20),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


class Uint8ToTensor(Uint8):
    def from_pil(self, images):  # the mean of what is not grey
        return torch.stack([self.mean(np.asarray(image).reshape(-1, 3)) for image in images])

    def mean(self, pixels_N3: np.ndarray) -> Tensor:
        painted = pixels_N3[(pixels_N3 != 153).any(axis=1)]
        return torch.tensor(painted.mean(axis=0)).float()


def test_an_object_is_cut_out_of_its_picture() -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[2:6, 3:8] = (230, 20, 20)
    mask = np.zeros((10, 10), bool)
    mask[2:6, 3:7] = True
    crop = np.asarray(cut_out(picture, mask, (2.0, 1.0, 8.0, 6.0)))
    assert crop.shape == (5, 6, 3)
    assert crop[0, 0].tolist() == [153, 153, 153]
    assert crop[1, 1].tolist() == [230, 20, 20]
    assert crop[1, 5].tolist() == [153, 153, 153]  # beside the mask, inside the box


def test_colours_are_named_by_the_three_texts_and_the_first_wins_ties() -> None:
    assert texts_of("orange", "tv remote") == (
        "a photo of a orange tv remote",
        "a photo of a orange-colored tv remote",
        "a photo of a orange object",
    )
    classifier = ColourClassifier(FlatClip().encoders(), torch.device("cpu"))
    crops = [Image.new("RGB", (4, 4), PALETTE[name]) for name in GENEVAL_COLOURS] * 2
    assert classifier.name(crops, ["dog", "car"] * 10) == list(GENEVAL_COLOURS) * 2
    classifier._weights = {"dog": torch.ones(10, 10)}
    assert classifier.name(crops[3:4], ["dog"]) == ["red"]
    assert classifier.name([], []) == []


class TwoObjects:
    """A detector that sees a car at the left and, less surely, a dog at the right."""

    def logits(self, batch):
        masks = torch.full((2, 16, 16), -4.0)
        masks[0, :, :8], masks[1, :, 8:] = 4.0, 4.0
        classes = torch.full((2, 81), -10.0)
        classes[0, CLASSES.index("car")], classes[1, CLASSES.index("dog")] = 8.0, 2.0
        classes[1, 80] = 2.5
        return ((classes, masks) for _ in batch.pictures)


def test_colours_are_named_where_a_verdict_can_ask_for_them() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = PALETTE["red"], PALETTE["blue"]
    clauses = [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1}]
    prompt = Prompt(text="a red car and a dog", category="color_attr", metadata={"include": clauses})
    assert coloured(prompt) == ["car"]
    patch = pytest.MonkeyPatch()
    patch.setattr(mask2former, "target_size", lambda h, w: (64, 64))
    batch = MmdetPictures().from_pil([Image.fromarray(picture)])
    patch.undo()
    perceiver = Perceiver(TwoObjects(), ColourClassifier(FlatClip().encoders(), torch.device("cpu")))
    (found,) = perceiver.perceive(batch, [prompt])
    assert set(found) == {"car", "dog"}
    ((car,), (dog,)) = found["car"], found["dog"]
    assert (car.handle, dog.handle) == ("red", "")
    assert car.box == (0, 0, 32, 64)
    assert car.score > 0.9
    assert 0.3 < dog.score < 0.5
