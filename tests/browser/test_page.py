"""The page in a real browser (`tox -e browser`): sorting, filtering, pictures, links, keyboard, accessibility."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leaderboards.about import About, MetricNotes, add_about
from leaderboards.build import build
from leaderboards.comparison import compare_models
from leaderboards.hacking import reports
from leaderboards.page.compare import compare_page
from leaderboards.page.vote import write_ballot
from leaderboards.screenshots import VIEWS
from leaderboards.store import Entry, publish, read_entry
from leaderboards.vote import make_ballot, read_votes, tally
from tests.leaderboards.conftest import evidence_table, gallery, result_of, training

playwright = pytest.importorskip("playwright.sync_api", reason="tox -e browser brings playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: set CHROMIUM to its program")
HOSTILE = "<img src=x onerror=alert(1)> \u05d0\u05d1\u05d2 " + "long" * 30
ENDLESS = "long" * 2400  # a prompt may have 10,000 characters


@pytest.fixture(scope="session")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of three models, one of them trained on a reward, and its page."""
    folder = tmp_path_factory.mktemp("board")
    captions = [sample.model_copy(update={"prompt": f"{HOSTILE} {ENDLESS} {sample.prompt}"}) for sample in gallery()]
    student = {"base": "teacher", "method": "rtdmd", "trained_on": ["score"], "training": training()}
    for seed, (name, rate, model, pictures) in enumerate(
        [("teacher", 0.95, {}, gallery()), ("student", 0.5, student, captions), (HOSTILE, 0.1, {"method": "<b>"}, [])]
    ):
        rows = evidence_table(rate, seed)
        publish(result_of(rows, name, model=model), rows, folder / "results", pictures)
    notes = MetricNotes(description=f"How right it is. {HOSTILE}", fooled_by="Blobs of paint.", source="<b>us</b>")
    texts = {f"prompt-{n:02d}": f"{HOSTILE} {ENDLESS if n < 3 else ''} the whole text of {n}" for n in range(12)}
    add_about(folder / "results" / "tiny", About(prompts={"compose": texts}, metrics={"judge": notes}))
    build(folder / "results", folder / "site")
    return folder / "site"


@pytest.fixture
def open_page(browser, site: Path) -> Iterator[Callable[..., "playwright.Page"]]:
    """Open the page; at the end nothing may have gone wrong in it."""
    wrong: list[str] = []
    pages = []

    def opened(address: str = "", **options) -> "playwright.Page":
        page = browser.new_page(**options)
        page.on(
            "console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog opened"), dialog.dismiss()))
        page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
        page.goto(f"file://{site}/index.html#{address}")
        settle(page)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert wrong == []


def settle(page) -> None:
    page.wait_for_selector("#body:not([aria-busy])", state="attached")  # no script: the page's policy allows no eval


