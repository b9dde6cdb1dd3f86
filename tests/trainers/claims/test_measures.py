"""Each measure on runs whose answer is known."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.config import UserError
from leaderboards.store import read_entry
from tests.trainers.claims.fake import Benchmarks, write_plan, write_run
from trainers.claims.measures import (
    NUMBERS,
    TEXTS,
    curve,
    described,
    differences,
    equal_passes,
    metrics_of,
    number,
)
from trainers.claims.record import Benchmarked, Evidence, Record, Records, record_of
from trainers.claims.runs import Runs
from trainers.claims.schedule import Item

FLAT = {"teacher": 0.5, "plain": 0.4, "better": 0.7, "other": 0.4}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(write_plan(tmp_path), tmp_path / "runs", Records(tmp_path / "records"))


def finished(runs: Runs, arm: str, seed: int, prompts: int = 30, **lines: object) -> Record:
    item = Item(arm, seed)
    method, run = runs.study.run(arm, seed)
    write_run(runs.place(item), method, run, **lines)  # type: ignore[arg-type]
    Benchmarks(FLAT, prompts)(None, "micro", name=item.name, out=Path(), board=runs.board, overrides=None)
    return record_of(item.name, "0" * 64, runs.place(item), runs.result(item), 1.0)


def test_a_metric_is_compared_prompt_by_prompt(runs: Runs) -> None:
    arms = [[finished(runs, arm, seed) for seed in (0, 1)] for arm in ("better", "plain")]
    d_SP = differences("shapes_geneval", *arms)
    assert d_SP.shape == (2, 30)
    assert d_SP.mean() == pytest.approx(0.3, abs=0.02)
    by_hand = [
        read_entry(runs.result(Item(arm, 1))).scores("micro", "shapes_geneval").values_N.reshape(30, 2).mean(axis=1)
        for arm in ("better", "plain")
    ]
    np.testing.assert_allclose(d_SP[1], by_hand[0] - by_hand[1], atol=2e-6)  # of six digits
    np.testing.assert_allclose(differences("micro_clip", *arms), 2 * d_SP, atol=2e-5)  # of six digits


def test_a_gap_is_what_one_gained_beyond_the_other_in_deviations(runs: Runs) -> None:
    arms = [[finished(runs, arm, seed) for seed in (0, 1)] for arm in ("better", "plain")]
    # micro_clip is twice shapes_geneval here: in deviations they gained the same
    np.testing.assert_allclose(differences("gap:micro_clip:shapes_geneval", *arms), 0, atol=1e-4)
    entries = [read_entry(runs.result(Item("plain", seed))) for seed in (0, 1)]
    deviation = np.concatenate([one.scores("micro", "shapes_geneval").values_N for one in entries]).std()
    zero = differences("gap:shapes_geneval:shapes_geneval", *arms)
    np.testing.assert_allclose(zero, 0)
    alone = differences("shapes_geneval", *arms) / deviation
    assert alone.mean() > 1.5  # so that agreement above is no agreement of nothings


def test_different_prompts_are_refused(runs: Runs) -> None:
    arms = [[finished(runs, "better", 0)], [finished(runs, "plain", 0, prompts=29)]]
    with pytest.raises(UserError, match="different prompts"):
        differences("shapes_geneval", *arms)


def test_numbers_of_a_training(runs: Runs) -> None:
    run = finished(runs, "plain", 0, gradient_variance=lambda iteration: 2.0 * iteration)
    assert number("set:micro_recall", run) == 0.25
    # canary at iterations 0, 5, 10, 15, 20 with values 0 to .2, at 0, 500, 1000, 1250 and 1500 passes
    assert number("area:micro_clip:cold_start", run) == pytest.approx((500 * 0.025 + 500 * 0.075) / 1000)
    assert number("area:micro_clip:reinforce", run) == pytest.approx((250 * 0.125 + 250 * 0.175) / 500)
    assert number("area:shapes_geneval:reinforce", run) == pytest.approx(0.5)
    assert number("spread:micro_clip", run) == pytest.approx(0.1 + 0.01 * 8)  # iterations 6 to 10 of the last stage
    assert number("seconds_per_iteration", run) == pytest.approx(math.log(2.0))
    assert number("passes_per_iteration", run) == pytest.approx(math.log(50))
    assert number("gradient_variance", run) == pytest.approx(math.log(20.0 * 50))


def test_roughness_is_of_steps_of_equal_passes(runs: Runs) -> None:
    """However often a canary measures: what wiggles between two steps is not seen."""

    def rough(points: int, value: Callable[[float], float]) -> float:
        run = finished(runs, "plain", 0)
        places = np.linspace(0, 1500, points)
        curves = [{"stage": "a", "iteration": n, "passes": round(x), "m": value(x)} for n, x in enumerate(places)]
        return number(
            "roughness:m", run.model_copy(update={"training": run.trained.model_copy(update={"curves": curves})})
        )

    assert rough(13, lambda x: x / 1500) == pytest.approx(1 / 12)
    assert rough(37, lambda x: x / 1500) == pytest.approx(1 / 12)  # three times as many points
    saw = [rough(points, lambda x: round(x / 125) % 2) for points in (13, 25)]
    assert saw == [1.0, 1.0] and rough(25, lambda x: 0.5) == 0.0
    assert rough(13, lambda x: float(x < 700)) == 0.0  # before the second half
    with pytest.raises(UserError, match="12 canary points of m; at least 13"):
        rough(12, lambda x: 0.0)


def test_times_of_compiled_runs_are_compared_with_such_alone(runs: Runs) -> None:
    arms = [[finished(runs, arm, 0)] for arm in ("better", "plain")]
    compiled = [
        run.model_copy(update={"training": run.trained.model_copy(update={"compiled": True})}) for (run,) in arms
    ]
    assert differences("seconds_per_iteration", *arms).tolist() == [0.0]
    assert differences("seconds_per_iteration", compiled[:1], compiled[1:]).tolist() == [0.0]
    with pytest.raises(UserError, match="some of the runs were compiled"):
        differences("seconds_per_iteration", arms[0], compiled[1:])
    assert differences("passes_per_iteration", arms[0], compiled[1:]).tolist() == [0.0]


def test_times_of_two_machines_are_not_compared(runs: Runs) -> None:
    one, other = finished(runs, "better", 0), finished(runs, "plain", 0)
    assert one.trained.machine == other.trained.machine != ""
    moved = other.model_copy(update={"training": other.trained.model_copy(update={"machine": "another"})})
    with pytest.raises(UserError, match="different machines"):
        differences("seconds_per_iteration", [one], [moved])
    assert differences("passes_per_iteration", [one], [moved]).tolist() == [0.0]


def test_a_log_without_what_is_asked_of_it_is_told(runs: Runs) -> None:
    run = finished(runs, "plain", 0)
    for measure, lacking in (
        ("spread:another", "reward_std/another"),
        ("gradient_variance", "gradient_variance"),
        ("area:another:reinforce", "another in stage reinforce"),
        ("area:micro_clip:another", "micro_clip in stage another"),
        ("roughness:another", "another"),
    ):
        with pytest.raises(UserError, match=f"plain-s0: .*{lacking}"):
            number(measure, run)
    short = run.model_copy(update={"training": run.trained.model_copy(update={"last_stage": []})})
    with pytest.raises(UserError, match="plain-s0: 0 logged iterations"):
        number("seconds_per_iteration", short)


def test_numbers_are_paired_by_seed(runs: Runs) -> None:
    arms = [
        [finished(runs, arm, seed, gradient_variance=lambda i, f=factor: f * i) for seed in (0, 1)]
        for arm, factor in (("better", 3.0), ("plain", 1.0))
    ]
    np.testing.assert_allclose(differences("gradient_variance", *arms), [math.log(3)] * 2)


def test_curves_hold_the_canary_and_the_spread_of_rewards(runs: Runs) -> None:
    run = finished(runs, "plain", 0)
    assert curve(run, "micro_clip") == [(0, 0.0), (5, 0.05), (10, 0.1), (15, 0.15), (20, 0.2)]
    assert [at for at, _ in curve(run, "micro_clip", "reinforce")] == [10, 15, 20]  # from where the stage began
    assert [at for at, _ in curve(run, "micro_clip", "cold_start")] == [0, 5, 10]
    assert curve(run, "micro_clip", "another") == []
    assert (
        curve(run, "spread:micro_clip")[0] == (1, pytest.approx(0.11)) and len(curve(run, "spread:micro_clip")) == 10
    )
    assert run.trained.first_deviations["micro_clip"] == 0.5


def test_unequal_passes_are_told(runs: Runs) -> None:
    def spent(arm: str, share: float) -> Record:
        item = Item(arm, 0)
        method, run = runs.study.run(arm, 0)
        write_run(runs.place(item), method, run, spend=share)
        return record_of(item.name, "0" * 64, runs.place(item), None, 0.0)

    better = spent("better", 1.0)
    assert equal_passes([better, spent("plain", 1.0)]) == "" == equal_passes([])
    assert equal_passes([better, spent("plain", 1.05)]) == ""  # within the last iterations: 100 + 50 passes
    told = equal_passes([better, spent("plain", 1.2)])
    assert told == "network passes differ: better-s0 1,500, plain-s0 1,800"


def test_every_measure_is_described_and_says_what_it_needs() -> None:
    assert NUMBERS.keys() == TEXTS.keys()
    assert described("area:micro_clip:cold_start", str.upper) == (
        "mean of MICRO_CLIP over the cold start (canary)",
        "",
    )
    assert described("gap:a:b", str.upper) == ("gain in A beyond the gain in B", "standard deviations of images")
    assert described("gradient_variance", str)[1] == "ln of the ratio"
    assert metrics_of("gap:a:b") == (["a", "b"], []) and metrics_of("set:a") == (["a"], [])
    assert (
        metrics_of("area:a:stage") == ([], ["a"])
        and metrics_of("a") == (["a"], [])
        and metrics_of("seconds_per_iteration") == ([], [])
    )


def fixed(**values: list[float]) -> Record:
    """A run of two prompts of two images with chosen values."""

    def evidence(p1: float, p2: float, q1: float, q2: float) -> Evidence:
        images = np.array([p1, p2, q1, q2])
        return Evidence(
            means_P=[(p1 + p2) / 2, (q1 + q2) / 2], mean=float(images.mean()), deviation=float(images.std())
        )

    found = Benchmarked(
        prompts_digest="1" * 64, images_per_prompt=2, versions=dict.fromkeys(values, 1), sets={"s": 1.0},
        evidence={metric: evidence(*of) for metric, of in values.items()}, absent={"c": "no weights"}, seconds=1.0,
        provenance={},
    )  # fmt: skip
    return Record(name="one", digest="0" * 64, training=None, benchmark=found)


def test_a_gap_is_in_deviations_of_the_second_arms_images() -> None:
    first, second = fixed(a=[4, 6, 6, 8], b=[1, 1, 1, 1]), fixed(a=[-1, 1, -1, 1], b=[-3, 3, -3, 3])
    # a gained 5 and 7 at a deviation of 1, b gained 1 and 1 at a deviation of 3
    found = differences("gap:a:b", [first], [second])
    np.testing.assert_allclose(found, [[5 - 1 / 3, 7 - 1 / 3]])


def test_the_deviation_of_an_arm_is_that_of_all_its_images() -> None:
    first = [fixed(a=[0, 0, 0, 0], b=[0, 0, 0, 0])] * 2
    second = [fixed(a=[-1, 1, -1, 1], b=[2, 2, 2, 2]), fixed(a=[5, 5, 7, 9], b=[4, 4, 4, 4])]
    of = [np.std([-1, 1, -1, 1, 5, 5, 7, 9]), np.std([2] * 4 + [4] * 4)]
    a_SP, b_SP = np.array([[0, 0], [5, 8]]), np.array([[2, 2], [4, 4]])
    np.testing.assert_allclose(differences("gap:a:b", first, second), -a_SP / of[0] + b_SP / of[1])


def test_runs_of_two_versions_of_a_metric_are_not_compared() -> None:
    one = fixed(a=[0, 1, 2, 3])
    other = one.model_copy(update={"benchmark": one.benchmarked.model_copy(update={"versions": {"a": 2}})})
    assert differences("a", [one], [one]).tolist() == [[0, 0]]
    for measure in ("a", "set:a", "gap:a:a"):
        with pytest.raises(UserError, match="different versions"):
            differences(measure, [one], [other])


def test_what_a_run_has_no_value_of_is_told_with_its_reason() -> None:
    one = fixed(a=[0, 1, 2, 3])
    assert number("set:s", one) == 1.0
    for ask, reason in (
        (lambda: number("set:c", one), "one: no value of c: no weights"),
        (lambda: one.evidence("d"), "one: no value of d: its suite does not hold it"),
        (lambda: curve(one, "a"), "one: was not trained here"),
        (lambda: one.model_copy(update={"benchmark": None}).evidence("a"), "one: was not benchmarked"),
    ):
        with pytest.raises(UserError, match=reason):
            ask()
