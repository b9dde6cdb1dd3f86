"""Protocol sensitivity: what is changed, and that a change is measured against the same noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.protocol import Protocol, Sampler
from benchmarks.sensitivity import Arguments, Line, adjusted, main, sensitivity, to_markdown, variants
from leaderboards.statistics import holm
from metrics.base import UserError
from tests.benchmarks.conftest import PLUGIN


def arguments(model: Path, suite: Path, out: Path, *factors: str) -> Arguments:
    return Arguments(model=str(model), suite=str(suite), out=out, factors=factors, device="cpu", plugin=(PLUGIN,))  # type: ignore[arg-type]


def test_one_setting_changes_at_a_time_and_never_to_itself() -> None:
    own = Protocol(sampler="cps", eta=0.5, num_inference_steps=4, sigmas=(1.0, 0.8, 0.5, 0.2))
    found = list(variants(own, ("sampler", "steps", "eta", "dtype")))
    told = [(one.factor, one.setting) for one in found]
    others = [("sampler", name) for name in get_args(Sampler) if name != "cps"]
    assert told == [
        *others, ("steps", "2 steps"), ("steps", "8 steps"),
        ("eta", "CPS, η = 0"), ("eta", "CPS, η = 1"), ("dtype", "bfloat16"),
    ]  # fmt: skip
    for one in found:
        assert replace(own, **one.protocol) != own  # and Protocol accepts it: sigmas fit their number
    assert [one.setting for one in variants(Protocol(num_inference_steps=1), ("steps",))] == ["2 steps"]


def test_the_same_settings_by_another_name_change_nothing_and_others_do(
    pristine_pipeline: Path, suite: Path, tmp_path: Path
) -> None:
    """CPS at η = 0 is Euler: from the same noise the two columns agree, so the noise is indeed the same."""
    name, _, lines = sensitivity(arguments(pristine_pipeline, suite, tmp_path / "out", "sampler", "eta"))
    by = {(line.setting, line.metric): line for line in lines}
    euler, cps = by["euler", "toy_redness"], by["CPS, η = 0", "toy_redness"]
    assert name == "tiny" and euler.difference == pytest.approx(cps.difference, abs=1e-7)
    assert euler.difference != 0 and euler.n_pairs == 10 and euler.n_prompts == 5
    assert euler.changed == pytest.approx(euler.own + euler.difference)  # type: ignore[operator]


def test_the_resize_backend_scores_the_same_pictures_again(
    pristine_pipeline: Path, suite: Path, tmp_path: Path
) -> None:
    suite.write_text(suite.read_text().replace('"toy_spread"', '"micro_clip"'))
    _, folder, lines = sensitivity(arguments(pristine_pipeline, suite, tmp_path / "out", "resize"))
    (line,) = lines  # the toys are not differentiable
    assert line.metric == "micro_clip" and line.difference is not None and 0 < abs(line.difference) < 0.1
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["own"]  # nothing was drawn for it


def test_what_a_model_cannot_do_stays_on_the_card_with_its_reason(
    pipeline: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, protocol: Protocol) -> None:
        if protocol.sampler == "renoise":
            raise UserError("renoise: not for this one")

    monkeypatch.setattr("benchmarks.models.Pipeline.check", refuse)
    assert main(arguments(pipeline, suite, tmp_path / "out", "sampler")) == 0
    card = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    (refused,) = [line for line in card["lines"] if line["setting"] == "renoise"]
    assert refused["reason"] == "renoise: not for this one" and refused["difference"] is None
    assert capsys.readouterr().out.endswith((tmp_path / "out" / "sensitivity.md").read_text())


def test_p_is_adjusted_over_the_whole_card() -> None:
    lines = [Line(factor="steps", setting=str(n), task="t", metric="m", p=p) for n, p in enumerate((0.01, 0.04, 0.5))]
    lines.insert(1, Line(factor="dtype", setting="x", task="", metric="", reason="no"))
    found = adjusted(lines)
    assert [line.p for line in found if line.p is not None] == holm([0.01, 0.04, 0.5]) and found[1].p is None
    assert "no" in to_markdown("<b>", found) and "<b>" not in to_markdown("<b>", found)


def test_pictures_made_elsewhere_have_no_protocol(tmp_path: Path, suite: Path) -> None:
    from PIL import Image

    for prompt in ("colors-0", "colors-1", "colors-2", "two-0", "two-1"):
        (tmp_path / "pictures" / prompt).mkdir(parents=True)
        for seed in range(2):
            Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / prompt / f"{seed}.png")
    with pytest.raises(UserError, match="no protocol to change"):
        sensitivity(arguments(tmp_path / "pictures", suite, tmp_path / "out", "steps"))
