import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.explain import Arguments, main, page
from metrics.base import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with one prompt, two pictures and the evidence of four metrics, markup in its texts."""
    folder = tmp_path / "run"
    (folder / "set" / "images" / "p-1").mkdir(parents=True)
    (folder / "set" / "evidence").mkdir()
    (folder / "run.json").write_text("{}")
    questions = [{"id": 1, "question": "is <it> red?", "dependency": "0", "tuple": "attribute - color (red)"}]
    record = {"id": "p-1", "prompt": "a <b>dog</b>", "questions": questions, "vqa_list": [["How many?", "two"]]}
    (folder / "set" / "prompts.jsonl").write_text(json.dumps(record) + "\n")
    for seed in range(2):
        Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(folder / "set/images/p-1" / f"{seed}.png")
    write(folder, "geneval", score=[0.0, 1.0], reason=["expected dog>=1, found 0", ""], detections=[
        json.dumps({"cat": [[20, 10, 60, 30, 0.5, "blue"]]}), "{}",
    ])  # fmt: skip
    write(folder, "dpg", score=[0.0, 1.0], answers=['{"1": "no"}', '{"1": "yes"}'])
    write(folder, "geneval2", score=[0.25, 0.5], answers=['["<i>one</i>"]', '["two"]'], masses=["[0.25]", "[0.5]"])
    write(folder, "ocr_rapid", score=[0.5, 1.0], target=["OPEN"] * 2, lines=['[["0P<EN", 0.75]]', "[]"])
    return folder


def write(run: Path, metric: str, **columns: list[object]) -> None:
    table = pa.table({"prompt_id": ["p-1", "p-1"], "seed": [0, 1], **columns})
    pq.write_table(table, run / "set/evidence" / f"{metric}.parquet")


def test_a_page_shows_boxes_reasons_answers_and_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Arguments(run=run, prompt_id="p-1")) == 0
    text = (run / "explain-p-1.html").read_text()
    assert str(run / "explain-p-1.html") in capsys.readouterr().out
    for wanted in (
        "blue cat 0.50",
        "left:25.0%;top:25.0%;\nwidth:50.0%",
        "expected dog&gt;=1, found 0",
        "is &lt;it&gt; red?",
        "attribute - color (red)",
        "expected two",
        "0.250",
        "0P&lt;EN",
        "set, picture 1",
    ):
        assert wanted in text, wanted
    assert "<b>dog</b>" not in text
    assert "<i>one</i>" not in text
    assert text.count("data:image/png;base64,") == 8


def test_unknown_prompts_and_damaged_evidence_are_one_clear_line(run: Path) -> None:
    with pytest.raises(UserError, match="no prompt 'p1'; did you mean 'p-1'"):
        page(run, "p1")
    with pytest.raises(UserError, match="no run directory"):
        page(run / "set", "p-1")
    (run / "set/evidence/dpg.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"dpg.parquet: damaged"):
        page(run, "p-1")
