from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import features
from metrics.base import Prompt, Registry, UserError
from metrics.features import Encoder, FeatureRunner, exact_float32, register_encoders
from metrics.images import to_tensor
from metrics.preprocessing import Resized, Uint8
from metrics.weights import WeightFolder

PROMPTS = [Prompt(text=text) for text in ("a red circle", "two squares", "a red circle")]
CPU = torch.device("cpu")


class CountingResized(Resized):
    calls: ClassVar[Counter[str]] = Counter()

    def from_pil(self, images: Sequence[Image.Image]) -> torch.Tensor:
        self.calls[str(self.size)] += 1
        return super().from_pil(images)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Register two models that share a preprocessing; every call is counted, "loud" scales the pixels by 2."""
    calls: Counter[str] = Counter()
    CountingResized.calls = calls

    def forward(name: str, scale: float):
        def run(pixels: torch.Tensor, *prompts: object) -> torch.Tensor:
            calls[name] += 1
            return scale * pixels.flatten(1)[:, :4]

        return run

    def text(texts: list[str]) -> torch.Tensor:
        calls["text"] += len(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    def model(scale: float):
        def encoders(device: torch.device) -> dict[str, Encoder]:
            calls["made"] += 1
            small = CountingResized(size=(8, 8))
            return {
                "image": Encoder(reads="image", forward=forward(f"image{scale}", scale), preprocessing=lambda: small),
                "pair": Encoder(reads="pair", forward=forward("pair", scale), preprocessing=lambda: small),
                "text": Encoder(reads="text", forward=text),
                "raw": Encoder(reads="image", forward=lambda arrays: [a.shape for a in arrays], preprocessing=Uint8),
            }

        return encoders

    monkeypatch.setattr(features, "_FACTORIES", Registry("encoder"))
    register_encoders("quiet")(model(1.0))
    register_encoders("loud")(model(2.0))
    return calls


def images(noise_picture) -> list[Image.Image]:
    return [noise_picture(16, 12 + 4 * seed, seed) for seed in range(3)]


def test_shared_preprocessing_encoders_and_prompts_run_once(counted: Counter[str], noise_picture) -> None:
    keys = ["quiet:image", "loud:image", "quiet:image", "quiet:text", "quiet:pair"]
    runner = FeatureRunner(keys)
    assert counted == {"made": 2}
    runner.run(images(noise_picture), PROMPTS)
    assert counted == {"made": 2, "(8, 8)": 1, "image1.0": 1, "image2.0": 1, "pair": 1, "text": 2}
    runner.run(images(noise_picture), PROMPTS)
    assert counted["text"] == 2


def test_images_are_seen_once_beside_several_prompts_and_pairs_each_time(counted: Counter[str]) -> None:
    runner = FeatureRunner(["quiet:image", "quiet:text", "quiet:pair"])
    pixels, others = torch.rand(3, 3, 8, 8), [Prompt(text=text) for text in ("a", "bb", "ccc")]
    found = runner.run_tensors_beside(pixels, [PROMPTS, others])
    assert (counted["image1.0"], counted["pair"]) == (1, 2)
    for features_, prompts in zip(found, (PROMPTS, others), strict=True):
        alone = runner.run_tensors(pixels, prompts)
        assert all(torch.equal(features_[key], alone[key]) for key in alone)
    assert found[1]["quiet:text"].flatten().tolist() == [1, 2, 3]


def test_a_shared_forward_runs_once_and_each_output_is_picked(
    counted: Counter[str], noise_picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Towers:
        """One model with two outputs on either side; bound methods of one object compare equal."""

        def image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            counted["shared image"] += 1
            return {"first": pixels.flatten(1)[:, :1], "mean": pixels.flatten(1).mean(dim=1, keepdim=True)}

        def text(self, texts: list[str]) -> torch.Tensor:
            counted["shared text"] += 1
            return torch.tensor([[float(len(text)), float(text.count("a"))] for text in texts])

    def encoders(device: torch.device) -> dict[str, Encoder]:
        towers = Towers()
        common = {"reads": "image", "preprocessing": lambda: CountingResized(size=(8, 8))}
        return {
            "first": Encoder(forward=towers.image, pick=itemgetter("first"), **common),
            "mean": Encoder(forward=towers.image, pick=itemgetter("mean"), **common),
            "length": Encoder(reads="text", forward=towers.text, pick=itemgetter((slice(None), slice(0, 1)))),
            "letters": Encoder(reads="text", forward=towers.text, pick=itemgetter((slice(None), slice(1, 2)))),
        }

    register_encoders("towers")(encoders)
    keys = ["towers:first", "towers:mean", "towers:length", "towers:letters"]
    found = FeatureRunner(keys).run(images(noise_picture), PROMPTS)
    assert (counted["shared image"], counted["shared text"], counted["(8, 8)"]) == (1, 2, 1)
    for key in keys:
        alone = FeatureRunner([key]).run(images(noise_picture), PROMPTS)
        assert torch.equal(found[key], alone[key])
    assert found["towers:letters"].flatten().tolist() == [1, 1, 1]
    assert not torch.equal(found["towers:first"], found["towers:mean"])


def test_a_head_reads_the_features_it_names_and_shares_their_weights_and_gradients(
    counted: Counter[str], noise_picture, tmp_path: Path
) -> None:
    base, head = (WeightFolder(path=tmp_path / name, mend=f"make {name}") for name in ("base", "head"))
    small = CountingResized(size=(8, 8))

    def encoders(device: torch.device) -> dict[str, Encoder]:
        def forward(pixels: torch.Tensor) -> torch.Tensor:
            counted["body"] += 1
            return pixels.flatten(1)[:, :4]

        return {
            "score": Encoder(
                reads="features",
                inputs=("body:image", "body:text"),
                forward=lambda image_BD, text_BD: image_BD.sum(dim=1) + text_BD[:, 0],
                weights=head,
            ),
            "image": Encoder(reads="image", forward=forward, preprocessing=lambda: small, weights=base),
            "text": Encoder(reads="text", forward=lambda texts: torch.ones(len(texts), 1)),
        }

    register_encoders("body")(encoders)
    runner = FeatureRunner(["body:score", "body:image"])
    found = runner.run(images(noise_picture), PROMPTS)
    assert counted["body"] == 1
    assert torch.equal(found["body:score"], found["body:image"].sum(dim=1) + 1)
    assert runner.weights("body:score") == [base, head]
    assert "make base" in str(runner.missing("body:score"))
    pixels = torch.rand(3, 3, 8, 8, requires_grad=True)
    assert runner.run_tensors(pixels, PROMPTS)["body:score"].requires_grad


def test_what_a_head_reads_must_exist(counted: Counter[str]) -> None:
    head = Encoder(reads="features", inputs=("quite:image",), forward=lambda features: features)
    register_encoders("head")(lambda device: {"score": head})
    with pytest.raises(UserError, match="feature 'quite:image': unknown encoder 'quite'; did you mean 'quiet'"):
        FeatureRunner(["head:score"])


def test_a_lower_precision_is_told_of_whatever_reads_it(counted: Counter[str]) -> None:
    half = Encoder(reads="image", forward=lambda pixels: pixels, preprocessing=Uint8, precision="bfloat16")
    head = Encoder(reads="features", inputs=("half:image",), forward=lambda features: features)
    register_encoders("half")(lambda device: {"image": half, "score": head})
    runner = FeatureRunner(["half:score", "quiet:image"])
    assert (runner.precision("half:score"), runner.precision("quiet:image")) == ("bfloat16", "float32")


def test_pictures_prepared_ahead_give_the_same_features(counted: Counter[str], noise_picture) -> None:
    runner = FeatureRunner(["quiet:image", "loud:image", "quiet:raw"])
    prepared = runner.prepare(images(noise_picture))
    assert len(prepared) == 2
    found, plain = runner.run(prepared, PROMPTS), runner.run(images(noise_picture), PROMPTS)
    assert torch.equal(found["loud:image"], plain["loud:image"])
    assert found["quiet:raw"] == plain["quiet:raw"]


def test_features_do_not_depend_on_what_else_is_asked(counted: Counter[str], noise_picture) -> None:
    alone = FeatureRunner(["loud:image"]).run(images(noise_picture), PROMPTS)
    together = FeatureRunner(["quiet:pair", "loud:image", "quiet:text"]).run(images(noise_picture), PROMPTS)
    assert torch.equal(alone["loud:image"], together["loud:image"])


def test_features_need_not_be_tensors_and_sizes_may_differ(counted: Counter[str], noise_picture) -> None:
    found = FeatureRunner(["quiet:raw"]).run(images(noise_picture), PROMPTS)["quiet:raw"]
    assert found == [(16, 12, 3), (16, 16, 3), (16, 20, 3)]


def test_only_the_tensor_path_carries_gradients(counted: Counter[str]) -> None:
    picture = torch.rand(3, 3, 8, 8, requires_grad=True)
    runner = FeatureRunner(["loud:image", "loud:text"])
    found = runner.run_tensors(picture, PROMPTS)
    assert found["loud:image"].requires_grad
    assert not found["loud:text"].requires_grad
    (gradient,) = torch.autograd.grad(found["loud:image"].sum(), picture)
    assert gradient.abs().sum() > 0
    pictures = [Image.fromarray(np.zeros((8, 8, 3), np.uint8))] * 3
    assert not runner.run(pictures, PROMPTS)["loud:image"].requires_grad


def test_features_are_float32_under_the_callers_autocast(
    clip_folder, pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metrics.encoders import transformers_clip

    monkeypatch.setitem(
        features._FACTORIES, "autocast", lambda device: transformers_clip.encoders(clip_folder, device)
    )
    runner = FeatureRunner(["autocast:image"])
    plain = runner.run(pictures, PROMPTS * 2)["autocast:image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = runner.run(pictures, PROMPTS * 2)["autocast:image"]
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_the_callers_precision_is_restored() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("quite:image", "did you mean 'quiet'"),
        ("quiet:imagine", "did you mean 'image'"),
        ("image", "unknown encoder ''"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(counted: Counter[str], key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FeatureRunner([key])


def test_a_name_taken_twice_is_an_error(counted: Counter[str]) -> None:
    with pytest.raises(UserError, match="'quiet' is taken twice"):
        register_encoders("quiet")(lambda device: {})


def test_nothing_learned_has_no_digest_and_is_never_missing(counted: Counter[str]) -> None:
    runner = FeatureRunner(["quiet:image"])
    assert runner.weights("quiet:image") == []
    assert runner.missing("quiet:image") is None


def test_pictures_are_the_same_on_both_paths_of_the_runner(counted: Counter[str], noise_picture) -> None:
    pictures = [noise_picture(8, 8, seed) for seed in range(3)]
    runner = FeatureRunner(["loud:image"])
    official, tensors = runner.run(pictures, PROMPTS), runner.run_tensors(to_tensor(pictures), PROMPTS)
    assert torch.equal(official["loud:image"], tensors["loud:image"])


def test_runners_that_share_models_make_them_once(counted: Counter[str], noise_picture) -> None:
    models: features.Models = {}
    first, second = (FeatureRunner([f"quiet:{output}"], models=models) for output in ("image", "raw"))
    assert counted["made"] == 1
    first.run(images(noise_picture), PROMPTS)
    second.run(images(noise_picture), PROMPTS)
    FeatureRunner(["quiet:image"])
    assert counted["made"] == 2
