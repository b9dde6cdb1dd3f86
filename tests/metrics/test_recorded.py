import json
from pathlib import Path
from typing import Any

import pytest

import metrics
from metrics.base import Batch, Prompt, UserError, make
from metrics.geneval.verdict import Detected
from metrics.loaded import Scorer
from metrics.recorded import ANSWERS, DETECTIONS, RecordedFile, read_answers, read_detections

DOG = Prompt(
    text="a red dog",
    id="00012",
    category="colors",
    metadata={"include": [{"class": "dog", "count": 1, "color": "red"}]},
)


def record(folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, *lines: Any) -> RecordedFile:
    path = folder / "recorded.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    monkeypatch.setenv(variable, str(path))
    return RecordedFile(variable)


def test_recorded_detections_are_judged_by_prompt_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_picture: Any
) -> None:
    red, blue = [0, 0, 9, 9, 0.8, "red"], [0, 0, 9, 9, 0.8, "blue"]
    record(
        tmp_path,
        monkeypatch,
        DETECTIONS,
        {"path": "out/00012/samples/0001.png", "detections": {"dog": [blue]}},
        {"prompt_id": "00012", "seed": 0, "detections": {"dog": [red], "cat": []}},
    )
    pictures = [noise_picture(16, 16, 0)] * 2
    scorer = Scorer(["geneval.recorded"])
    rows = scorer.score(pictures, Batch(prompts=[DOG, DOG], seeds=[0, 1]))["geneval.recorded"]
    assert rows["score"].tolist() == [1.0, 0.0]
    assert rows["reason"] == ["", "expected red dog>=1, found 0 red; and 1 blue"]
    assert scorer.weights_digest("geneval.recorded")
    with pytest.raises(UserError, match="nothing recorded for prompt '00012', picture 2"):
        scorer.score(pictures[:1], Batch(prompts=[DOG], seeds=[2]))


def test_recorded_answers_of_mplug_are_scored_as_the_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_picture: Any
) -> None:
    lines = [{"item_id": "a", "tile": 0, "qid": q, "answer": a} for q, a in ((1, "yes"), (2, "Yes"))]
    record(tmp_path, monkeypatch, ANSWERS, *lines)
    questions = [
        {"id": q, "question": "?", "dependency": "0", "tuple": "entity - whole (x)", "row": 5} for q in (1, 2)
    ]
    prompt = Prompt(text="a", id="a", metadata={"questions": questions})
    rows = Scorer(["dpg.recorded"]).score([noise_picture(16, 16, 0)], Batch(prompts=[prompt], seeds=[0]))
    assert rows["dpg.recorded"]["score"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"recorded.jsonl:1: not a line of JSON"),
        ("[]", "expected an object, found a list"),
        ({"detections": {}}, "names no picture"),
        ({"prompt_id": "a", "seed": 0}, "'detections' must be an object"),
        ({"prompt_id": "a", "seed": 0, "detections": {"dog": [[1, 2, 3]]}}, "dog: .* is no .x1, y1"),
        ({"prompt_id": "a", "seed": 0, "detections": {"dog": [[1, 2, 3, 4, float("nan")]]}}, "is no .x1, y1"),
    ],
)
def test_bad_records_are_one_clear_line(
    line: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        read_detections(record(tmp_path, monkeypatch, DETECTIONS, line))


def test_what_stands_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = {"prompt_id": "a", "seed": 0, "detections": {}}
    with pytest.raises(UserError, match="picture 0 stands twice"):
        read_detections(record(tmp_path, monkeypatch, DETECTIONS, picture, picture))
    answer = {"item_id": "a", "tile": 0, "qid": 1, "answer": "no"}
    with pytest.raises(UserError, match="question 1 of 'a', tile 0 is answered twice"):
        read_answers(record(tmp_path, monkeypatch, ANSWERS, answer, answer))
    with pytest.raises(UserError, match="needs item_id, tile, qid and answer"):
        read_answers(record(tmp_path, monkeypatch, ANSWERS, {"item_id": "a"}))


def test_without_a_file_the_metric_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DETECTIONS, raising=False)
    assert "set FEWSTEP_BENCH_DETECTIONS" in str(Scorer(["geneval.recorded"]).missing("geneval.recorded"))
    monkeypatch.setenv(DETECTIONS, "/nowhere.jsonl")
    assert "no such file" in str(Scorer(["geneval.recorded"]).missing("geneval.recorded"))


def test_averages_of_the_same_verdicts() -> None:
    import torch

    prompts = [Prompt(text=p, id=p, category=c) for p, c in (("a", "x"), ("a", "x"), ("b", "x"), ("c", "y"))]
    rows = {"score": torch.tensor([1.0, 0.0, 0.0, 1.0])}
    best = make("geneval.prompts").summarise(rows, prompts).per_image_N
    assert best is not None
    assert best.tolist() == [1, 1, 0, 1]
    assert [make(name).card.aggregate for name in ("geneval", "geneval.images")] == ["categories", "prompts"]


def test_flow_grpo_s_two_scores_are_the_soft_and_the_strict_one() -> None:
    two = {"dog": [Detected((0, 0, 9, 9), 0.8, "red"), Detected((0, 0, 9, 9), 0.7, "red")]}
    batch = Batch(prompts=[DOG], seeds=[0])
    feature = {"geneval/mmdet:detections-swapped": [two]}
    soft, strict = (make(f"geneval.flow_grpo{end}").measure(feature, batch) for end in ("", "_strict"))
    assert (soft["score"].tolist(), soft["strict"].tolist(), strict["score"].tolist()) == ([0.0], [0.0], [0.0])
    one = {"geneval/mmdet:detections-swapped": [{"dog": two["dog"][:1]}]}
    assert make("geneval.flow_grpo_strict").measure(one, batch)["score"].tolist() == [1.0]
    assert metrics.load("geneval.flow_grpo").card.variant == "flow_grpo"


def test_flow_grpo_s_accuracy_is_the_official_verdict_on_its_detections() -> None:
    """Extra objects are free to the official verdict and a failure to the strict one."""
    two = {"dog": [Detected((0, 0, 9, 9), 0.8, "red"), Detected((0, 0, 9, 9), 0.7, "red")]}
    batch, feature = Batch(prompts=[DOG], seeds=[0]), {"geneval/mmdet:detections-swapped": [two]}
    metric = make("geneval.flow_grpo_accuracy")
    assert metric.features == make("geneval.flow_grpo").features
    assert metric.measure(feature, batch)["score"].tolist() == [1.0]
    assert metric.card.aggregate == "prompts"
