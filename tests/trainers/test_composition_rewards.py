"""GenEval, OCR and DPG-Bench as rewards of a training: verdicts without a gradient, read in batches, never twice."""

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.config import UserError, build
from benchmarks.models import read_training
from metrics import base, features
from metrics.base import Prompt
from metrics.dpg import Dpg, DpgCorrected
from metrics.features import Encoder, register_encoders
from metrics.ocr import OcrAccuracy, OcrRapid
from metrics.preprocessing import Uint8
from metrics.vqa.answerer import Answer, FunctionAnswerer
from metrics.vqa.encoders import encoders_of
from trainers.config import RunConfig
from trainers.loop import Loop
from trainers.prompts import read_training_prompts
from trainers.rewards import RewardConfig, load_rewards

IDS = ["shapes_geneval_soft", "toy_ocr", "toy_dpg"]
QUESTIONS = [
    {"id": 1, "question": "is it bright?", "dependency": "0", "tuple": "attribute - other (bright)"},
    {"id": 2, "question": "is it red?", "dependency": "1", "tuple": "attribute - color (red)"},
]


class Perceivers:
    """An engine and an answerer that see brightness and red, and remember how many pictures each call brought."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.answered: list[tuple[bytes, str]] = []

    def lines(self, images: Any) -> list[list[tuple[str, float]]]:
        self.read.append(len(images))
        return [[("red" if image[..., 0].mean() > image[..., 2].mean() else "rod", 0.9)] for image in images]

    def answer(self, image: np.ndarray, question: str, candidates: Any) -> Answer:
        self.answered.append((image.tobytes(), question))
        bright = image.mean() if "bright" in question else image[..., 0].mean()
        return Answer("yes" if bright > 120 else "no")


@pytest.fixture
def perceivers(monkeypatch: pytest.MonkeyPatch) -> Perceivers:
    made = Perceivers()
    monkeypatch.setattr(features, "_FACTORIES", copy(features._FACTORIES))

    @register_encoders("toy/ocr")
    def engine(device: torch.device) -> Mapping[str, Encoder]:
        return {"lines": Encoder(reads="image", forward=made.lines, preprocessing=Uint8)}

    @register_encoders("toy/vqa")
    def answerer(device: torch.device) -> Mapping[str, Encoder]:
        return encoders_of(lambda: FunctionAnswerer(made.answer), None, "float32")

    bases = {"toy_ocr": (OcrAccuracy, OcrRapid, "toy/ocr:lines"), "toy_dpg": (Dpg, DpgCorrected, "toy/vqa:dpg")}
    for identity, (kind, model, key) in bases.items():
        attributes = {"card": replace(model.card, id=identity), "features": (key,)}
        monkeypatch.setitem(base._METRICS, identity, type("Toy", (kind,), attributes))
    return made


def prompt_lines(folder: Path, **changes: Any) -> Path:
    include = [{"class": "circle", "count": 1, "color": "red"}]
    records = [
        {"prompt": f'a photo of a "red" {shape}', "tag": "colors", "include": include, "questions": QUESTIONS}
        for shape in ("circle", "square", "cross")
    ]
    records[-1] |= changes
    path = folder / "judged.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def settings(pipeline: Path, source: Path) -> RunConfig:
    table: dict[str, Any] = {
        "name": "judged",
        "device": "cpu",
        "log_every": 1,
        "backbone": {"path": str(pipeline), "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(source)},
        "rewards": [{"id": identity} for identity in IDS],
        "trainer": {"sampler": {"sampler": "cps", "eta": 0.9, "num_inference_steps": 3}},
        "stages": {"reinforce": {"iterations": 3, "settings": {"grpo": {"groups": 2, "group_size": 4}}}},
    }
    return build(RunConfig, table, "judged.toml")


def test_a_training_takes_all_three_as_rewards(pipeline_folder: Path, tmp_path: Path, perceivers: Perceivers) -> None:
    student = Loop("grpo", settings(pipeline_folder, prompt_lines(tmp_path)), tmp_path / "run").train()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for identity in IDS:
        values = [line[f"reward/{identity}"] for line in logged]
        assert len(values) == 3 and all(-14 <= value <= 1 for value in values)
    assert set(perceivers.read) == {8}  # a whole epoch's pictures in one call of the engine
    assert len(perceivers.answered) == len(set(perceivers.answered)) == 3 * 8 * 2
    record, _ = read_training(student)
    assert record.rewards == IDS and record.prompts_digest


def test_a_picture_that_comes_again_is_not_read_again(perceivers: Perceivers) -> None:
    bank = load_rewards([RewardConfig(id=identity) for identity in IDS], torch.device("cpu"))
    prompt = Prompt(
        text='a "red" circle',
        metadata={"include": [{"class": "circle", "count": 1}], "questions": QUESTIONS},
    )
    pictures = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0), requires_grad=True)
    first = bank.score(pictures, [prompt] * 3)
    again = bank.score(pictures, [prompt] * 3)
    assert perceivers.read == [3] and len(perceivers.answered) == 6
    for identity in IDS:
        assert torch.equal(first[identity], again[identity]) and not first[identity].requires_grad
    assert bank.differentiable == []


def test_prompts_that_a_reward_cannot_judge_end_the_training_before_it_begins(
    pipeline_folder: Path, tmp_path: Path, perceivers: Perceivers
) -> None:
    for changes, message in (
        ({"include": [{"class": "circle", "count": 0}]}, "shapes_geneval_soft: 1 of 3 prompts cannot be judged"),
        ({"prompt": "a photo of a cross"}, "toy_ocr: 1 of 3 prompts cannot be judged .*no text in double quotes"),
        ({"questions": QUESTIONS[1:]}, "toy_dpg: 1 of 3 prompts cannot be judged .*depends on 1, which does not"),
    ):
        with pytest.raises(UserError, match=message):
            Loop("grpo", settings(pipeline_folder, prompt_lines(tmp_path, **changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not perceivers.read


def test_a_declared_training_set_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_training_prompts("imagereward")[0].text
    monkeypatch.setenv("FEWSTEP_BENCH_PROMPTS", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m benchmarks\.prompts fetch geneval-train"):
        read_training_prompts("geneval-train")
    with pytest.raises(UserError, match="did you mean 'geneval-train'"):
        read_training_prompts("geneval-trian")
