from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import features
from metrics.base import Prompt, UserError
from metrics.features import Encoder, FeatureRunner, exact_float32, register_encoders
from metrics.images import to_tensor
from metrics.preprocessing import Resized, Uint8

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

    monkeypatch.setattr(features, "_FACTORIES", {})
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


def test_features_are_float32_under_the_callers_autocast(clip_folder, pictures) -> None:
    from metrics.encoders import transformers_clip

    image = transformers_clip.encoders(clip_folder, CPU)["image"]
    features._FACTORIES["autocast"] = lambda device: {"image": image}
    try:
        runner = FeatureRunner(["autocast:image"])
        plain = runner.run(pictures, PROMPTS * 2)["autocast:image"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = runner.run(pictures, PROMPTS * 2)["autocast:image"]
    finally:
        del features._FACTORIES["autocast"]
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
    assert runner.weights_digest("quiet:image") == ""
    assert runner.missing("quiet:image") is None


def test_pictures_are_the_same_on_both_paths_of_the_runner(counted: Counter[str], noise_picture) -> None:
    pictures = [noise_picture(8, 8, seed) for seed in range(3)]
    runner = FeatureRunner(["loud:image"])
    official, tensors = runner.run(pictures, PROMPTS), runner.run_tensors(to_tensor(pictures), PROMPTS)
    assert torch.equal(official["loud:image"], tensors["loud:image"])
