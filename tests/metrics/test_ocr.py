import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import metrics
from metrics.base import Batch, Prompt, UserError
from metrics.encoders import ocr_engines
from metrics.ocr import OcrRapid, levenshtein, ocr_score, target_of
from tests.studies import ocr as ocr_study

GOLDEN = Path(__file__).parents[1] / "golden/composition/ocr_vectors_240.jsonl.gz"


def test_every_recorded_reward_of_flow_grpo_is_met() -> None:
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 240
    for case in cases:
        found = ocr_score([tuple(line) for line in case["lines"]], target_of(case["prompt"]))
        assert found == pytest.approx(case["reward"], abs=1e-12)


@pytest.mark.parametrize(
    ("lines", "score"),
    [
        (["HELLO WORLD"], 1.0),
        (["Hello", "Wor1d"], 0.9),
        (["xxHelloWorldyy"], 1.0),
        ([], 0.0),
        (["World", "Hello"], 0.2),
        (["Helo Wrld"], 0.8),
        (["abcdefghijklmnopqrstuvwxyz"], 0.0),
        (["Hello"], 0.5),
    ],
)
def test_worked_examples(lines: list[str], score: float) -> None:
    assert ocr_score([(line, 0.9) for line in lines], "Hello World") == pytest.approx(score, abs=1e-12)


def test_lines_without_confidence_are_not_read() -> None:
    assert ocr_score([("Hello", 0.0), ("World", 0.5)], "Hello World") == 0.5


def test_a_line_of_any_confidence_above_0_is_read_whole() -> None:
    assert ocr_score([("Hello", 1e-6), ("World", 0.5)], "Hello World") == 1.0
    assert ocr_score([("Hello", 1.0)], "Hello") == ocr_score([("Hello", 0.01)], "Hello") == 1.0


def test_rapid_s_own_confidences_reach_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(txts=("OPEN", "24"), scores=(0.0, 0.25))
    seen: list[list[int]] = []

    def engine(image: np.ndarray, use_cls: bool) -> SimpleNamespace:
        seen.append(image[0, 0].tolist())
        assert not use_cls
        return told

    monkeypatch.setattr(ocr_engines.RapidOcr, "_engine", staticmethod(engine))
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    lines = ocr_engines.rapid("cpu")["lines"].forward([image])[0]
    assert lines == [("OPEN", 0.0), ("24", 0.25)]
    assert seen == [[0, 0, 200]]  # blue first
    assert ocr_score(lines, "24") == 1.0
    assert ocr_score(lines, "OPEN") == 0.0


