"""The whole study on a trainer of no time: hours, pauses, what is shared, what fails, and what it writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.config import UserError
from leaderboards.studies import Claims, read_study
from tests.trainers.claims.fake import PLAN, Benchmarks, Trainings, write_plan, write_run
from trainers import run as run_module
from trainers.checkpoint import STATE, held, load_state, read_settings, stage_state
from trainers.claims.__main__ import Arguments, main
from trainers.claims.record import Records, read_log
from trainers.claims.report import claims_of
from trainers.claims.runs import Runs, passes_per_second
from trainers.claims.schedule import UNTRAINED, Item
from trainers.study import donate_stage

ORDER = ["better-s0", "plain-s0", "better-s1", "plain-s1", "better-s2", "plain-s2", "other-s0", "other-s1"]


class Stage:
    """A study's folders with the fakes in place."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        write_plan(folder)
        self.trainings, self.benchmarks = Trainings(), Benchmarks()
        self.use(self.trainings)

    def use(self, trainings: Trainings) -> None:
        self.trainings = trainings
        self.patch.setattr(run_module, "train", trainings)
        self.patch.setattr(benchmarks, "evaluate", self.benchmarks, raising=False)

    def call(self, **changes: object) -> int:
        settings = {
            "plan": str(self.folder / "tiny.toml"),
            "out": self.folder / "runs",
            "study": self.folder / "s.json",
        }
        return main(Arguments(**{**settings, **changes}))  # type: ignore[arg-type]

    def runs(self, plan: str = PLAN) -> Runs:
        return Runs(write_plan(self.folder, plan), self.folder / "runs", Records(self.folder / "s" / "runs"))

    def study(self) -> Claims:
        found = read_study(self.folder / "s.json")
        assert isinstance(found, Claims)
        return found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_the_whole_study_from_nothing_to_verdicts(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.call(hours=1.0) == 0
    assert stage.trainings.calls == ORDER
    assert stage.benchmarks.names == [*ORDER[:6], "teacher", *ORDER[6:]]
    verdicts = {claim.id: claim.verdict for claim in stage.study().claims}
    assert verdicts == {"first": "holds", "second": "holds", "third": "holds"}
    first = stage.study().claims[0]
    assert first.effect is not None and first.effect.value == pytest.approx(0.3, abs=0.02)
    assert (first.seeds, first.prompts, first.images_per_prompt) == ([0, 1, 2], 30, 2)
    assert [claim.iterations for claim in stage.study().claims] == [[], [], []]  # as many in both arms
    assert [figure.id for figure in stage.study().figures] == ["curves", "bars", "plane"]
    assert sorted(path.name for path in (stage.folder / "s").glob("*.svg")) == ["bars.svg", "curves.svg", "plane.svg"]
    assert "9 of 9 runs; 3 claims: holds: 3" in capsys.readouterr().out
    assert stage.call(hours=1.0) == 0 and len(stage.trainings.calls) == len(ORDER)  # nothing is done twice


def test_too_few_hours_judge_little_and_the_next_call_adds(stage: Stage) -> None:
    # every training takes at least 15 s by the plan, every benchmark 10
    stage.call(hours=9 / 3600)
    assert stage.trainings.calls == []
    assert {claim.verdict for claim in stage.study().claims} == {"not judged"}
    assert [(claim.seeds, claim.seeds_needed) for claim in stage.study().claims] == [([], 3), ([], 2), ([], 2)]
    stage.call(hours=1.0)
    assert {claim.verdict for claim in stage.study().claims} == {"holds"}


def test_no_hours_write_the_study_of_what_is_there(stage: Stage) -> None:
    runs = stage.runs()
    for name in ("better-s0", "plain-s0", "better-s1", "plain-s1"):
        runs.advance(Item(name[:-3], int(name[-1])), until=float("inf"))
    stage.call(hours=0.0)
    first = stage.study().claims[0]
    assert first.verdict == "not judged" and first.seeds == [0, 1] and first.seeds_needed == 3
    assert first.effect is not None  # shown, not judged


def test_a_paused_training_goes_on_first_at_the_next_call(stage: Stage) -> None:
    stage.use(Trainings(seconds=0.3))
    slow = PLAN.replace("passes_per_second = 100.0", "passes_per_second = 1e9").replace(
        "benchmark_seconds = 10.0", "benchmark_seconds = 0.0"
    )
    write_plan(stage.folder, slow)
    stage.call(hours=0.2 / 3600)
    assert stage.trainings.calls == ["better-s0"]
    assert stage.runs(slow).state(Item("better", 0)) == "begun"
    stage.use(Trainings())
    stage.call(hours=1.0)
    assert stage.trainings.calls == ORDER


def test_a_cold_start_is_reckoned_once_a_seed(stage: Stage) -> None:
    runs = stage.runs()
    shared: set[str] = set()
    assert runs.passes_left(Item("better", 0), shared) == 1500
    assert runs.passes_left(Item("plain", 0), shared) == 500
    assert runs.passes_left(Item("plain", 1), shared) == 1500
    assert runs.passes_left(Item("other", 0), shared) == 1500  # another guidance: a cold start of its own
    assert runs.passes_left(Item("plain", 0)) == 1500  # nobody has trained it yet
    runs.advance(Item("better", 0), until=float("inf"))
    assert runs.passes_left(Item("plain", 0)) == 500
    assert runs.passes_left(Item("better", 0)) == 0
    assert runs.seconds(Item("teacher", UNTRAINED)) == pytest.approx(runs.benchmark_seconds)


def test_the_pace_is_that_of_the_logs(stage: Stage) -> None:
    study = write_plan(stage.folder)
    runs = stage.runs()
    assert runs.pace("plain") == 100.0  # the plan's guess
    method, run = study.run("plain", 0)
    write_run(stage.folder / "runs" / "plain-s0", method, run)
    runs.look()
    # 100 passes in 2 s, then 50: on the whole 1500 passes in 40 s
    assert runs.pace("plain") == pytest.approx(1500 / 40)
    assert runs.pace("other") == runs.pace("plain")  # of its method


def test_a_pause_between_two_lines_is_no_training() -> None:
    def lines(times: list[float]) -> list[dict[str, object]]:
        return [{"passes": 100 * n, "volatile": {"time": at}} for n, at in enumerate(times)]

    assert passes_per_second(lines([0, 1, 2, 3, 4])) == pytest.approx(100)
    assert passes_per_second(lines([0, 1, 2, 3, 10_000])) == pytest.approx(400 / (3 + 20))
    assert passes_per_second(lines([0, 1])) is None


def test_a_log_that_a_kill_has_cut_is_read_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"passes": 1}\n{"pas')
    assert read_log(tmp_path) == [{"passes": 1}] and read_log(tmp_path / "none") == []


def test_an_arm_that_cannot_be_trained_does_not_keep_the_others_from_it(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.use(Trainings(broken="other"))
    assert stage.call(hours=1.0) == 2
    assert "other-s0: " in capsys.readouterr().err
    assert {claim.id: claim.verdict for claim in stage.study().claims} == {
        "first": "holds", "second": "not judged", "third": "holds"
    }  # fmt: skip


def test_a_finished_run_keeps_only_what_others_may_start_from(stage: Stage) -> None:
    stage.call(hours=1.0)
    left = sorted(str(p.relative_to(stage.folder / "runs")) for p in (stage.folder / "runs").glob("*/*.pt"))
    # of better and plain, which share the cold start of a seed, the first has it
    assert [p for p in left if "cold_start" in p] == [
        "better-s0/after-cold_start.pt", "better-s1/after-cold_start.pt", "better-s2/after-cold_start.pt",
        "other-s0/after-cold_start.pt", "other-s1/after-cold_start.pt",
    ]  # fmt: skip
    assert not [p for p in left if p.endswith("checkpoint.pt")]


def test_what_another_call_is_at_work_on_is_left_to_it(stage: Stage) -> None:
    with held(stage.folder / "runs" / "plain-s0"):
        stage_state(stage.folder / "runs" / "plain-s0", "cold_start").write_text("the end of it")
        assert stage.call(hours=1.0) == 0
        assert [name for name in stage.trainings.calls if name == "plain-s0"] == []
        assert stage.study().claims[0].seeds == [1, 2]
    stage.call(hours=1.0)
    assert stage.study().claims[0].seeds == [0, 1, 2]


def test_a_call_that_comes_an_instant_too_late_leaves_the_run_to_the_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = stage.folder / "runs" / "plain-s0"
    monkeypatch.setattr("trainers.claims.runs.is_held", lambda folder: False)  # it looked just before
    with held(taken):
        assert stage.call(hours=1.0) == 0
    assert "plain-s0" not in stage.trainings.calls and not stage.runs().record(Item("plain", 0))
    assert stage.study().claims[0].seeds == [1, 2]


def test_a_cold_start_that_another_call_is_training_is_waited_for(stage: Stage) -> None:
    folder = stage.folder / "runs"
    runs = stage.runs()
    better, plain = Item("better", 0), Item("plain", 0)  # one cold start for both
    with held(folder / "better-s0"):
        assert not runs.free(better) and not runs.free(plain)
        assert runs.free(Item("plain", 1)) and runs.free(Item("other", 0)) and runs.free(Item("teacher", UNTRAINED))
        (folder / "plain-s0").mkdir()
        (folder / "plain-s0" / STATE).write_text("half")
        assert runs.free(plain)  # begun before: it has its own
        (folder / "plain-s0" / STATE).unlink()
        stage_state(folder / "better-s0", "cold_start").write_text("the end of it")
        assert runs.free(plain) and not runs.free(better)
    assert runs.free(better)


def test_two_calls_at_a_time_train_no_cold_start_twice(stage: Stage) -> None:
    with held(stage.folder / "runs" / "better-s0"):
        stage.call(hours=1.0)
    # plain-s0 waited in vain: the other call has not come to the end of its cold start
    assert stage.trainings.calls == [name for name in ORDER if name not in ("better-s0", "plain-s0")]
    stage.call(hours=1.0)
    assert stage.trainings.calls[-2:] == ["better-s0", "plain-s0"]


def test_trainings_that_took_unequal_passes_are_not_judged(stage: Stage) -> None:
    study = write_plan(stage.folder)
    runs = stage.runs()
    method, run = study.run("other", 1)
    write_run(runs.place(Item("other", 1)), method, run, spend=1.2)
    stage.call(hours=1.0)
    second = stage.study().claims[1]
    assert second.verdict == "not judged" and second.effect is None
    assert "network passes differ" in second.notes and "other-s1 1,800" in second.notes


def test_equal_passes_in_unequal_iterations_are_told(stage: Stage) -> None:
    assert stage.call(hours=1.0) == 0
    for path in (stage.folder / "s" / "runs").glob("plain-s*.json"):
        table = json.loads(path.read_text())
        table["training"]["stages"][0]["iterations"] = 30
        path.write_text(json.dumps(table))
    assert stage.call() == 0
    assert [claim.iterations for claim in stage.study().claims] == [[20, 40], [20, 40], []]
    assert "<br>20 and 40 iterations" in (stage.folder / "s.md").read_text()


def test_a_claim_against_its_own_start_compares_no_passes(stage: Stage) -> None:
    stage.use(Trainings(spend=1.0))
    assert stage.call(hours=1.0) == 0
    for path in (stage.folder / "s" / "runs").glob("plain-s*.json"):
        table = json.loads(path.read_text())
        table["training"]["network_passes"] = 100
        path.write_text(json.dumps(table))
    assert "network passes differ" in claims_of(stage.runs(), "c").claims[1].notes
    start = PLAN.replace("smallest = 0.2", 'smallest = 0.2\nat = "its start"\nnotes = "Against its start."')
    claim = claims_of(stage.runs(start), "c").claims[1]
    assert (claim.verdict, claim.notes, claim.at) == ("holds", "Against its start.", "its start")


def test_a_claim_at_equal_updates_asks_for_them(stage: Stage) -> None:
    assert stage.call(hours=1.0) == 0
    equal = PLAN.replace("smallest = 0.2", 'smallest = 0.2\nat = "equal updates"\nnotes = "Updates."')
    assert claims_of(stage.runs(equal), "c").claims[1].verdict == "holds"
    path = stage.folder / "s" / "runs" / "plain-s1.json"
    table = json.loads(path.read_text())
    table["training"]["stages"][0]["iterations"] += 2
    path.write_text(json.dumps(table))
    claim = claims_of(stage.runs(equal), "c").claims[1]
    assert claim.verdict == "not judged" and "updates differ: other-s1 20, plain-s1 22" in claim.notes


def test_levels_of_arms_and_holms_p_are_told(stage: Stage) -> None:
    assert stage.call(hours=1.0) == 0
    levels = (
        'levels = ["shapes_geneval", "set:micro_recall"]\n[[changes]]\ndate = "2026-11-22"\nwhat = "More seeds."\n'
    )
    told = claims_of(
        stage.runs(PLAN.replace("benchmark_seconds = 10.0\n", f"benchmark_seconds = 10.0\n{levels}")), "c"
    )
    arms = {arm.title: arm for arm in told.arms}
    assert set(arms) == {"teacher", "plain", "a better one", "other"}  # all that are benchmarked
    judge, recall = arms["plain"].levels
    assert judge is not None and judge.value == pytest.approx(0.4, abs=0.05) and judge.low is not None
    assert recall is not None and told.measures[0].startswith("micro GenEval")
    assert (arms["plain"].seeds, arms["plain"].network_passes, arms["plain"].iterations) == (3, 1500, 20)
    assert (arms["teacher"].seeds, arms["teacher"].network_passes) == (0, 0)
    assert [change.what for change in told.changes] == ["More seeds."]
    first, second, _ = told.claims
    assert first.p is not None and first.p_holm == first.p  # of a single headline claim
    assert second.p_holm is None and second.p is None  # nothing varies in it


def test_an_arm_that_is_anothers_first_stage_is_not_trained_twice(stage: Stage) -> None:
    """It begins, and ends, with the state that the longer run has kept."""
    assert stage.call(hours=1.0) == 0
    alone = PLAN.replace("[arms.better]", '[arms.start]\nbase = "rtdmd"\nstages = ["cold_start"]\n\n[arms.better]')
    runs = stage.runs(alone)
    item = Item("start", 0)
    assert runs.passes_left(item) == 0
    method, run = runs.study.run("start", 0)
    donate_stage(method, run, runs.place(item))
    kept = stage_state(runs.place(Item("better", 0)), "cold_start")
    assert (runs.place(item) / STATE).read_bytes() == kept.read_bytes()


def test_listing_tells_passes_and_hours_and_trains_nothing(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.call(list=True) == 0 and stage.trainings.calls == []
    # three seeds of plain and better share cold starts, other has two of its own; ten seconds a benchmark
    passes, seconds = 3 * 2000 + 2 * 1500, (3 * 2000 + 2 * 1500) / 100 + 9 * 10
    assert (
        f"0 of 9 runs done; {passes:,} network passes and {seconds / 3600:.1f} hours to do" in capsys.readouterr().out
    )
    assert not (stage.folder / "s.json").exists()


def test_listing_shows_of_the_runs_only_what_is_to_do(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.call(hours=1.0) == 0
    capsys.readouterr()
    assert stage.call(list=True) == 0
    assert capsys.readouterr().out == "9 of 9 runs done; 0 network passes and 0.0 hours to do\n"
    (stage.folder / "s" / "runs" / "plain-s1.json").unlink()
    assert stage.call(list=True) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8 of 9 runs done; ") and shown.splitlines()[-1] == shown.splitlines()[0]
    assert "plain-s1" in shown and "plain-s0" not in shown and "better-s1" not in shown


def test_the_same_evidence_gives_the_same_bytes(stage: Stage) -> None:
    stage.call(hours=1.0)
    before = (stage.folder / "s.json").read_bytes(), (stage.folder / "s.md").read_bytes()
    stage.call(hours=0.0)
    assert ((stage.folder / "s.json").read_bytes(), (stage.folder / "s.md").read_bytes()) == before
    assert json.loads(before[0])["kind"] == "claims"


def test_what_is_on_record_needs_no_folder_of_runs(stage: Stage) -> None:
    stage.call(hours=1.0)
    before = (stage.folder / "s.json").read_bytes()
    shutil.rmtree(stage.folder / "runs")  # another machine
    stage.call(hours=1.0)
    assert stage.trainings.calls == ORDER and len(stage.benchmarks.names) == 9  # as after the first call
    assert (stage.folder / "s.json").read_bytes() == before
    (stage.folder / "s" / "runs" / "plain-s1.json").unlink()
    stage.call(hours=1.0)
    assert stage.trainings.calls == [*ORDER, "plain-s1"]


def test_what_was_trained_and_is_not_on_record_keeps_its_log(stage: Stage) -> None:
    stage.call(hours=1.0)
    log, record = stage.folder / "runs" / "plain-s1" / "log.jsonl", stage.folder / "s" / "runs" / "plain-s1.json"
    before = log.read_text(), json.loads(record.read_text())["training"]
    (stage.folder / "runs" / "better-s1" / "log.jsonl").write_text("")  # of which plain-s1 could have its cold start
    record.unlink()
    stage.call(hours=1.0)
    assert stage.trainings.calls == ORDER
    assert (log.read_text(), json.loads(record.read_text())["training"]) == before


def test_a_record_of_other_settings_is_none(stage: Stage) -> None:
    stage.call(hours=1.0)
    shutil.rmtree(stage.folder / "runs")
    write_plan(stage.folder, PLAN.replace("guidance_scale = 2.0", "guidance_scale = 3.0"))
    stage.call(hours=0.0)
    assert [claim.verdict for claim in stage.study().claims] == ["holds", "not judged", "holds"]
    stage.call(hours=1.0)
    assert stage.trainings.calls == [*ORDER, "other-s0", "other-s1"]
    assert [claim.verdict for claim in stage.study().claims] == ["holds", "holds", "holds"]


def test_a_run_of_other_settings_is_not_taken_for_one_of_these(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.call(hours=1.0)
    write_plan(stage.folder, PLAN.replace("guidance_scale = 2.0", "guidance_scale = 3.0"))
    assert stage.call(hours=1.0) == 2  # its folder holds a student of the old ones
    assert "other-s0/run.json: trainer.guidance_scale was 2.0, now 3.0" in capsys.readouterr().err
    assert stage.study().claims[1].verdict == "not judged"


def test_a_damaged_record_is_told_by_its_place(stage: Stage) -> None:
    stage.call(hours=1.0)
    path = stage.folder / "s" / "runs" / "plain-s1.json"
    table = json.loads(path.read_text())
    for damage, told in (
        ("{", "Invalid JSON"),
        (json.dumps(table | {"training": table["training"] | {"network_passes": -1}}), "training.network_passes"),
        (json.dumps(table | {"name": "a/b"}), "name"),
    ):
        path.write_text(damage)
        with pytest.raises(UserError, match=f"{path}: .*{told}.*remove the file"):
            stage.call(hours=0.0)


def test_compiled_or_not_it_is_the_same_run(stage: Stage) -> None:
    stage.call(hours=1.0, compile=True)
    runs = stage.folder / "runs"
    assert all(read_settings(path)["backbone"]["compile"] for path in runs.glob("*/run.json"))
    kept = stage.runs().record(Item("better", 0))
    assert kept is not None and kept.trained.compiled
    (stage.folder / "s" / "runs" / "plain-s1.json").unlink()  # trained, and not recorded
    (stage.folder / "s" / "runs" / "other-s1.json").unlink()
    shutil.rmtree(runs / "other-s1")
    torch.save({"compiled": True}, stage_state(runs / "better-s1", "cold_start"))
    stage.call(hours=1.0)
    assert stage.trainings.calls == [*ORDER, "other-s1"]
    assert not read_settings(runs / "other-s1" / "run.json")["backbone"]["compile"]
    assert [stage.runs().record(Item(arm, 1)).trained.compiled for arm in ("better", "plain", "other")] == [
        True, True, False
    ]  # fmt: skip
    method, run = stage.runs().study.run("plain", 1)
    donate_stage(method, run, runs / "one-more")
    assert load_state(runs / "one-more") == {"compiled": True}


def test_a_digest_is_of_what_decides_a_run(stage: Stage) -> None:
    suite = stage.folder / "own.toml"
    task = '[[tasks]]\nname = "own"\nprompts = "micro"\nimages_per_prompt = 2\nmetrics = ["micro_clip"]\n'

    def digest(plan: str = PLAN, seed: int = 0, arm: str = "plain", of: str = task) -> str:
        suite.write_text(of)
        return write_plan(stage.folder, plan.replace('suite = "micro"', f'suite = "{suite}"')).digest(arm, seed)

    usual = digest()
    assert digest() == usual == digest(of=task.replace('"micro_clip"', '"micro_clip", "shapes_geneval"'))
    assert digest(PLAN.replace('title = "a better one"', 'title = "the better one"'), arm="better") == digest(
        arm="better"
    )
    others = [
        digest(seed=1),
        digest(arm="better"),
        digest(arm="teacher", seed=-1),
        digest(PLAN.replace('model = "somewhere"', 'model = "elsewhere"'), arm="teacher", seed=-1),
        digest(PLAN.replace("reinforce.budget_passes = 500", "reinforce.budget_passes = 600")),
        digest(of=task.replace("images_per_prompt = 2", "images_per_prompt = 3")),
    ]
    assert len({usual, *others}) == 1 + len(others)
