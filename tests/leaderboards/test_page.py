"""The page: complete, self-contained, inert, and the same bytes every time."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards import page
from leaderboards.build import build
from leaderboards.hacking import as_number
from leaderboards.page.data import as_json, as_script
from leaderboards.store import publish, read_board
from tests.leaderboards.conftest import IMAGES, PROMPTS, evidence_table, gallery, result_of, training

Add = Callable[..., Path]
SCRIPT = "<script>alert('x')</script>"


class Site:
    """A built page, as a browser would read it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.html = (out / "index.html").read_text(encoding="utf-8")
        inside = re.search(r'<script type="application/json" id="board">(.*?)</script>', self.html, re.DOTALL)
        assert inside
        self.board: dict[str, Any] = json.loads(inside[1])

    def chunk(self, key: str) -> Any:
        text = (self.out / "data" / f"{key}.js").read_text(encoding="utf-8")
        name, _, content = text.removeprefix("fewstep.chunk(").partition(",")
        assert json.loads(name) == key
        return json.loads(content.rstrip().removesuffix(");"))

    def model(self, name: str) -> dict[str, Any]:
        (suite,) = self.board["suites"]
        return next(model for model in suite["models"] if model["name"] == name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Site]:
    monkeypatch.setattr(page, "plots", lambda: b"fewstep.chunk('plots',true);\n")  # bundling takes seconds

    def built() -> Site:
        build(tmp_path / "results", tmp_path / "site")
        return Site(tmp_path / "site")

    return built


def trained(**changes: Any) -> dict[str, Any]:
    return {"method": "rtdmd", "trained_on": ["score"], "training": training(**changes), "base": "teacher"}


def tags_of(text: str) -> list[tuple[str, dict[str, str | None]]]:
    found: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Reader().feed(text)
    return found


def test_board_holds_values_intervals_ranks_and_rewards(add: Add, site: Callable[[], Site]) -> None:
    add("teacher", 0.9)
    path = add("student", 0.6, model=trained())
    add("look", 0.6, status="partial")
    found = site()
    (suite,) = found.board["suites"]
    judge = next(i for i, column in enumerate(suite["columns"]) if column["metric"] == "judge")
    score = next(i for i, column in enumerate(suite["columns"]) if column["metric"] == "score")
    (entry,) = [e for e in read_board(path.parents[1]).entries if e.path == path]
    metric, cell = entry.result.tasks[0].metrics["judge"], found.model("student")["cells"][str(judge)]
    assert (cell["v"], cell["lo"], cell["hi"]) == pytest.approx((metric.value, metric.low, metric.high), rel=1e-5)
    assert "band" in cell and "t" not in cell
    assert found.model("student")["cells"][str(score)]["t"] == 1 and suite["columns"][score]["rewarded"]
    assert found.model("student")["verdict"] and not found.model("teacher")["verdict"]
    assert found.model("look")["status"] == "partial" and "band" not in found.model("look")["cells"][str(judge)]
    assert [model["name"] for model in suite["models"]] == ["teacher", "student", "look"]


def test_details_hold_report_curves_categories_and_the_command(add: Add, site: Callable[[], Site]) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model=trained())
    told = site().chunk("tiny/student.details")
    assert told["file"] == "tiny/student.json" and told["report"]["against"] == "teacher"
    assert told["training"]["curves"]["score"][0] == [0.0, 0.5]
    parts = next(iter(told["parts"].values()))
    assert set(parts["categories"]) == {"counting", "position"} and set(parts["splits"]) == {"seen", "unseen"}


def test_evidence_of_the_page_is_that_of_the_board(add: Add, site: Callable[[], Site]) -> None:
    path = add("student")
    found = site()
    told = found.chunk("tiny/compose.prompts")
    (entry,) = read_board(path.parents[1]).entries
    scores = entry.scores("compose", "score")
    index = next(i for i, c in enumerate(found.board["suites"][0]["columns"]) if c["metric"] == "score")
    grid = np.frombuffer(base64.b64decode(found.chunk("tiny/student.evidence")[str(index)]), "<f4")
    grid = grid.reshape(len(told["ids"]), len(told["seeds"]))
    assert grid.shape == (PROMPTS, IMAGES)
    for name, seed, value in zip(scores.prompt_ids, scores.seeds, scores.values_N, strict=True):
        assert grid[told["ids"].index(name), told["seeds"].index(seed)] == value


def test_an_image_without_evidence_is_empty_not_zero(add: Add, site: Callable[[], Site], tmp_path: Path) -> None:
    add("whole")
    part = evidence_table(prompts=PROMPTS - 4)
    publish(result_of(part, "part", status="partial"), part, tmp_path / "results")
    found = site()
    for name, missing in (("whole", 0), ("part", 4 * IMAGES)):
        for text in found.chunk(f"tiny/{name}.evidence").values():
            assert np.isnan(np.frombuffer(base64.b64decode(text), "<f4")).sum() == missing


