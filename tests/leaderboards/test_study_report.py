"""A study's text and pictures come from its JSON alone."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import vl_convert

from leaderboards.studies import READING, Claims, Figure
from leaderboards.study_figure import ROW
from leaderboards.study_report import HEIGHT, main, vega_lite, write_study
from tests.leaderboards.test_studies import CLAIM, HEAD

POINTS = [{"x": 1, "y": 0.5, "low": 0.4, "high": 0.6}, {"x": 2, "y": 0.7, "low": 0.6, "high": 0.8}]
FIGURE = {
    "id": "curves",
    "title": "Curves",
    "x": "iteration",
    "y": "reward",
    "series": [{"name": "joint", "points": POINTS}],
}
UNJUDGED = CLAIM | {
    "id": "later", "effect": None, "seeds": [0], "seeds_needed": 3, "verdict": "not judged", "power": None,
    "figure": None, "headline": True, "notes": "",
}  # fmt: skip


def study() -> Claims:
    return Claims.model_validate({**HEAD, "kind": "claims", "claims": [CLAIM, UNJUDGED], "figures": [FIGURE]})


def test_text_lists_every_claim_with_its_count(tmp_path: Path) -> None:
    written = write_study(study(), tmp_path / "s.json")
    text = (tmp_path / "s.md").read_text()
    assert [path.name for path in written] == ["s.json", "s.md", "curves.svg"]
    assert "holds: 1, not judged: 1." in text and "1 of 3" in text and "+0.0400 (+0.0100 to +0.0700)" in text
    assert text.index("## Headline claims") < text.index("## Further claims")
    assert "(s/curves.svg)" in text and READING in text
    assert "seeds alone" not in text.split(READING)[1] and "iterations |" not in text


def test_a_row_tells_what_a_verdict_leaves_open(tmp_path: Path) -> None:
    small = CLAIM["effect"] | {"value": 0.012, "high": 0.015}
    claim = CLAIM | {"effect": small, "prompts": 0, "remark": "by less than 0.02", "iterations": [349, 1502]}
    write_study(Claims.model_validate({**HEAD, "kind": "claims", "claims": [claim]}), tmp_path / "s.json")
    row = next(line for line in (tmp_path / "s.md").read_text().splitlines() if CLAIM["statement"] in line)
    assert "**holds**<br>by less than 0.02 |" in row and "<br>349 and 1,502 iterations |" in row
    assert "+0.0120 (+0.0100 to +0.0150, seeds alone)" in row


def test_claims_stand_under_their_topics_in_the_plans_order(tmp_path: Path) -> None:
    told = {"a": "Anchors", "b": "", "c": "Anchors", "d": "Weights"}
    claims = [CLAIM | {"id": one, "statement": f"Claim {one}.", "topic": topic} for one, topic in told.items()]
    headline = CLAIM | {"headline": True, "topic": "Weights", "p": 0.004, "p_holm": 0.012}
    write_study(Claims.model_validate({**HEAD, "kind": "claims", "claims": [*claims, headline]}), tmp_path / "s.json")
    lines = (tmp_path / "s.md").read_text().splitlines()
    found = [line[3:] for line in lines if line.startswith("## ")]
    assert found == ["How to read the tables", "Headline claims", "Anchors", "Further claims", "Weights"]
    places = [next(n for n, line in enumerate(lines) if f"| Claim {one}." in line) for one in "acbd"]
    assert places == sorted(places) and places[0] > lines.index("## Anchors")
    assert "**holds**<br>p 0.004, by Holm 0.012 |" in next(line for line in lines if CLAIM["statement"] in line)


def test_arms_and_changes_of_the_plan_are_told(tmp_path: Path) -> None:
    levels = [{"value": 0.7, "low": 0.6, "high": 0.8}, {"value": 2.0}, None]
    arm = {"title": "joint", "seeds": 3, "network_passes": 150_336, "iterations": 428, "levels": levels}
    teacher = {"title": "teacher", "seeds": 0, "network_passes": 0, "iterations": 0, "levels": [*levels[1:], None]}
    more = {
        "measures": ["judge", "FID", "none"], "arms": [arm, teacher],
        "changes": [{"date": "2026-11-22", "what": "Quality is precision."}],
    }  # fmt: skip
    table = {**HEAD, "kind": "claims", "claims": [CLAIM | {"at": "equal updates"}], **more}
    write_study(Claims.model_validate(table), tmp_path / "s.json")
    text = (tmp_path / "s.md").read_text()
    assert "| Arm | judge | FID | none | Seeds | Network passes | Iterations |" in text
    assert "| joint | 0.700 ± 0.100 | 2.000 | – | 3 | 150,336 | 428 |" in text
    assert "| teacher | 2.000 | – | – | – | – | – |" in text
    assert "- 2026-11-22: Quality is precision." in text and "<br>at equal updates |" in text
    with pytest.raises(ValueError, match="one level, or null, for each of the measures"):
        Claims.model_validate(table | {"measures": ["judge"]})


def test_pictures_are_drawn_again_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(study(), tmp_path / "s.json")
    before = (tmp_path / "s" / "curves.svg").read_bytes(), (tmp_path / "s.md").read_bytes()
    for path in (tmp_path / "s" / "curves.svg", tmp_path / "s.md"):
        path.unlink()
    assert main([str(tmp_path / "s.json")]) == 0
    assert ((tmp_path / "s" / "curves.svg").read_bytes(), (tmp_path / "s.md").read_bytes()) == before
    assert before[0].startswith(b"<svg")
    (tmp_path / "bad.json").write_text("{}")
    assert main([str(tmp_path / "bad.json")]) == 2 and "bad.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("points", "along", "type_", "marks"),
    [
        (POINTS, "x", "quantitative", ["area", "line"]),
        ([POINTS[0] | {"x": "a"}, POINTS[1] | {"x": "b"}], "y", "nominal", ["rule", "point"]),
        (POINTS[:1], "x", "quantitative", ["rule", "point"]),
        ([{"x": 1, "y": 2.0}, {"x": 2, "y": 3.0}], "x", "quantitative", ["line"]),
    ],
)
def test_lines_over_numbers_and_intervals_beside_names(
    points: list[dict], along: str, type_: str, marks: list[str]
) -> None:
    figure = Figure.model_validate(FIGURE | {"series": [{"name": "n", "points": points}]})
    spec = json.loads(json.dumps(vega_lite(figure)))
    assert [layer["mark"]["type"] for layer in spec["layer"]] == marks
    for layer in spec["layer"]:
        assert (layer["encoding"][along]["type"], layer["encoding"][along]["field"]) == (type_, "x")
    assert spec["height"] == (2 * ROW if along == "y" else HEIGHT)


def test_what_a_line_is_of_shows_in_its_dash_and_a_lone_point_in_its_shape() -> None:
    two = [{"name": "n", "measure": of, "points": POINTS} for of in ("reward", "held out")]
    area, line = vega_lite(Figure.model_validate(FIGURE | {"series": two}))["layer"]
    assert line["encoding"]["strokeDash"]["field"] == area["encoding"]["detail"]["field"] == "measure"
    lone = [{"name": name, "points": POINTS[:1]} for name in ("a", "b")]
    *_, point = vega_lite(Figure.model_validate(FIGURE | {"series": lone}))["layer"]
    assert point["encoding"]["shape"]["field"] == point["encoding"]["color"]["field"] == "name"
    assert "strokeDash" not in point["encoding"]


@pytest.mark.parametrize("points", [1, 2])
def test_an_interval_has_the_colour_of_its_series_where_another_has_none(points: int) -> None:
    """A lone series without interval, as of a teacher, must not shift the colours of the intervals."""
    series = [
        {"name": "teacher", "points": [{"x": 1, "y": 0.5}, {"x": 2, "y": 0.5}][:points]},
        *({"name": name, "points": POINTS[:points]} for name in ("a", "b")),
    ]
    svg = vl_convert.vegalite_to_svg(vega_lite(Figure.model_validate(FIGURE | {"series": series})))
    drawn: dict[str, set[str]] = {"teacher": set(), "a": set(), "b": set()}
    for mark in ElementTree.fromstring(svg).iter():
        name = mark.get("aria-label", "").rpartition("name: ")[2]
        if name in drawn:
            drawn[name] |= {one for one in (mark.get("fill", ""), mark.get("stroke", "")) if one.startswith("#")}
    assert [len(colours) for colours in drawn.values()] == [1, 1, 1]
    assert len(set().union(*drawn.values())) == 3
