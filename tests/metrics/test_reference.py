"""The command that makes reference statistics: computed, converted, refused."""

import json
import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import features, reference
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Resized
from metrics.references import open_arrays
from metrics.weights import WeightFolder
from tests.metrics.conftest import PictureMaker


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An encoder "toy/mean" whose feature is the mean colour."""
    from safetensors.torch import save_file

    monkeypatch.setattr(features, "_FACTORIES", copy(features._FACTORIES))
    monkeypatch.setitem(reference.OUTPUTS, "toy/mean", ("image",))
    (tmp_path / "toy").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "toy" / "model.safetensors")

    @register_encoders("toy/mean")
    def encoders(device: torch.device) -> Mapping[str, Encoder]:
        def forward(pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3))

        resized = Resized(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
        weights = WeightFolder(path=tmp_path / "toy", mend="")
        return {"image": Encoder(reads="image", forward=forward, preprocessing=lambda: resized, weights=weights)}


def test_a_folder_becomes_moments_features_and_a_digest(
    toy: None, tmp_path: Path, noise_picture: PictureMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for index in range(5):
        noise_picture(16, 24, index).save(tmp_path / "in" / ("deeper" if index % 2 else "") / f"{index}.png")
    outs = [tmp_path / f"out{size}.npz" for size in (1, 4)]
    for out, size in zip(outs, ("1", "4"), strict=True):
        command = ["build", str(tmp_path / "in"), "--encoder", "toy/mean", "-o", str(out), "--batch-size", size]
        assert reference.main(command) == 0
    with open_arrays(outs[0], "") as one, open_arrays(outs[1], "") as four:
        assert one["features"].shape == (5, 3)
        assert np.allclose(one["mu"], one["features"].mean(axis=0))
        assert np.allclose(one["sigma"], np.cov(one["features"].T.astype(float)))
        assert np.allclose(one["sigma"], four["sigma"], rtol=1e-10)
        about = json.loads(str(one["about"]))
        assert about == json.loads(str(four["about"]))
    assert (about["n"], about["encoder"], len(about["images"]), len(about["weights_digest"])) == (
        5,
        "toy/mean",
        64,
        64,
    )
    assert "sha256 " in capsys.readouterr().out
    assert not list(tmp_path.glob(".*tmp*"))


def build(folder: Path, out: Path, batch_size: int = 2) -> int:
    return reference.main(
        ["build", str(folder), "--encoder", "toy/mean", "-o", str(out), "--batch-size", str(batch_size)]
    )


@pytest.fixture
def eight(toy: None, tmp_path: Path, noise_picture: PictureMaker) -> Path:
    """A folder of eight pictures."""
    folder = tmp_path / "eight"
    folder.mkdir()
    for index in range(8):
        noise_picture(16, 24, index).save(folder / f"{index}.png")
    return folder


def test_a_build_that_was_stopped_continues_to_the_same_bytes(
    eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert build(eight, whole) == 0
    read: list[str] = []
    plain = reference.read_image
    monkeypatch.setattr(reference, "read_image", lambda path: (read.append(path.name), plain(path))[1])
    intact = (eight / "5.png").read_bytes()
    (eight / "5.png").write_bytes(intact[:40])
    assert build(eight, out) == 2 and not out.exists()
    (eight / "5.png").write_bytes(intact)
    read.clear()
    assert build(eight, out) == 0
    assert read == ["4.png", "5.png", "6.png", "7.png"]
    with open_arrays(whole, "") as one, open_arrays(out, "") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files) and one.files == other.files
    assert [path.name for path in tmp_path.iterdir() if "state" in path.name] == []


def test_features_that_are_kept_are_spread_over_the_set_also_after_a_stop(
    eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert build(eight, whole) == 0
    monkeypatch.setattr(reference, "KEPT", 3)
    intact = (eight / "6.png").read_bytes()
    (eight / "6.png").write_bytes(b"")
    assert build(eight, out) == 2
    (eight / "6.png").write_bytes(intact)
    assert build(eight, out) == 0
    with open_arrays(whole, "") as one, open_arrays(out, "") as other:
        assert np.array_equal(other["features"], one["features"][[0, 4, 7]])


@pytest.mark.parametrize("change", ["batch", "picture", "damage"])
def test_a_state_of_other_pictures_or_batches_is_begun_again(
    change: str, eight: Path, tmp_path: Path, noise_picture: PictureMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fresh = tmp_path / "out.npz", tmp_path / "fresh.npz"
    intact = (eight / "5.png").read_bytes()
    (eight / "5.png").write_bytes(b"")
    assert build(eight, out) == 2
    (eight / "5.png").write_bytes(intact)
    if change == "picture":
        noise_picture(24, 16, 99).save(eight / "0.png")
    if change == "damage":
        state = tmp_path / ".out.npz.state.npz"
        state.write_bytes(state.read_bytes()[:200])
    size = 3 if change == "batch" else 2
    assert build(eight, out, size) == build(eight, fresh, size) == 0
    with open_arrays(out, "") as one, open_arrays(fresh, "") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_statistics_of_others_are_converted(toy: None, tmp_path: Path) -> None:
    np.savez(tmp_path / "theirs.npz", mu=np.ones(3), sigma=np.eye(3))
    out = tmp_path / "out.npz"
    assert reference.main(["build", str(tmp_path / "theirs.npz"), "--encoder", "toy/mean", "-o", str(out)]) == 0
    with open_arrays(out, "") as made:
        assert np.array_equal(made["sigma"], np.eye(3))
        assert json.loads(str(made["about"]))["weights_digest"] == ""


@pytest.mark.parametrize("kind", ["features", "moments"])
def test_what_torch_fidelity_keeps_is_converted(kind: str, tmp_path: Path) -> None:
    features_ND = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    mean_D, covariance_DD = features_ND.double().mean(0).numpy(), np.cov(features_ND.double().numpy().T)
    cached = (
        features_ND if kind == "features" else {"mu": mean_D, "sigma": covariance_DD}
    )  # as its utils.py saves them
    torch.save(cached, tmp_path / "theirs.pt")
    out = tmp_path / "out.npz"
    assert reference.main(["build", str(tmp_path / "theirs.pt"), "--encoder", "inception/tf1", "-o", str(out)]) == 0
    with open_arrays(out, "") as made:
        assert np.allclose(made["mu"], mean_D) and np.allclose(made["sigma"], covariance_DD)
        assert ("features" in made) == (kind == "features")
        assert json.loads(str(made["about"]))["n"] == (30 if kind == "features" else 0)


class Bomb:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_cache_that_is_none_or_of_another_resizing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "theirs.pt", str(tmp_path / "out.npz")
    for content, encoder, message in (
        (
            {"mu": np.ones(3), "sigma": Bomb(tmp_path / "exploded")},
            "inception/tf1",
            "asks to run code, which is refused",
        ),
        ({"mu": np.ones(3)}, "inception/tf1", "neither features [N, D] nor mu and sigma"),
        (torch.full((3, 2), torch.nan), "inception/tf1", "finite numbers"),
        (torch.ones(3, 2), "inception/clean", "its files are inception/tf1"),
    ):
        torch.save(content, path)
        assert reference.main(["build", str(path), "--encoder", encoder, "-o", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    path.write_bytes(path.read_bytes()[:40])
    assert reference.main(["build", str(path), "--encoder", "inception/tf1", "-o", out]) == 2
    assert not (tmp_path / "exploded").exists() and not Path(out).exists()


def test_pictures_beside_statistics_give_the_features_and_the_stated_moments_stay(toy: None, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=np.full(3, 9.0), sigma=np.eye(3))
    out = tmp_path / "out.npz"
    assert reference.main(["build", str(tmp_path / "adm.npz"), "--encoder", "toy/mean", "-o", str(out)]) == 0
    with open_arrays(out, "") as made:
        assert np.allclose(made["features"], pixels.mean(axis=(1, 2)) / 255, atol=1e-6)
        assert made["mu"].tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"mu": np.ones(3)}, ["--encoder", "toy/maen"], "did you mean 'toy/mean'"),
        ({"x": np.ones(3)}, ["--encoder", "toy/mean"], "neither pictures nor statistics"),
        ({"arr_0": np.ones((2, 3))}, ["--encoder", "toy/mean"], "pictures are uint8"),
        ({"mu": np.full(3, np.nan)}, ["--encoder", "toy/mean"], "finite numbers"),
        ({"mu": np.asarray([{}], object)}, ["--encoder", "toy/mean"], "mu"),
    ],
)
def test_what_cannot_be_a_reference_is_one_line(
    toy: None,
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    assert reference.main(["build", str(tmp_path / "in.npz"), *options, "-o", str(tmp_path / "out.npz")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()