def test_pictures_are_inside_the_data(add: Add, site: Callable[[], Site]) -> None:
    add("student")
    pictures = site().chunk("tiny/student.pictures")
    assert len(pictures) == 6 and all(one["uri"].startswith("data:image/png;base64,") for one in pictures)


def test_what_metrics_saw_stands_beside_its_picture_alone(add: Add, site: Callable[[], Site]) -> None:
    add("student")
    first, *others = site().chunk("tiny/student.pictures")
    assert first["seen"]["judge"] == {
        "boxes": [["red <b>dog</b> 0.90", 25.0, 50.0, 50.0, 25.0]],
        "weaker": 2,
        "reasons": ["expected dog>=2, found 1"],
        "table": [["How many?", "expected two", "said <i>one</i>"]],
    }
    assert [one["seen"] for one in others] == [{}] * 5


def test_papers_are_on_the_page_apart_from_the_board(add: Add, site: Callable[[], Site]) -> None:
    add("student")
    found = site()
    tables = found.chunk("papers")
    assert len(tables) == 24 and all(table["match"] for table in tables)
    assert "DMDR (ours)" not in found.html
    (table,) = [one for one in tables if one["id"] == "dmdr-v2-table2"]
    assert ["50", "34.7588", "5.6480", "22.1085", "27.1477"] in [row["cells"] for row in table["rows"]]


def test_page_asks_the_network_for_nothing(add: Add, site: Callable[[], Site]) -> None:
    add(model=trained())
    html = site().html
    for tag, attributes in tags_of(html):
        for name in ("src", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), f"<{tag} {name}={value}>"
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    assert "innerHTML" not in html and "eval(" not in html and "fetch(" not in html


def test_building_twice_gives_the_same_bytes(add: Add, site: Callable[[], Site]) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model=trained())

    def contents() -> dict[str, bytes]:
        out = site().out
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    assert contents() == contents()


def test_data_of_results_that_are_gone_is_removed(add: Add, site: Callable[[], Site]) -> None:
    path = add("student")
    add("other")
    assert (site().out / "data/tiny/student.details.js").is_file()
    path.unlink()
    found = site()
    assert not (found.out / "data/tiny/student.details.js").exists() and (found.out / "data/papers.js").is_file()


def test_markup_from_results_is_inert(add: Add, site: Callable[[], Site]) -> None:
    """It reaches the page as JSON alone, in which "<" cannot stand; scripts show it as text (no innerHTML)."""
    captions = [sample.model_copy(update={"prompt": SCRIPT}) for sample in gallery()]
    hostile = SCRIPT.replace("/", "∕")
    curves: list[dict[str, Any]] = [{"iteration": i, SCRIPT: i, "text": SCRIPT, "none": None} for i in range(3)]
    model = {
        "method": SCRIPT,
        "base": SCRIPT,
        "training": training(config={SCRIPT: SCRIPT}, rewards=[SCRIPT], curves=curves),
    }
    add(hostile, model=model, gallery=captions, volatile={SCRIPT: SCRIPT}, provenance={SCRIPT: SCRIPT})
    add("x" * 200, 0.7, model={"method": '" onload="alert(1)'})
    found = site()
    assert "<script>alert" not in found.html and "alert(1)" not in re.sub(
        r'id="board">.*?</script>', "", found.html, flags=re.S
    )
    assert [tag for tag, _ in tags_of(found.html)].count("script") == 2
    assert all(not name.startswith("on") for _, attributes in tags_of(found.html) for name in attributes)
    for path in (found.out / "data").rglob("*.js"):
        assert "<" not in path.read_text(encoding="utf-8").replace("\\u003c", "")
    assert found.model(hostile)["method"] == SCRIPT


def test_json_in_a_script_ends_neither_the_script_nor_a_line() -> None:
    text = as_json({"a": "</script><!--\u2028\u2029\u202e"})
    assert "<" not in text and "\u2028" not in text and "\u2029" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028\u2029\u202e"}
    assert as_script("tiny/x", 1) == b'fewstep.chunk("tiny/x",1);\n'


def test_every_id_is_unique(add: Add, site: Callable[[], Site]) -> None:
    add("teacher", 0.9)
    ids = [attributes["id"] for _, attributes in tags_of(site().html) if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_an_empty_board_says_so_and_how_to_fill_it() -> None:
    text = page.index([])
    assert "No results yet" in text and "python -m benchmarks.run" in text


def test_files_left_out_are_listed_with_their_reason() -> None:
    text = page.index([], ["bad.json: <b>not</b> valid"])
    assert "bad.json: &lt;b&gt;not&lt;/b&gt; valid" in text and "1 file was not valid" in text


def test_plots_are_bundled_with_their_licence_and_call_nobody() -> None:
    text = page.plots().decode()
    assert text.startswith("/* Vega") and "BSD-3-Clause" in text[:300]
    assert text.endswith("fewstep.chunk('plots',true);\n")
    assert not re.search(r"import\s*\(?['\"]https?:", text)


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), 1e31, [1]])
def test_only_finite_numbers_are_drawn(value: object) -> None:
    assert as_number(value) is None