def plain_distance(a: str, b: str) -> int:
    """The textbook's recursion, on short texts."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        plain_distance(a[1:], b) + 1, plain_distance(a, b[1:]) + 1, plain_distance(a[1:], b[1:]) + (a[0] != b[0])
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_the_distance_is_levenshtein_s(a: str, b: str) -> None:
    assert levenshtein(a, b) == plain_distance(a, b)


@given(st.lists(st.text("aBc d", max_size=6), max_size=3), st.text("abC", min_size=1, max_size=6))
def test_a_score_lies_in_0_1_and_ignores_blanks_and_ascii_case(lines: list[str], target: str) -> None:
    score = ocr_score([(line, 1.0) for line in lines], target)
    assert 0 <= score <= 1
    read = "".join(lines).replace(" ", "").lower()
    assert (score == 1) == (target.lower() in read)
    assert ocr_score([(" ".join(line).swapcase(), 1.0) for line in lines], target.upper()) == score


@pytest.mark.parametrize("prompt", ["a sign", 'a sign "OPEN', 'a sign "" and "x"', 'a sign " "'])
def test_a_prompt_without_a_text_to_show_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="OCR prompt"):
        target_of(prompt)


def test_what_was_read_is_evidence() -> None:
    batch = Batch(prompts=[Prompt(text='a sign that says "CAFÉ"')], seeds=[0])
    rows = OcrRapid().measure({"ocr/rapid:lines": [[("CAFE", 0.75)]]}, batch)
    assert rows["target"] == ["CAFÉ"]
    assert rows["lines"] == ['[["CAFE", 0.75]]']
    assert float(rows["score"][0]) == 0.75


def sign(text: str, *, angle: float = 0.0, noise: float = 0.0) -> Image.Image:
    """A picture of dark letters on a light ground."""
    picture = Image.new("RGB", (420, 160), (235, 230, 220))
    ImageDraw.Draw(picture).text((30, 55), text, (25, 30, 60), ImageFont.load_default(40))
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(235, 230, 220))
    pixels = np.asarray(picture) + np.random.default_rng(0).normal(0, noise, (160, 420, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_the_rapid_engine_reads_real_text() -> None:
    pytest.importorskip("rapidocr")
    pictures = [sign("GRAND OPENING"), sign("Cold Brew 24", angle=5, noise=8), sign("Lost Cat")]
    prompts = [f'a sign that says "{text}"' for text in ("Grand Opening", "cold brew 24", "Found Dog")]
    scores = metrics.load("ocr_rapid")(pictures, prompts).tolist()
    assert scores[:2] == [1.0, 1.0]
    assert scores[2] < 0.5


def test_a_sample_of_the_study_of_printed_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        ocr_study, "CONDITIONS", {"clean": ocr_study.Condition(), "both": ocr_study.CONDITIONS["both"]}
    )
    texts, out = ocr_study.targets(5), tmp_path / "study" / "ocr.jsonl"
    scores = ocr_study.study(texts, out)
    assert {name: len(values) for name, values in scores.items()} == {"clean": 5, "wrong": 5, "both": 5}
    assert np.mean(scores["clean"]) >= ocr_study.BAR
    assert max(scores["wrong"]) < 0.6 < np.mean(scores["both"])
    written = out.read_text()
    cut = "".join(written.splitlines(keepends=True)[:4]) + '{"condition": "cl'
    out.write_text(cut)  # as a kill leaves it
    assert ocr_study.study(texts, out) == scores
    assert out.read_text() == written
    with pytest.raises(UserError, match=r"target 0 is .*pass another --out"):
        ocr_study.study(texts[::-1], out)


def test_a_missing_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr_engines, "find_spec", lambda name: None)
    for name in ("ocr/rapid", "ocr/paddle"):
        weights = {"ocr/rapid": ocr_engines.rapid, "ocr/paddle": ocr_engines.paddle}[name]("cpu")["lines"].weights
        assert weights is not None
        assert "is not installed; pip install" in str(weights.missing())
        with pytest.raises(UserError, match="pip install"):
            weights.check()


def test_models_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(ocr_engines, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    weights = ocr_engines.rapid("cpu")["lines"].weights
    assert "another version of 'rapidocr'" in str(weights.missing())
    for file in weights.entry.files:
        (tmp_path / "models" / file.name).write_bytes(b"x")
    assert "1 bytes, should be 9,929,594" in str(weights.missing())


class Paddle2:
    """PaddleOCR 2.9's interface, with the options that it is made with; remembers the first pixel it saw."""

    seen: ClassVar[list[int]]

    def __init__(self, *, use_angle_cls: bool, lang: str, use_gpu: bool, show_log: bool) -> None:
        assert (use_angle_cls, lang, use_gpu, show_log) == (False, "en", False, False)

    def ocr(self, img: np.ndarray, det: bool = True, rec: bool = True, cls: bool = True) -> list[Any]:
        assert det and rec and not cls
        Paddle2.seen = img[0, 0].tolist()
        return [[[[[0, 0], [1, 0], [1, 1], [0, 1]], ("OPEN", 0.98)]]]


class Result(dict[str, Any]):
    """PaddleX's results are dicts of a class of their own."""


class Paddle3:
    """PaddleOCR 3's: `ocr` is there too, refuses `cls`, and answers as `predict` does."""

    def __init__(
        self,
        *,
        use_doc_orientation_classify: bool | None = None,
        use_doc_unwarping: bool | None = None,
        use_textline_orientation: bool | None = None,
        lang: str | None = None,
        device: str | None = None,
    ) -> None:
        assert (use_doc_orientation_classify, use_doc_unwarping, use_textline_orientation) == (False,) * 3
        assert (lang, device) == ("en", "cpu")

    def predict(self, input: np.ndarray) -> list[Result]:
        Paddle2.seen = input[0, 0].tolist()
        return [Result(input_path=None, rec_texts=["OPEN", "24"], rec_scores=[0.5, 1.0], rec_boxes=np.zeros((2, 4)))]

    def ocr(self, img: np.ndarray) -> list[Result]:
        return self.predict(img)


@pytest.mark.parametrize(
    ("version", "kind", "lines"),
    [("2.9.1", Paddle2, [("OPEN", 0.98)]), ("3.1.0", Paddle3, [("OPEN", 0.5), ("24", 1.0)])],
)
def test_paddle_is_called_as_upstream_does(
    version: str, kind: type, lines: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paddleocr", SimpleNamespace(PaddleOCR=kind))
    monkeypatch.setattr(ocr_engines, "find_spec", lambda name: object())
    monkeypatch.setattr(ocr_engines, "_version", lambda package: version)
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200  # red; upstream hands RGB over as it is
    assert ocr_engines.paddle("cpu")["lines"].forward([image]) == [lines]
    assert Paddle2.seen == [200, 0, 0]


def test_an_engine_that_answers_garbage_is_an_error_not_a_score() -> None:
    assert ocr_engines.lines_of_version_2([None]) == []
    for read in (ocr_engines.lines_of_version_2, ocr_engines.lines_of_version_3):
        with pytest.raises(UserError, match="PaddleOCR answered"):
            read({"error": 1})
