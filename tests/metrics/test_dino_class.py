"""The DINO class score against transformers' own classifier and feature maps, its classes, and its gradient."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from metrics.base import Prompt, UserError, make, unfit_prompts
from metrics.dino_class import asked_class
from metrics.encoders import dino
from metrics.encoders.dino_classifier import HEAD_FILE, PICTURES
from metrics.images import to_tensor
from metrics.loaded import LoadedMetric, Scorer
from metrics.selfcheck import _grey_picture
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.metrics.encoders.test_dino import GOLDEN, seeded
from tests.parity import common
from tests.parity.dino import sizes
from trainers.refl import hinge_loss
from trainers.rewards import RewardBank, RewardConfig

LAYERS, D, K = 5, sizes.DINOV2["hidden_size"], 1000
CONFIG: dict[str, Any] = {**sizes.DINOV2, "num_hidden_layers": LAYERS}
CLASSES = (207, 0, 999)
PROMPTS = [Prompt(text=str(number)) for number in CLASSES]


def body(layout: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return a transformer of five layers under the published keys, of the recorded layout of two."""
    blocks = [f"encoder.layer.{n}." for n in range(LAYERS)]
    shapes = {name: tuple(tensor.shape) for name, tensor in layout.items()}
    inner = {name.removeprefix(blocks[0]): shape for name, shape in shapes.items() if name.startswith(blocks[0])}
    outer = {name: shape for name, shape in shapes.items() if not name.startswith("encoder.layer.")}
    whole = outer | {block + name: shape for block in blocks for name, shape in inner.items()}
    return {prefix + name: torch.from_numpy(value) for name, value in common.seeded_weights(whole).items()}


def head(width: int, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width)
    weight, bias = torch.randn(K, width, generator=generator), torch.randn(K, generator=generator)
    return {f"{prefix}weight": weight / width**0.5, f"{prefix}bias": bias}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both classifiers, shrunken, under their true file names and keys."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("weights")
    layout = seeded(common.load(GOLDEN)[0]["dinov2_layout"])
    for name in ("dinov2-large", "dinov2-large-imagenet-linear4", "dinov2-base-imagenet1k-1-layer"):
        (root / name).mkdir()
    save_file(body(layout), root / "dinov2-large" / "model.safetensors")
    torch.save(head(5 * D), root / "dinov2-large-imagenet-linear4" / HEAD_FILE)
    both = body(layout, "dinov2.") | head(2 * D, "classifier.")
    torch.save(both, root / "dinov2-base-imagenet1k-1-layer" / "pytorch_model.bin")
    return root


@pytest.fixture(autouse=True)
def shrunken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(SYNTHETIC, "1")
    for name in ("DINOV2_L", "DINOV2_B"):
        monkeypatch.setattr(dino, name, CONFIG)


@pytest.fixture
def pictures() -> list[Any]:
    return sizes.pictures()[: len(CLASSES)]


def read(folder: Path, name: str, file: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / name / file
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@torch.no_grad()
def transformers_one_layer(folder: Path, pixels: Tensor) -> Tensor:
    """Return the logits of transformers' own Dinov2ForImageClassification."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    found = read(folder, "dinov2-base-imagenet1k-1-layer", "pytorch_model.bin")
    model = Dinov2ForImageClassification(Dinov2Config(**CONFIG, num_labels=K)).eval()
    model.load_state_dict({dino.native_key(name): tensor for name, tensor in found.items()})
    return model(pixel_values=pixels).logits


@torch.no_grad()
def authors_four_layers(folder: Path, pixels: Tensor) -> Tensor:
    """Return the logits as the authors' code words them, on transformers' own normed feature maps."""
    from transformers import Dinov2Backbone, Dinov2Config

    last = [f"stage{n}" for n in range(LAYERS - 3, LAYERS + 1)]
    settings = {"out_features": last, "apply_layernorm": True, "reshape_hidden_states": False}
    backbone = Dinov2Backbone(Dinov2Config(**CONFIG, **settings)).eval()
    found = read(folder, "dinov2-large", "model.safetensors")
    backbone.load_state_dict({dino.native_key(name): tensor for name, tensor in found.items()})
    one, two, three, four = backbone(pixels).feature_maps
    tokens = [one[:, 0], two[:, 0], three[:, 0], four[:, 0], four[:, 1:].mean(dim=1)]
    linear = read(folder, "dinov2-large-imagenet-linear4", HEAD_FILE)
    return torch.cat(tokens, dim=1) @ linear["weight"].T + linear["bias"]


@pytest.mark.parametrize(
    ("identity", "official"), [("dino_class", authors_four_layers), ("dino_class.base", transformers_one_layer)]
)
def test_scores_are_the_log_probabilities_of_the_published_classifier(
    identity: str, official: Any, folder: Path, pictures: list[Any]
) -> None:
    floats = [to_tensor([picture]) for picture in pictures]
    pixels = torch.cat([PICTURES.from_tensor(image) for image in floats])
    logits = official(folder, pixels)
    expected = logits.log_softmax(dim=1)[range(len(CLASSES)), list(CLASSES)]
    metric = LoadedMetric(identity)
    assert logits.std(dim=0).mean() > 0.05  # else every picture is of one class
    assert torch.allclose(metric(pictures, PROMPTS), expected, atol=1e-4)
    rewards = torch.cat([metric.reward(image, [prompt]) for image, prompt in zip(floats, PROMPTS, strict=True)])
    assert torch.allclose(rewards, expected, atol=1e-4)  # pictures are read alike on both paths


def test_pictures_are_read_as_dmdrs_reward_reads_them(pictures: list[Any]) -> None:
    """Its processor takes the norm first and resizes after it: the same, for both are linear and weights sum to 1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (dino.IMAGENET_MEAN, dino.IMAGENET_STD))
    images = F.interpolate(to_tensor(pictures[:1]), (256, 256), mode="bilinear")
    theirs = F.interpolate((images - mean) / std, (224, 224), mode="bicubic", antialias=True)
    assert torch.allclose(PICTURES.from_tensor(images), theirs, atol=1e-5)


