"""A plan refuses what a start of the run would refuse, and says what it cannot tell."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from benchmarks.config import UserError
from trainers.base import available
from trainers.run import Arguments, main
from trainers.unread import conditions_of

REFUSED = {
    "backbone.kind=sd5": "backbone: unknown backbone 'sd5'; did you mean 'sd3'",
    "backbone.kind=sdxl": "backbone: .*a StableDiffusion3Pipeline; this backbone trains StableDiffusionXLPipeline",
    "prompts.source=nope": "prompts.source: unknown prompt set 'nope'",
    "prompts.source=nope.jsonl": "prompts.source: nope.jsonl: no such prompt file",
    "canary.prompts=nope.jsonl": "canary: nope.jsonl: no such prompt file",
    'canary.metrics=["nope"]': "canary: unknown metric 'nope'",
    "benchmark=nosuite": "benchmark 'nosuite': unknown suite 'nosuite'",
    "canary.metrics=[]": "canary.stop.metric 'shapes_geneval' must be one of canary.metrics; known: none",
    "stages.cold_start.settings.cold_start.batch_size=100000": "stages.cold_start: 100000 different prompts per",
    'rewards=[{id = "micro_clip", margin = 0.5}]': "rewards: micro_clip: no stage reads margin",
    'rewards=[{id = "micro_fid"}]': "rewards: micro_fid is a statistic of a whole set",
}


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Leave out the plan itself, which comes after what is checked."""
    shown: list[str] = []
    monkeypatch.setattr("trainers.plan.show_plan", lambda method, *rest: shown.append(method))
    yield shown


@pytest.mark.parametrize("override", REFUSED)
def test_a_plan_refuses_what_a_start_would(override: str, planned: list[str]) -> None:
    stop = ("canary.stop.metric=shapes_geneval",) if "canary.metrics=[]" in override else ()
    with pytest.raises(UserError, match=REFUSED[override]):
        main(Arguments(preset="rtdmd-micro", dry_run=True, set=(*stop, override)))
    assert not planned


def test_a_run_that_can_start_is_planned(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Arguments(preset="rtdmd-micro", dry_run=True)) == 0
    assert planned == ["rtdmd"] and "not checked" not in capsys.readouterr().out
    without = Arguments(preset="rtdmd-micro", dry_run=True, benchmark=False, set=("benchmark=nosuite",))
    assert main(without) == 0


def test_what_is_not_here_is_told_and_no_reason_to_refuse(
    planned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_BENCH_PROMPTS", str(tmp_path))
    monkeypatch.setenv("FEWSTEP_BENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    changed = ("prompts.source=text-to-image-2m", 'canary.metrics=["clip_score"]')
    assert main(Arguments(preset="rtdmd-micro", dry_run=True, set=changed)) == 0
    shown = capsys.readouterr().out
    assert planned == ["rtdmd"]
    assert "not checked: preset rtdmd-micro: prompts.source: " in shown and "text-to-image-2m" in shown
    assert "not checked: preset rtdmd-micro: canary: clip_score: " in shown


def test_a_benchmark_whose_weights_are_not_here_is_told(
    planned: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.workflow.Plan.missing", {"micro_clip": "no weights"})
    assert main(Arguments(preset="rtdmd-micro", dry_run=True)) == 0
    assert planned and "not checked: preset rtdmd-micro: benchmark 'micro': no weights for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("dmdr-micro", ("rl=grpo", "refl.margin=2"), "has rl = 'grpo' and does not read refl: .*'refl' or 'srpo'"),
        ("dmdr-micro", ("dpo={beta = 3}",), "--set .*has rl = 'refl' and does not read dpo"),
        ("dmdr-micro", ("phase=dmd", "refl.margin=2"), "has phase = 'dmd' and does not read refl"),
        ("dmdr-micro", ("rt_dm.low=0.2",), "does not read rt_dm: leave it out, or set phase to 'rt_dm'"),
    ],
)
def test_settings_that_a_stage_cannot_read_are_refused(
    preset: str, overrides: tuple[str, ...], message: str, planned: list[str]
) -> None:
    changed = tuple(f"stages.joint.settings.{one}" for one in overrides)
    with pytest.raises(UserError, match=message):
        main(Arguments(preset=preset, dry_run=True, set=changed))
    assert not planned


def test_a_phase_of_rtdmd_reads_its_own_table(planned: list[str]) -> None:
    for stage, other in (("cold_start", "reinforce.groups=2"), ("reinforce", "cold_start.batch_size=2")):
        with pytest.raises(UserError, match="does not read"):
            main(Arguments(preset="rtdmd-micro", dry_run=True, set=(f"stages.{stage}.settings.{other}",)))
    own = ("stages.reinforce.settings.reinforce.groups=2", "stages.cold_start.settings.cold_start.batch_size=2")
    assert main(Arguments(preset="rtdmd-micro", dry_run=True, set=own)) == 0 and planned


def test_where_a_table_is_read_depends_on_what_the_config_has() -> None:
    """On other fields of it, and on values that they can have."""
    named = [
        (cls.Config, conditions) for cls in available().values() for conditions in conditions_of(cls.Config).values()
    ]
    assert named
    for cls, conditions in named:
        kinds = get_type_hints(cls)
        for key, wanted in conditions.items():
            assert set(wanted) < set(get_args(kinds[key]))


@pytest.mark.parametrize("rl", ["grpo", "dpo"])
def test_another_kind_of_reward_term_leaves_the_files_own_settings_be(rl: str, planned: list[str]) -> None:
    changed = (f"stages.joint.settings.rl={rl}", f"stages.joint.settings.{rl}.group_size=4")
    assert main(Arguments(preset="dmdr-micro", dry_run=True, set=changed)) == 0 and planned
