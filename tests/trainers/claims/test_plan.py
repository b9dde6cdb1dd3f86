"""The shipped plan holds what it promises, and a plan that contradicts itself is refused before any training."""

import re
from pathlib import Path

import pytest

from benchmarks.config import UserError, as_table
from tests.trainers.claims.fake import PLAN, write_plan
from trainers.base import find
from trainers.claims.__main__ import Arguments, check_plan, main
from trainers.claims.plan import FOLDER, Study, check_equal_passes, find_plan, read_study
from trainers.config import stage_settings
from trainers.study import stages_digest

HEADLINES = {
    "joint-beats-sequential", "rl-alone-hacks", "consistency-helps", "direct-term-helps", "dp-dmd-raises-diversity",
    "no-stop-lowers-diversity",
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> Study:
    return read_study(FOLDER / "micro.toml")


def test_every_claim_and_figure_names_arms_and_measures_that_exist(shipped: Study) -> None:
    check_plan(shipped)


def test_the_six_headline_claims_have_five_seeds_and_the_others_three_or_more(shipped: Study) -> None:
    plan = shipped.plan
    assert {claim.id for claim in plan.claims if claim.headline} == HEADLINES
    assert {plan.needed(claim) for claim in plan.claims if claim.headline} == {5}
    assert {plan.needed(claim) for claim in plan.claims if not claim.headline} == {3, 5}  # none has fewer than 3


def test_the_settings_of_every_arm_are_its_trainers(shipped: Study) -> None:
    for arm in shipped.runs:
        method, run = shipped.run(arm, 0)
        stage_settings(run, {n: find(s.trainer or method).Config for n, s in run.stages.items()}, arm)


def test_the_judge_is_a_reward_of_the_detector_arm_alone(shipped: Study) -> None:
    judged = [arm for arm in shipped.runs if "shapes_geneval" in [r.id for r in shipped.run(arm, 0)[1].rewards]]
    assert judged == ["detector"]


def test_arms_that_share_a_cold_start_share_its_digest(shipped: Study) -> None:
    def digest(arm: str) -> str:
        method, run = shipped.run(arm, 0)
        return stages_digest({"method": method, **as_table(run)}, "cold_start")

    dmdr = [
        "dmd",
        "joint",
        "refl-kept",
        "refl-alone",
        "joint-dpo",
        "dpo-kept",
        "joint-grpo",
        "grpo-kept",
        "joint-lambda-2",
    ]
    rtdmd = ["rtdmd", "ac-dmd", "subgrpo", "grpo", "direct", "paper-form", "probe-grpo", "probe-subgrpo"]
    assert len({digest(arm) for arm in dmdr}) == len({digest(arm) for arm in rtdmd}) == 1
    assert digest("rt-dm") == digest("rt-dm-joint") != digest("dmd")
    assert digest("gamma-0") == digest("eta-0_9") != digest("rtdmd")


def test_no_two_trained_arms_are_the_same_training(shipped: Study) -> None:
    runs = [
        str({**as_table(shipped.run(arm, 0)[1]), "name": "", "method": shipped.runs[arm][0]}) for arm in shipped.runs
    ]
    assert len(set(runs)) == len(runs)


def test_arms_with_unequal_passes_are_refused(tmp_path: Path) -> None:
    longer = PLAN.replace("[arms.other]\n", "[arms.other]\nsettings.stages.reinforce.budget_passes = 600\n")
    with pytest.raises(
        UserError, match=r"claims\.second: arms have unequal network passes \(other 1,600, plain 1,500\)"
    ):
        write_plan(tmp_path, longer)
    study = write_plan(tmp_path)
    check_equal_passes(study, study.plan.claims[2])  # a teacher is not trained: there is nothing to compare
    for at in ("its start", "equal updates"):
        other = f'smallest = 0.2\nat = "{at}"'
        told = longer.replace("smallest = 0.2", f'{other}\nnotes = "Not of equal passes."')
        assert write_plan(tmp_path, told).budget("other") == 1600
        with pytest.raises(UserError, match=f"at = '{at}': say in notes"):
            write_plan(tmp_path, longer.replace("smallest = 0.2", other))


def test_a_claim_may_ask_for_seeds_of_its_own(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, PLAN.replace("smallest = 0.2", "smallest = 0.2\nseeds = 4")).plan
    assert [plan.needed(claim) for claim in plan.claims] == [3, 4, 2] and plan.most_seeds == 4
    with pytest.raises(UserError, match="a headline claim has the plan's headline_seeds"):
        write_plan(tmp_path, PLAN.replace("headline = true", "headline = true\nseeds = 4"))


def test_a_stage_that_goes_on_has_the_settings_of_the_one_before(shipped: Study) -> None:
    """All but the rate and the average: an arm that is more of the same must not change its recipe on the way."""
    other = {"student", "ema", "reinforce", "rl", "rl_weight", "refl"}  # or of no use to the phase
    for arm in ("ac-dmd", "ac-dmd-one-rate", "a-dmd-eta-1", "x0-eta-1", "dmd", "rt-dm", "fixed", "thin-dmd"):
        _, run = shipped.run(arm, 0)
        methods = {name: find(stage.trainer or shipped.runs[arm][0]) for name, stage in run.stages.items()}
        settings = stage_settings(run, {name: method.Config for name, method in methods.items()}, arm)
        first, second = (
            {k: used(v) for k, v in as_table(own).items() if k not in other} for own in settings.values()
        )
        assert first == second, arm


def used(value: object) -> object:
    """Return what counts of a setting: of a schedule that is off nothing else, of a fixed one not its length."""
    if not isinstance(value, dict) or value.get("kind") not in ("off", "fixed"):
        return value
    return value["kind"] if value["kind"] == "off" else {k: v for k, v in value.items() if k != "updates"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'arms = ["other", "plain"]',
            'arms = ["othr", "plain"]',
            "claims.second: no such arm: 'othr'; did you mean 'other'",
        ),
        ('like = "plain"', 'like = "plane"', "arms.better.like: no such trained arm before it: 'plane'"),
        ('like = "plain"', 'like = "teacher"', "no such trained arm before it: 'teacher'"),
        ('id = "second"', 'id = "first"', "two claims have one id"),
        ("budget_passes = 500", "iterations = 5", "stages.reinforce needs budget_passes, and no iterations"),
        (
            "guidance_scale = 2.0",
            "guidance_scale = 2.0\nstages = ['nowhere']",
            "stages: 'nowhere' is none of its base's",
        ),
        ("smallest = 0.2", "smallest = 0.0", "smallest must be above 0"),
        ('claimed = "near"', 'claimed = "nearby"', "claimed"),
        ('base = "rtdmd"\nbenchmark', 'base = "rtmd"\nbenchmark', "no such base: 'rtmd'; did you mean 'rtdmd'"),
        ("settings.trainer", "settings.stagess", "stagess"),
    ],
)
def test_contradictions_are_refused_by_name(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in PLAN
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        write_plan(tmp_path, PLAN.replace(old, new, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('measure = "micro_clip"', 'measure = "micro_clap"', "'micro_clap' is not in the suite"),
        ('measure = "micro_clip"', 'measure = "area:micro_clap"', "'micro_clap' is not in the canary"),
        ('measures = ["micro_clip"]', 'measures = ["micro_fid"]', "figures.curves: plain: measure 'area:micro_fid'"),
    ],
)
def test_measures_that_no_arm_holds_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in PLAN
    with pytest.raises(UserError, match=re.escape(told)):
        check_plan(write_plan(tmp_path, PLAN.replace(old, new, 1)))


def test_a_benchmark_is_asked_for_where_a_claim_needs_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claims\.second: logged: measure 'micro_clip'"):
        check_plan(write_plan(tmp_path, PLAN.replace('arms = ["other", "plain"]', 'arms = ["logged", "plain"]')))


def test_an_unknown_plan_is_answered_with_the_known_ones() -> None:
    assert find_plan("micro") == FOLDER / "micro.toml"
    with pytest.raises(UserError, match="unknown plan 'micr'; did you mean 'micro'"):
        main(Arguments(plan="micr"))