def test_a_prompt_names_its_class_itself_or_beside_it() -> None:
    assert asked_class(Prompt(text="207")) == 207
    assert asked_class(Prompt(text="a photo of a golden retriever", metadata={"class": 207})) == 207
    for wrong in ("golden retriever", "1000", "-1", "2.5", "²"):
        with pytest.raises(UserError, match=r"names no ImageNet class; write its number, 0 to 999"):
            asked_class(Prompt(text=wrong))


def test_prompts_without_a_class_are_found_before_anything_is_drawn() -> None:
    prompts = [Prompt(text=text) for text in ("207", "a cat", "1000")]
    unfit = unfit_prompts(make("dino_class"), prompts)
    assert unfit.startswith(
        "2 of 3 prompts cannot be judged (first: dino_class: prompt 'a cat' names no ImageNet class"
    )


def test_another_class_gets_another_score(pictures: list[Any]) -> None:
    metric = LoadedMetric("dino_class")
    one, other = (metric(pictures[:1], [Prompt(text=text)]).item() for text in ("207", "208"))
    assert abs(one - other) > 1e-3
    sums = sum(metric(pictures[:1], [Prompt(text=str(n))]).exp().item() for n in range(0, K, 50))
    assert sums < 1  # of twenty of the thousand classes


def classifier(metric: LoadedMetric) -> Any:
    """Return what is behind a loaded metric."""
    (key,) = metric.metric.features
    return metric._runner._encoders[key].forward.__self__  # type: ignore[attr-defined]


@pytest.mark.parametrize("identity", ["dino_class", "dino_class.base"])
def test_the_gradient_is_that_of_finite_differences(identity: str) -> None:
    metric = metrics.load(identity)
    loaded = classifier(metric)
    loaded.model.double()
    loaded.head.double()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 48, 48, dtype=torch.float64, generator=generator).requires_grad_()
    prompts = PROMPTS[:2]
    metric.reward(images, prompts).sum().backward()
    assert images.grad is not None and (images.grad.flatten(1).norm(dim=1) > 1e-6).all()
    for _ in range(3):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            above, below = (metric.reward(images + step * direction, prompts).sum() for step in (1e-5, -1e-5))
        assert (images.grad * direction).sum().item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-6)


def test_as_a_reward_it_is_the_cross_entropy_of_dmdrs_demonstration() -> None:
    logits = torch.randn(8, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.arange(8)
    bank = RewardBank([RewardConfig(id="dino_class", weight=0.05)], {"dino_class": metrics.load("dino_class")})
    log_p = logits.log_softmax(dim=1)[range(8), classes]
    (mine,) = torch.autograd.grad(hinge_loss({"dino_class": log_p}, bank, margin=0.7), logits)
    (theirs,) = torch.autograd.grad(0.05 * F.cross_entropy(logits, classes), logits)
    assert torch.allclose(mine, theirs, atol=1e-12) and theirs.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dinov2-large-imagenet-linear4", {"bias": None}, "1 keys missing, first bias"),
        ("dinov2-large-imagenet-linear4", {"weight": torch.zeros(K, 2 * D)}, "weight has shape"),
    ],
)
def test_another_head_is_refused_by_name(
    file: str, change: dict[str, Tensor | None], message: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, pictures: list[Any],
) -> None:  # fmt: skip
    shutil.copytree(folder, tmp_path / "own")
    changed = {name: value for name, value in {**head(5 * D), **change}.items() if value is not None}
    torch.save(changed, tmp_path / "own" / file / HEAD_FILE)
    monkeypatch.setenv(FOLDER, str(tmp_path / "own"))
    with pytest.raises(UserError, match=message):
        LoadedMetric("dino_class")(pictures, PROMPTS)


def test_the_classifiers_weights_are_all_named() -> None:
    found = {w.entry.id for w in Scorer(["dino_class"]).weights("dino_class")}  # type: ignore[attr-defined]
    assert found == {"dinov2-large", "dinov2-large-imagenet-linear4"}


def test_the_self_check_scores_a_grey_picture() -> None:
    (golden,) = _grey_picture("dino_class")
    assert golden.right and golden.found < 0
