"""The metrics over references: recorded numbers of torch-fidelity and clean-fid, parts in any cut, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.base import Rows, UserError
from metrics.fid import FrechetMetric, KidMetric, PrecisionMetric, RecallMetric
from metrics.frechet import Moments, frechet_distance
from metrics.kernels import kid_of_subsets
from metrics.references import Reference, write_reference
from metrics.vendi import inception_score
from metrics.weights import WeightFolder
from metrics.weights.places import FOLDER
from tests.parity import common
from tests.parity.distribution import sizes

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "distribution" / "distances.npz"
GENERATED, REAL = sizes.feature_sets()


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    """A reference file of the second set."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    made = Moments.of(REAL)
    arrays = {"mu": made.mean_D, "sigma": made.covariance_DD, "features": REAL}
    write_reference(tmp_path / "references" / "toy.npz", arrays, {"encoder": "toy/a", "weights_digest": "", "n": 220})
    weights = WeightFolder(path=tmp_path, mend="")
    return Reference(name="toy", title="toys", encoder="toy/a", encoder_weights=weights)


def metric(base: type, reference: Reference, least: int = 33) -> FrechetMetric:
    toy_card = type("Card", (), {"id": "toy"})
    return type("Toy", (base,), {"reference": reference, "min_images": least, "card": toy_card})()


def parts(*cuts: int) -> list[Rows]:
    return [{"feature": torch.from_numpy(part)} for part in np.split(GENERATED, list(cuts))]


def test_numbers_are_those_of_the_packages(reference: Reference) -> None:
    recorded = {name: float(value) for name, value in common.load(GOLDEN)[0].items()}
    found = metric(FrechetMetric, reference).summarise_parts(parts()).value
    assert found == pytest.approx(recorded["fid"], rel=1e-6)
    assert found == pytest.approx(recorded["fid_clean"], rel=1e-6)
    assert kid_of_subsets(GENERATED, REAL, 20, 100) == pytest.approx(
        (recorded["kid_mean"], recorded["kid_std"]), rel=1e-5
    )
    assert inception_score(4 * GENERATED) == pytest.approx((recorded["isc_mean"], recorded["isc_std"]), abs=1e-9)
    assert recorded["isc_mean"] > 1.5
    shares = [metric(base, reference).summarise_parts(parts()).value for base in (PrecisionMetric, RecallMetric)]
    # The same pictures, counted: the package divides in float32.
    assert [round(share * n) for share, n in zip(shares, (200, 220), strict=True)] == [
        round(recorded["precision"] * 200),
        round(recorded["recall"] * 220),
    ]
    assert shares == pytest.approx([recorded["precision"], recorded["recall"]], abs=1e-7)
    assert recorded["precision"] != recorded["recall"]


@pytest.mark.parametrize("base", [FrechetMetric, KidMetric, PrecisionMetric, RecallMetric])
def test_any_cut_into_parts_gives_the_same_value(base: type, reference: Reference) -> None:
    whole = metric(base, reference).summarise_parts(parts()).value
    assert metric(base, reference).summarise_parts(parts(1, 7, 7, 150)).value == pytest.approx(whole, rel=1e-10)


def test_fewer_images_than_dimensions_are_refused(reference: Reference) -> None:
    few: list[Rows] = [{"feature": torch.from_numpy(GENERATED[:32])}]
    with pytest.raises(UserError, match="32 images, and 33 are the fewest"):
        metric(FrechetMetric, reference).summarise_parts(few)


def test_a_nan_is_refused(reference: Reference) -> None:
    broken = GENERATED.copy()
    broken[3, 3] = np.nan
    with pytest.raises(UserError, match="NaN"):
        metric(FrechetMetric, reference).summarise_parts([{"feature": torch.from_numpy(broken)}])


@pytest.mark.parametrize("base", [FrechetMetric, KidMetric, PrecisionMetric, RecallMetric])
def test_a_reference_with_a_nan_is_refused(base: type, reference: Reference) -> None:
    broken = REAL.copy()
    broken[3, 3] = np.nan
    arrays = {"mu": broken[3], "sigma": np.eye(32), "features": broken}
    write_reference(reference.path, arrays, {"encoder": "toy/a", "weights_digest": "", "n": 220})
    with pytest.raises(UserError, match="holds a NaN or an infinity; run: python -m metrics"):
        metric(base, reference).summarise_parts(parts())


def test_a_reference_of_another_encoder_other_weights_or_format_is_refused(reference: Reference) -> None:
    path = reference.path
    for about, reason in (
        ({"encoder": "toy/b"}, "made with 'toy/b', needed: 'toy/a'"),
        ({"encoder": "toy/a", "weights_digest": "0" * 64}, "lacks|no .safetensors|other weights"),
    ):
        write_reference(path, {"mu": np.zeros(2)}, about)
        with pytest.raises(UserError, match=reason):
            reference.moments("pool")
    np.savez(path, mu=np.zeros(2), about=np.asarray(json.dumps({"format": 99})))
    with pytest.raises(UserError, match="not a reference of format 1"):
        reference.check()
    np.savez(path, about=np.asarray([{"pickled": "code"}], object))
    with pytest.raises(UserError, match="'about' is damaged or a pickle"):
        reference.check()
    path.write_bytes(b"no npz")
    with pytest.raises(UserError, match="without running code"):
        reference.check()


def test_a_missing_reference_says_which_command_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    weights = WeightFolder(path=tmp_path, mend="")
    absent = Reference(name="absent-toy", title="toys", encoder="toy/a", encoder_weights=weights).missing()
    assert absent and "python -m metrics.reference build IMAGES --encoder toy/a -o" in absent


def test_sfid_reads_the_spatial_moments(reference: Reference) -> None:
    made = Moments.of(REAL + 1)
    write_reference(reference.path, {"mu_s": made.mean_D, "sigma_s": made.covariance_DD}, {"encoder": "toy/a"})
    spatial = metric(FrechetMetric, reference)
    type(spatial).output = "spatial"
    ours = Moments.of(GENERATED)
    expected = frechet_distance(ours.mean_D, ours.covariance_DD, made.mean_D, made.covariance_DD)
    assert spatial.summarise_parts(parts()).value == pytest.approx(expected)
