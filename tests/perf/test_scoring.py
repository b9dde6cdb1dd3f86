"""The benchmark of scoring: what it keeps of an interrupted start, and what it measures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metrics.features import Models
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.perf import scoring, scoring_worker
from tests.perf.scoring import BARS, Arguments, Rounds, Worker, print_case
from tests.perf.scoring_inputs import CASES, Work, architectures, random_state, write_pictures, write_weights

SETTINGS = {"threads": 2}


def test_finished_rounds_are_found_again_by_case_and_setting(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    Rounds(path, "a", SETTINGS).add({"ours": 1.0})
    Rounds(path, "b", SETTINGS).add({"ours": 2.0})
    Rounds(path, "a", SETTINGS).add({"ours": 3.0})
    assert Rounds(path, "a", SETTINGS).found == [{"ours": 1.0}, {"ours": 3.0}]
    assert Rounds(path, "a", {"threads": 1}).found == []


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    Rounds(path, "a", SETTINGS).add({"ours": 1.0})
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut])
        assert Rounds(path, "a", SETTINGS).found == [{"ours": 1.0}]
    Rounds(path, "a", SETTINGS).add({"ours": 2.0})
    assert [json.loads(line)["round"]["ours"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_a_second_start_measures_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(name: str, work: Work, threads: int) -> dict[str, float]:
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"ours": 1.0, "bare": 1.0}

    monkeypatch.setattr(scoring, "measure", measure)
    monkeypatch.setattr(scoring, "write_weights", lambda folder, identity: None)
    name = "clip_score_aesthetic"
    arguments = Arguments(prompts=1, images_per_prompt=1, side=32, rounds=2, case=(name,), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        scoring.main(arguments)
    scoring.main(arguments)
    scoring.main(arguments)
    assert measured == [name] * 3


def test_ratios_are_taken_within_a_round_and_held_to_their_bars(capsys: pytest.CaptureFixture[str]) -> None:
    slow = {"ours, first": 20.0, "ours": 10.0, "bare": 9.5, "readme": 99.0, "loaded": 12.5}
    rounds = [slow, {way: value / 5 for way, value in slow.items()}]
    assert print_case("a", rounds, 16, Arguments()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[-3:]] == [
        "readme / ours, first: 4.95 (bar 5.0, MISSED; rounds 4.95, 4.95)",
        "loaded / ours: 1.25 (bar 1.2, holds; rounds 1.25, 1.25)",
        "bare / ours: 0.95 (bar 0.92, holds; rounds 0.95, 0.95)",
    ]
    assert len(BARS) == 3


@pytest.mark.parametrize("name", CASES)
def test_weights_of_the_true_layout_are_scored_by_our_ways(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: Models = {}
    work = Work(folder=str(tmp_path), distinct_prompts=2, images_per_prompt=2, device="cpu", small=True)
    monkeypatch.setenv(FOLDER, str(tmp_path / "weights"))
    monkeypatch.setenv(SYNTHETIC, "1")
    write_pictures(tmp_path / "pictures", work.images, side=64)
    with architectures(small=True):
        for identity in CASES[name].weights:
            write_weights(tmp_path / "weights", identity)
        ours = scoring_worker.Ours(CASES[name].metrics, work, models)
        bare = scoring_worker.Bare(CASES[name].metrics, work, models)
        for one in work.by_prompt():
            ours(*one)
            bare(*one)
    assert models  # both ways share the weights
    assert not list((tmp_path / "weights").glob("*.tmp"))


def test_pictures_of_a_prompt_follow_each_other() -> None:
    work = Work(folder="/f", distinct_prompts=2, images_per_prompt=3, device="cpu", small=False)
    assert [[path.stem for path in paths] for _, paths in work.by_prompt()] == [["0", "1", "2"], ["3", "4", "5"]]
    assert len({text for text, _ in work.by_prompt()}) == 2


def test_random_weights_keep_activations_finite() -> None:
    state = random_state({"ln.weight": (4,), "ln.bias": (4,), "w": (1100, 1000), "logit_scale": ()}, torch.float16)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert state["ln.weight"].mean() > 0.9 > 0.1 > state["ln.bias"].abs().mean()
    assert state["logit_scale"].exp().item() == pytest.approx(100, rel=1e-2)
    assert 0.01 < state["w"].float().std() < 0.03


ECHO = """
import json, sys
from tests.perf.scoring_inputs import Work, serve
def work(text, pictures): print("noise of a library", text, len(pictures))
def dies(text, pictures): raise SystemExit(3)
serve({"work": work, "dies": dies}, Work(**json.loads(sys.argv[1])))
"""


def test_a_worker_answers_by_turns_whatever_its_libraries_print(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(folder=str(tmp_path), distinct_prompts=2, images_per_prompt=2, device="cpu", small=True)
    with Worker("echo", [sys.executable, "-c", ECHO], work, threads=1) as worker:
        assert all(0 <= worker.seconds("work", number) < 60 for number in (0, 1, 0))
    assert re.search(r"echo: peak of memory \d+\.\d GiB", capsys.readouterr().out)
    with pytest.raises(subprocess.CalledProcessError), Worker("echo", [sys.executable, "-c", ECHO], work, 1) as dying:
        dying.seconds("dies", 0)