def names(page) -> list[str]:
    return page.locator(".board tbody th[scope=row] .name").all_inner_texts()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_by_its_address_without_an_error(open_page, view: str) -> None:
    page = open_page(f"view={view}")
    assert page.locator("#tabs [aria-current=page]").count() == 1
    assert page.locator("#body").inner_text().strip()
    assert page.locator("#body img[src='x']").count() == 0  # markup in names and prompts is text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_no_violation_of_accessibility_rules(open_page, view: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(f"view={view}", color_scheme=scheme)
    if view in ("tradeoffs", "categories"):
        page.wait_for_selector(".plot svg")
    found = axe.Axe().run(page)
    told = [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found.response["violations"]]
    assert told == []


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_the_screen(open_page, view: str, width: int) -> None:
    page = open_page(f"view={view}", viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_sorting_is_told_and_kept_in_the_address(open_page) -> None:
    page = open_page()
    assert names(page)[0] == "teacher"
    page.locator("th button", has_text="The judge").click()
    assert names(page)[0] == "teacher"
    page.locator("th button", has_text="The judge").click()
    assert names(page)[-1] == "teacher"
    assert page.locator("th[aria-sort=ascending]").count() == 1
    address = page.evaluate("location.hash")
    assert "sort=" in address
    again = open_page(address.removeprefix("#"))
    assert names(again) == names(page)


def test_filtering_keeps_the_word_in_the_address_and_the_focus(open_page) -> None:
    page = open_page()
    page.locator("input[type=search]").first.press_sequentially("stud")
    playwright.expect(page.locator(".board tbody .name")).to_have_count(1)
    assert names(page) == ["student"] and "q=stud" in page.evaluate("location.hash")
    assert page.evaluate("document.activeElement.type") == "search"
    assert page.locator("#status").inner_text() == "1 of 3 models"


def test_models_of_equal_cost_do_not_hide_each_other(open_page) -> None:
    page = open_page("view=tradeoffs")
    page.wait_for_selector(".plot svg")
    points = page.locator(".plot svg .mark-symbol.role-mark path").all()
    places = [re.match(r"translate\((.*?),", point.get_attribute("transform"))[1] for point in points]
    assert len(places) == len(set(places)) == 3  # all of 4 network passes


def test_metrics_can_be_chosen(open_page) -> None:
    page = open_page()
    page.locator(".picker summary").click()
    page.locator(".choices input").first.uncheck()
    playwright.expect(page.locator(".board thead th")).to_have_count(3)


def test_models_are_picked_and_looked_at_side_by_side(open_page) -> None:
    page = open_page()
    page.get_by_label("Pick student").check()
    page.get_by_label("Pick teacher").check()
    page.get_by_role("link", name="pictures side by side").click()
    page.wait_for_selector(".samples")
    heads = page.locator(".samples thead th").all_inner_texts()
    assert set(heads[1:]) == {"student", "teacher"}
    assert page.locator(".picture .mark").count() == page.locator(".picture").count() > 0


def test_a_picture_shows_its_scores_and_closes_by_key(open_page) -> None:
    page = open_page("view=pictures")
    page.wait_for_selector(".picture")
    page.locator(".picture").nth(1).focus()  # in which nothing was seen but numbers
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] .evidence tbody tr").count() == 2
    assert "null" not in page.locator("dialog[open]").inner_text()  # of parts that a picture lacks
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_boxes_lie_where_the_detector_saw_them_and_answers_beneath(open_page) -> None:
    page = open_page("view=pictures&models=teacher,student")
    page.locator(".picture").first.click()
    dialog = page.locator("dialog[open]")
    image, box = (dialog.locator(one).bounding_box() for one in (".stage img", ".box"))
    # 25, 50, 50, 25 percent of the picture; a pixel for rounding
    assert box["x"] - image["x"] == pytest.approx(0.25 * image["width"], abs=1)
    assert box["y"] - image["y"] == pytest.approx(0.5 * image["height"], abs=1)
    assert box["width"] == pytest.approx(0.5 * image["width"], abs=1)
    assert box["height"] == pytest.approx(0.25 * image["height"], abs=1)
    assert dialog.locator(".box").inner_text() == "red <b>dog</b> 0.90"  # markup is text
    assert "expected dog>=2, found 1" in dialog.inner_text() and "and 2 weaker" in dialog.inner_text()
    assert dialog.locator(".answers td").all_inner_texts() == ["How many?", "expected two", "said <i>one</i>"]
    dialog.get_by_label("Boxes").select_option("none")
    assert dialog.locator(".box").count() == 0
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    assert [one["id"] for one in axe.Axe().run(page).response["violations"]] == []


def test_the_prompts_that_changed_most_come_first(open_page) -> None:
    page = open_page("view=prompts&models=teacher,student")
    page.wait_for_selector(".samples tbody tr")
    texts = page.locator(".samples tbody tr td:last-child").all_inner_texts()
    sizes = [abs(float(re.sub(r"[^\d.]", "", text))) for text in texts]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0


