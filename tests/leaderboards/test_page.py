"""The page: complete, self-contained, inert, and the same bytes every time."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from leaderboards.page import plots, render
from leaderboards.store import read_board
from leaderboards.table import suite_table
from tests.leaderboards.conftest import gallery, training

Add = Callable[..., Path]
SCRIPT = "<script>alert('x')</script>"


@pytest.fixture
def page(tmp_path: Path) -> Callable[[], str]:
    def rendered() -> str:
        board = read_board(tmp_path / "results")
        return render([suite_table(suite, entries) for suite, entries in board.suites.items()], board.errors)

    return rendered


class Reader(HTMLParser):
    """Collects tags with their attributes, and fails on tags that do not close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "use", "path", "line", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def trained(name: str, method: str = "rtdmd") -> dict:
    return {"method": method, "trained_on": ["score"], "training": training(), "base": "teacher"}


def test_page_holds_every_part_of_a_board(add: Add, page: Callable[[], str]) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model=trained("student"))
    add("look", 0.6, status="partial")
    text = page()
    for part in (
        "Ranked",
        "Not ranked",
        "What quality costs",
        "By category",
        "unseen",
        "While training",
        "trained on",
    ):
        assert part in text
    for part in ("Same seeds", "a photo of object 0", "✓", "✗", "leaderboards validate tiny/student.json", "†"):
        assert part in text
    tags = Reader(text)
    assert tags.open == []
    assert sum(tag == "img" for tag, _ in tags.tags) == 3 * 6
    assert sum(tag == "svg" for tag, _ in tags.tags) == 1 + 2


def test_page_asks_the_network_for_nothing(add: Add, page: Callable[[], str]) -> None:
    add(model=trained("student"))
    tags = Reader(page())
    for tag, attributes in tags.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), f"<{tag} {name}={value}>"
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    assert "default-src 'none'" in page()
    assert "@import" not in page() and not re.search(r"url\((?!#)", page())


def test_page_is_the_same_bytes_every_time(add: Add, page: Callable[[], str]) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model=trained("student"))
    assert page() == page()


def test_markup_from_results_is_inert(add: Add, page: Callable[[], str]) -> None:
    captions = [sample.model_copy(update={"prompt": SCRIPT}) for sample in gallery()]
    hostile = SCRIPT.replace("/", "∕")
    model = {
        "method": SCRIPT,
        "base": SCRIPT,
        "training": training(
            config={SCRIPT: SCRIPT},
            rewards=[SCRIPT],
            curves=[{"iteration": i, SCRIPT: i, "$\\frac{": i, "text": SCRIPT, "none": None} for i in range(3)],
        ),
    }
    add(f"{hostile} $x^", model=model, gallery=captions, volatile={SCRIPT: SCRIPT}, provenance={SCRIPT: SCRIPT})
    add("other $", 0.7, model={"method": '" onload="alert(1)'})
    text = page()
    assert "<script>alert" not in text and ' onload="' not in text
    scripts = [tag for tag, _ in Reader(text).tags if tag == "script"]
    assert len(scripts) == 1
    assert all(not name.startswith("on") for _, attributes in Reader(text).tags for name in attributes)


def test_every_id_is_unique(add: Add, page: Callable[[], str]) -> None:
    add("teacher", 0.9)
    add("student", 0.6, model=trained("student"))
    ids = [attributes["id"] for _, attributes in Reader(page()).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_an_empty_board_says_so_and_how_to_fill_it() -> None:
    text = render([])
    assert "No results yet" in text and "python -m benchmarks.run" in text


def test_files_left_out_are_listed_with_their_reason() -> None:
    text = render([], ["bad.json: <b>not</b> valid"])
    assert "bad.json: &lt;b&gt;not&lt;/b&gt; valid" in text and "1 file was not valid" in text


def test_numbers_of_the_page_are_those_of_the_results(add: Add, page: Callable[[], str]) -> None:
    path = add()
    (entry,) = read_board(path.parents[1]).entries
    metric = entry.result.tasks[0].metrics["judge"]
    assert f'data-value="{metric.value}"' in page()
    assert f"{metric.low:.3f} to {metric.high:.3f}" in page()


def test_plots_follow_the_colours_of_the_page() -> None:
    points = [
        plots.Point(label=f"model {i}", x=4.0, y=i / 10, low=None, high=None, series=i, hollow=i == 1)
        for i in range(9)
    ]
    svg = plots.scatter(points, "network passes", "quality", name="p", log_x=True)
    assert "var(--s7)" in svg and "var(--ink)" in svg
    assert not re.search(r"#0000[ef]\d", svg)
    assert svg == plots.scatter(points, "network passes", "quality", name="p", log_x=True)


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), 1e31, [1]])
def test_only_finite_numbers_are_drawn(value: object) -> None:
    assert plots.as_number(value) is None
