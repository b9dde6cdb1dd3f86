"""Comparisons of two and more models, against numbers worked out by hand."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from leaderboards import evidence
from leaderboards.comparison import changed_most, compare_models, samples_of
from leaderboards.hacking import Report
from leaderboards.page.compare import compare_page
from leaderboards.schema import ResultError
from leaderboards.statistics import compare, holm
from leaderboards.store import Entry, publish, read_entry
from tests.leaderboards.conftest import CATEGORIES, IMAGES, PROMPTS, evidence_table, gallery, metric_of, result_of

HOSTILE = '<script>alert(1)</script>" onload="x'
Make = Callable[..., Entry]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Publish a result and read it back."""

    def made(name: str, rate: float = 0.5, seed: int = 0, **changes: object) -> Entry:
        table = changes.pop("table", None) or evidence_table(rate, seed)
        pictures = changes.pop("pictures", gallery())
        return read_entry(publish(result_of(table, name, **changes), table, tmp_path, pictures))  # type: ignore[arg-type]

    return made


def table_of(values: Sequence[float]) -> pa.Table:
    """One score per prompt, the same for its two images."""
    rows = [
        ("compose", metric, f"prompt-{index:02d}", CATEGORIES[index % 2], "seen", image, value)
        for metric in ("judge", "score")
        for index, value in enumerate(values)
        for image in range(IMAGES)
    ]
    return pa.table(dict(zip(evidence.COLUMNS.names, zip(*rows, strict=True), strict=True)), schema=evidence.COLUMNS)


def test_every_other_model_is_held_against_the_first(make: Make) -> None:
    models = [make("one", 0.9, 1), make("two", 0.5, 2), make("three", 0.1, 3)]
    found = compare_models(models)
    assert [one.other for one in found.contrasts] == ["two", "three", "two", "three"]
    assert [column.metric for column in found.columns] == ["judge", "score"]  # judges of composition first
    alone = [
        compare(models[0].scores("compose", column.metric), other.scores("compose", column.metric), column.mean_over)
        for column in found.columns
        for other in models[1:]
    ]
    assert [one.difference for one in found.contrasts] == alone
    assert [one.p for one in found.contrasts] == holm([one.p for one in alone])


def test_wins_count_ties_half_and_follow_the_direction(make: Make) -> None:
    ours, theirs = [1.0] * 3 + [0.5] * 9, [0.0] * 3 + [0.5] * 9
    a, b = make("a", table=table_of(ours)), make("b", table=table_of(theirs))
    wins = compare_models([a, b]).contrasts[1].wins.value
    assert wins == pytest.approx((3 + 9 / 2) / PROMPTS)
    table = table_of(ours)
    metrics = {key: metric_of(table, key, higher_is_better=False) for key in ("judge", "score")}
    lower = [
        make(f"{name}-low", table=table_of(v), metrics=metrics if name == "a" else None) for name, v in [("a", ours)]
    ]
    other_table = table_of(theirs)
    other = make(
        "b-low", table=other_table, metrics={k: metric_of(other_table, k, higher_is_better=False) for k in metrics}
    )
    assert compare_models([lower[0], other]).contrasts[1].wins.value == pytest.approx(1 - wins)


def test_verdicts_need_interval_and_p(make: Make) -> None:
    good, bad = make("good", 0.95), make("bad", 0.05, 1)
    assert {one.verdict for one in compare_models([good, bad]).contrasts} == {"better"}
    assert {one.verdict for one in compare_models([bad, good]).contrasts} == {"worse"}
    assert {one.verdict for one in compare_models([good, make("twin", 0.95)]).contrasts} == {"not told apart"}


def test_the_prompt_that_changed_most_comes_first(make: Make) -> None:
    values = [0.5] * PROMPTS
    changed = [*values]
    changed[3], changed[7] = 0.9, 0.4
    entries = [make("a", table=table_of(values)), make("b", table=table_of(changed))]
    found = changed_most(entries, compare_models(entries).columns[1])
    assert [one.prompt_id for one in found[:3]] == ["prompt-03", "prompt-07", "prompt-00"]
    assert found[0].means == pytest.approx((0.5, 0.9)) and found[0].category == CATEGORIES[1]


def test_pictures_are_paired_only_where_all_have_them(make: Make) -> None:
    a, b = make("a"), make("b", seed=1, pictures=gallery("blue")[:2])
    found = samples_of([a, b], "compose")
    assert set(found) == {"prompt-00"}
    assert [[one.seed for one in pictures] for pictures in found["prompt-00"]] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_fewer_than_two_models_are_refused(make: Make, names: list[str]) -> None:
    entries = {"a": make("a")}
    with pytest.raises(ResultError, match=r"two results|given twice"):
        compare_models([entries[name] for name in names])


def test_the_page_is_inert_loads_nothing_and_is_the_same_twice(make: Make) -> None:
    captions = [one.model_copy(update={"prompt": HOSTILE}) for one in gallery()]
    a, b = make(HOSTILE.replace("/", "∕"), 0.9, pictures=captions), make("b", 0.1, 1)
    gamed = {HOSTILE: Report(verdict="gamed", against=HOSTILE, reasons=(HOSTILE,))}
    page = compare_page(compare_models([a, b]), gamed)
    assert page == compare_page(compare_models([a, b]), gamed) and "reward gamed" in page
    assert "<script" not in page and "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', page)) <= {"data:", "#main"}
    assert page.count("data:image/png") >= 2 and "&lt;script&gt;" in page
