"""The pieces of `python -m tests.studies.eps_teacher`: its data, its statistics, its verdict."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.protocol import Protocol
from tests.studies import eps_teacher as study
from tests.studies.eps_teacher import (
    MIX,
    PROMPTS,
    Arguments,
    Statistics,
    expected_eps,
    main,
    means,
    measured,
    of_data,
)


def drawn(count: int) -> torch.Tensor:
    """Samples [N, P, C, H, W] of the data."""
    n = torch.randn(count, len(PROMPTS), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return means() + torch.einsum("ij,npjhw->npihw", torch.tensor(MIX), n)


def test_samples_of_the_data_have_its_statistics() -> None:
    assert max(measured(drawn(2000)).off(of_data()).values()) < 0.01


def test_each_statistic_sees_what_is_its_own() -> None:
    x = drawn(4000)
    moved = measured(x + torch.tensor([0.5, 0, 0, 0])[:, None, None]).off(of_data())
    assert moved["mean"] == pytest.approx(0.25, abs=0.01) and max(moved["pixels"], moved["blocks"]) < 0.02
    wide = measured(means() + 2**0.5 * (x - means())).off(of_data())
    assert wide["pixels"] == pytest.approx(1, abs=0.02) and wide["blocks"] == pytest.approx(1, abs=0.05)
    alike = measured(means() + (x - means())[..., :1, :1].expand_as(x)).off(of_data())  # a picture's pixels are one
    assert alike["pixels"] < 0.05 and alike["blocks"] == pytest.approx(15, abs=1)


def test_the_expected_eps_is_what_a_regression_finds() -> None:
    generator = torch.Generator().manual_seed(1)
    x0 = drawn(2000)[:, 1]
    for kept in (0.9, 0.3):
        eps = torch.randn(x0.shape, generator=generator)
        x_t = kept**0.5 * x0 + (1 - kept) ** 0.5 * eps
        rows, wanted = ((x.transpose(1, 3).reshape(-1, 4)) for x in (x_t, eps))
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        found = rows @ torch.linalg.lstsq(rows, wanted).solution
        told = expected_eps(x_t, means()[1], torch.full((len(x_t),), kept)).transpose(1, 3).reshape(-1, 4)
        assert (found - told).abs().max() < 0.05


Parts = tuple[float, float, float, float, float]


@pytest.fixture
def rehearse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Parts], int]:
    """Run the study with samples that differ by these parts: teacher, then each student untrained and distilled."""

    def call(parts: Parts) -> int:
        exact = of_data()
        told = [Statistics(exact.mean, exact.pixels * (1 + part), exact.blocks) for part in parts]
        monkeypatch.setattr(study, "train_teacher", lambda folder, arguments: None)
        monkeypatch.setattr(study, "distil", lambda trainer, updates: None)
        far = Statistics(exact.mean, 2 * exact.pixels, exact.blocks)  # the ends of several steps are not judged
        teachers = (told.pop(0), far)
        monkeypatch.setattr(
            study, "sampled", lambda backbone, role, *rest: teachers if role == "teacher" else (far, told.pop(0))
        )
        return main(Arguments(out=tmp_path / "eps.json"))

    return call


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((0.0, 0.5, 0.05, 0.5, 0.09), 0),
        ((0.2, 0.5, 0.2, 0.5, 0.2), 1),  # the teacher is not of the data
        ((0.0, 0.5, 0.11, 0.5, 0.05), 1),
        ((0.0, 0.5, 0.05, 0.5, 0.11), 1),
        ((0.0, 0.05, 0.05, 0.5, 0.05), 1),  # nothing to learn
    ],
)
def test_the_verdict(parts: Parts, code: int, rehearse: Callable[[Parts], int], tmp_path: Path) -> None:
    assert rehearse(parts) == code
    found = json.loads((tmp_path / "eps.json").read_text())
    assert [one["against"] for one in found.values()] == ["data", *["teacher"] * 6]
    assert found["4 steps, distilled: the last alone"]["pixels"] > 0.6
    assert found["4 steps, distilled"]["pixels"] == pytest.approx(abs(parts[4] - parts[0]) / (1 + parts[0]), abs=1e-6)


def test_a_study_that_is_cut_short_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = Arguments(teacher_iterations=10, updates=(1, 1), batch=4, count=4, out=tmp_path / "eps.json")
    assert main(short) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith("does not hold") and len(shown) == 9


def test_all_steps_predictions_are_measured_beside_the_last() -> None:
    """A student that predicts 1 in its first step and 3 in its second, whatever it is shown."""

    class Backbone:
        latent_shape, device = (4, 8, 8), torch.device("cpu")

        def encode(self, prompts: list[str]) -> None:
            return None

        def noise_scale(self, t: float) -> float:
            return 1.0

        def velocity(self, role: str, x_t: torch.Tensor, t: float, prompts: None) -> torch.Tensor:
            return (x_t - (3 if t < 1 else 1)) / t

    protocol = Protocol(sampler="renoise", num_inference_steps=2, sigmas=(1.0, 0.5), height=64, width=64)
    ends, predictions = study.sampled(Backbone(), "student", protocol, 8)  # type: ignore[arg-type]
    assert ends.mean.flatten().tolist() == pytest.approx([3.0] * 16, abs=1e-4)
    assert predictions.mean.flatten().tolist() == pytest.approx([2.0] * 16, abs=1e-4)
    assert ends.pixels.abs().max() < 1e-6
    assert predictions.pixels.diagonal().tolist() == pytest.approx([1.0] * 4, abs=0.01)
