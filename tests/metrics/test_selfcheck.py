import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from metrics import aesthetic, clip
from metrics import selfcheck as module
from metrics.base import UserError
from metrics.selfcheck import Check, Golden, check_metric, interval, kept_outcomes, near, selfcheck
from metrics.weights import WeightFolder, manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common

CHECKS = "_CHECKS"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(module, CHECKS, {})


def test_a_number_is_right_only_inside_its_interval() -> None:
    assert near("x", 1.0001, 1, tolerance=1e-3).right
    assert not near("x", 1.01, 1, tolerance=1e-3).right
    assert not Golden("x", math.nan, -math.inf, math.inf).right


def test_intervals_are_readable() -> None:
    assert interval(near("x", 0, 4.54505, tolerance=1e-5)) == "4.54505 ± 1e-05"
    assert interval(near("x", 0, 686, tolerance=0)) == "686"
    assert interval(Golden("x", 0, -1, 1)) == "-1 to 1"
    assert interval(Golden("x", 0, 0, math.inf)) == "measured"


def test_a_registered_check_runs_after_those_that_every_metric_has(toy_metrics: dict[str, type]) -> None:
    @selfcheck("toy_clip")
    def half_of_one() -> Iterator[Golden]:
        """A table of halves."""
        yield near("1 / 2", 1 / 2, 0.5, tolerance=0)

    loads, reward, half = check_metric("toy_clip")
    assert (loads.check, loads.status, loads.goldens[0].what) == ("loads strictly", "right", "a grey picture")
    assert (reward.check, reward.status) == ("as a reward", "right")
    assert (half.check, half.source, half.status) == ("half of one", "A table of halves.", "right")


def test_a_check_waits_for_the_weights_it_names_and_says_how_to_get_them() -> None:
    @selfcheck("micro_aesthetic", "hps-v2.1")
    def never() -> Iterator[Golden]:
        raise AssertionError("its weights are not here")

    outcome = check_metric("micro_aesthetic")[-1]
    assert outcome.status == "not run"
    assert outcome.reason == "weights missing (python -m metrics.weights fetch hps-v2.1)"


def test_truncated_weights_are_refused_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "hps-v2.1").mkdir()
    (tmp_path / "hps-v2.1" / "HPS_v2.1_compressed.pt").write_bytes(b"short")
    assert {outcome.status for outcome in check_metric("hps_v21")} == {"refused"}
    assert "truncated: 5 bytes, should be 1,972,490,005" in check_metric("hps_v21")[0].reason


def test_refused_weights_are_told_from_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> Iterator[Golden]:
        raise UserError("sha256 is a, should be b")

    wrong = Check("micro_aesthetic", "w", "", lambda: [near("x", 1, 2, tolerance=0.1)])
    refused = Check("micro_aesthetic", "r", "", refuses)
    monkeypatch.setattr(module, CHECKS, {"micro_aesthetic": [wrong, refused]})
    assert [outcome.status for outcome in check_metric("micro_aesthetic")] == ["right", "right", "wrong", "refused"]
    assert module.main(["micro_aesthetic"]) == 1
    monkeypatch.setattr(module, CHECKS, {"micro_aesthetic": [refused]})
    assert module.main(["micro_aesthetic"]) == 2
    monkeypatch.setattr(module, CHECKS, {})
    assert module.main(["micro_aesthetic"]) == 0


def test_the_kept_outcome_belongs_to_these_weights(toy_metrics: dict[str, type], clip_folder: WeightFolder) -> None:
    assert kept_outcomes("toy_clip") == []
    assert kept_outcomes("toy_clip") == [] != check_metric("toy_clip")
    assert kept_outcomes("toy_clip") == check_metric("toy_clip")
    path = clip_folder.path / "model.safetensors"
    before = path.read_bytes()
    tensors = load_file(path)
    tensors["logit_scale"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    try:
        assert kept_outcomes("toy_clip") == []
    finally:
        path.write_bytes(before)


def test_checks_of_a_part_are_kept_while_other_weights_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Check("aesthetic", "part", "", lambda: [near("x", 1, 1, tolerance=0)], ("tiny",))
    here = SimpleNamespace(mend="", check=lambda: None)
    monkeypatch.setattr(module, "manifest", lambda identity: here if identity == "tiny" else manifest(identity))
    monkeypatch.setattr(module, CHECKS, {"aesthetic": [part]})
    assert [outcome.status for outcome in check_metric("aesthetic")][-3:] == ["not run", "not run", "right"]
    assert kept_outcomes("aesthetic")[-1].goldens == (near("x", 1, 1, tolerance=0),)


def test_refused_weights_have_no_kept_outcome(toy_metrics: dict[str, type], clip_folder: WeightFolder) -> None:
    config = clip_folder.path / "config.json"
    before = config.read_text()
    config.write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    try:
        assert [outcome.status for outcome in check_metric("toy_clip")] == ["refused", "refused"]
        assert kept_outcomes("toy_clip") == []
    finally:
        config.write_text(before)


def test_the_published_aesthetic_head_is_told_from_another_of_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(SYNTHETIC, "1")
    (tmp_path / "laion-aesthetic-v2").mkdir()
    torch.manual_seed(0)
    torch.save(aesthetic.AestheticHead().state_dict(), tmp_path / "laion-aesthetic-v2" / aesthetic.FILE)
    goldens = list(aesthetic.head_on_unit_vectors())
    assert len(goldens) == 10
    assert not any(golden.right for golden in goldens)


def test_the_gap_of_the_reward_is_measured_where_a_gradient_and_single_pictures_make_sense(
    toy_metrics: dict[str, type], clip_folder: WeightFolder
) -> None:
    from metrics.gap import score_gap, seeded_pictures

    _, reward = check_metric("toy_clip")
    found = [golden.found for golden in reward.goldens]
    assert found == pytest.approx(score_gap("toy_clip", list(seeded_pictures([(512, 512)]))).tolist(), abs=1e-6)
    assert max(found) > 1e-4  # PIL rounds, floats do not
    assert [outcome.check for outcome in check_metric("toy_diversity")] == ["loads strictly"]


def test_the_published_probabilities_are_held_against_a_picture_of_the_package(
    clip_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = next(picture for picture, _ in common.pairs(2) if picture.size != (24, 24))
    (tmp_path / "clip-example").mkdir()
    picture.convert("RGBA").save(tmp_path / "clip-example" / "CLIP.png")
    (tmp_path / "clip-vit-b-32").symlink_to(clip_family / "clip-vit-b-32")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    goldens = list(clip.example_of_the_readme())
    assert [(golden.low + golden.high) / 2 for golden in goldens] == pytest.approx(
        [0.9927937, 0.00421068, 0.00299572]
    )
    assert sum(golden.found for golden in goldens) == pytest.approx(1)
    assert not any(golden.right for golden in goldens)  # these are neither the weights nor the picture


def test_an_unknown_metric_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["micro_aesthetc"]) == 2
    assert capsys.readouterr().err == "error: unknown metric 'micro_aesthetc'; did you mean 'micro_aesthetic'?\n"


def test_a_real_metric_without_weights_is_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["aesthetic"]) == 0
    assert "python -m metrics.weights fetch" in capsys.readouterr().out.replace("\n", " ")