def test_prompts_without_pictures_are_named_by_what_they_say(open_page) -> None:
    page = open_page("view=prompts")
    playwright.expect(page.locator(".samples tbody th .prompt", has_text="the whole text of")).to_have_count(12)
    page.locator("input[type=search]").first.press_sequentially("whole text of 11")
    playwright.expect(page.locator(".samples tbody tr")).to_have_count(1)


def test_a_metric_tells_what_it_means_and_what_fools_it(open_page) -> None:
    page = open_page("view=metrics")
    card = page.locator(".card", has_text="The judge")
    assert "How right it is." in card.inner_text()
    told = card.locator("details", has_text="What fools it")
    assert not told.locator("p").is_visible()
    told.locator("summary").press("Enter")
    assert told.locator("p").inner_text() == "Blobs of paint."


def test_keyboard_alone_reaches_and_sorts_the_table(open_page) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("th button", has_text="Model").focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("[data-sort=name]")).to_be_focused()
    assert page.locator("th[aria-sort=ascending]").count() == 1


def test_the_reader_s_theme_wins_over_the_system_s(open_page) -> None:
    page = open_page("theme=dark", color_scheme="light")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_a_missing_data_folder_is_one_line(browser, site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "index.html", tmp_path)
    page = browser.new_page()
    page.goto(f"file://{tmp_path}/index.html#view=papers")
    page.wait_for_selector("[role=alert]")
    assert "data/papers.js is missing" in page.locator("[role=alert]").inner_text()
    page.close()


def test_a_paper_s_table_is_chosen_and_sorted(open_page) -> None:
    page = open_page("view=papers&paper=rtdmd-table5")
    page.wait_for_selector(".paper")
    assert page.locator(".paper tbody tr").count() >= 20
    page.locator("select").select_option("dmdr-v2-table2")
    playwright.expect(page.locator(".paper")).to_contain_text("DMD2-PSO")
    assert "paper=dmdr-v2-table2" in page.evaluate("location.hash")


@pytest.fixture
def pair(site: Path) -> list[Entry]:
    folder = site.parent / "results" / "tiny"
    return [read_entry(folder / f"{name}.json") for name in ("teacher", "student")]


def test_the_comparison_page_is_accessible_and_loads_nothing(browser, pair: list[Entry], tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    (tmp_path / "compare.html").write_text(compare_page(compare_models(pair), reports(pair)), encoding="utf-8")
    page, asked = browser.new_page(viewport={"width": 390, "height": 800}), []
    page.on("request", lambda one: asked.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    page.goto((tmp_path / "compare.html").as_uri())
    assert page.locator(".contrasts tbody tr").count() == 2 and page.locator(".samples img").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and asked == []
    # The page allows no script, so the rules are run on its text in a page that does.
    free = browser.new_page(bypass_csp=True)
    free.goto((tmp_path / "compare.html").as_uri())
    assert [one["id"] for one in axe.Axe().run(free).response["violations"]] == []
    page.close()
    free.close()


def test_a_vote_by_keyboard_is_saved_and_read_back(browser, pair: list[Entry], tmp_path: Path) -> None:
    key, pairs = make_ballot(*pair)
    address, _ = write_ballot(key, pairs, tmp_path)
    page = browser.new_page()
    page.goto(address.as_uri())
    page.get_by_label("Your name").fill('a, "quoted" voter')
    page.locator("body").click(position={"x": 5, "y": 5})
    for press in ("ArrowLeft", "ArrowRight", "Backspace", "ArrowLeft", " "):
        page.keyboard.press(press)
    assert page.locator("#count").inner_text() == "3 of 6 answered"
    page.reload()  # answers stay
    assert page.locator("#count").inner_text() == "3 of 6 answered"
    with page.expect_download() as saved:
        page.locator("#save").click()
    saved.value.save_as(tmp_path / "votes.csv")
    votes = read_votes(tmp_path / "votes.csv", key)
    assert [vote.choice for vote in votes] == ["left", "left", "tie"]
    assert {vote.voter for vote in votes} == {'a, "quoted" voter'}
    assert tally(votes, key)[0].ties == 1
    page.close()
