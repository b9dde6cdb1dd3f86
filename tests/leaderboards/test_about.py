"""Notes on a suite are merged run by run, bounded, and shown as text."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leaderboards.__main__ import main
from leaderboards.about import About, MetricNotes, about_path, add_about, read_about
from leaderboards.build import build
from leaderboards.comparison import compare_models
from leaderboards.page.compare import compare_page
from leaderboards.publish import check_site, publish_site
from leaderboards.schema import ResultError
from leaderboards.store import read_entry

Add = Callable[..., Path]
NOTES = MetricNotes(description="Share of right <b>pictures</b>.", fooled_by="Blobs.")


def chunk(path: Path) -> dict:
    """Return the data of a chunk of the page: fewstep.chunk("key",{...});"""
    text = path.read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])


def test_runs_add_what_they_know_and_replace_only_their_own(tmp_path: Path) -> None:
    suite = tmp_path / "tiny"
    add_about(suite, About(prompts={"compose": {"a": "old", "b": "kept"}}, metrics={"judge": NOTES}))
    newer = MetricNotes(description="A score.")
    add_about(suite, About(prompts={"compose": {"a": "new"}, "other": {"a": "another"}}, metrics={"score": newer}))

    found = read_about(suite)
    assert found.prompts == {"compose": {"a": "new", "b": "kept"}, "other": {"a": "another"}}
    assert found.metrics == {"judge": NOTES, "score": newer}
    assert found.texts("unknown") == {}


def test_the_same_notes_are_the_same_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    parts = [About(prompts={"t": {name: f"prompt {name}"}}, metrics={name: NOTES}) for name in "abcdef"]
    for suite, order in ((tmp_path / "x", parts), (tmp_path / "y", parts[::-1])):
        for part in order:
            add_about(suite, part)
    assert about_path(tmp_path / "x").read_bytes() == about_path(tmp_path / "y").read_bytes()


def test_runs_that_end_at_one_time_lose_nothing(tmp_path: Path) -> None:
    parts = [About(prompts={"t": {f"p{n}": "text"}}) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: add_about(tmp_path / "tiny", part), parts))
    assert len(read_about(tmp_path / "tiny").texts("t")) == 40


def test_a_suite_without_notes_has_none(tmp_path: Path) -> None:
    assert read_about(tmp_path / "tiny") == About()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "JSON"),
        ('{"promts": {}}', "promts"),
        ('{"prompts": {"a/b": {}}}', "prompts"),
        ('{"prompts": {"t": {"a": 3}}}', "string"),
        (json.dumps({"prompts": {"t": {"a": "x" * 20_001}}}), "20000"),
    ],
)
def test_damaged_notes_are_one_line_and_hide_no_result(add: Add, tmp_path: Path, content: str, fault: str) -> None:
    add()
    path = about_path(tmp_path / "results" / "tiny")
    path.write_text(content)
    with pytest.raises(ResultError, match=fault):
        read_about(tmp_path / "results" / "tiny")
    board, _ = build(tmp_path / "results", tmp_path / "site")
    assert len(board.entries) == 1
    (line,) = board.errors
    assert line.startswith("tiny.about.json: ")


def test_links_and_huge_files_are_refused(tmp_path: Path) -> None:
    suite = tmp_path / "tiny"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("{}")
    about_path(suite).symlink_to(elsewhere)
    with pytest.raises(ResultError, match="a link"):
        read_about(suite)
    about_path(suite).unlink()
    with about_path(suite).open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ResultError, match="16 MiB"):
        read_about(suite)


def test_the_page_tells_what_prompts_say_and_metrics_mean(add: Add, tmp_path: Path) -> None:
    add(gallery=[])
    hostile = "</script><script>alert(1)</script>"
    add_about(
        tmp_path / "results" / "tiny",
        About(prompts={"compose": {"prompt-07": hostile}}, metrics={"judge": NOTES}),
    )
    build(tmp_path / "results", tmp_path / "site")
    told = chunk(tmp_path / "site" / "data" / "tiny" / "compose.prompts.js")
    assert told["texts"][told["ids"].index("prompt-07")] == hostile
    assert told["texts"][told["ids"].index("prompt-06")] == ""
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "\\u003cb>pictures" in index
    assert "<b>pictures" not in index


def test_a_comparison_names_prompts_without_pictures_by_their_text(add: Add, tmp_path: Path) -> None:
    entries = [
        read_entry(add(name, rate, seed, gallery=[])) for seed, (name, rate) in enumerate([("a", 0.9), ("b", 0)])
    ]
    texts = {f"prompt-{n:02d}": f"say {n} & <i>go</i>" for n in range(12)}
    add_about(tmp_path / "results" / "tiny", About(prompts={"compose": texts}))
    page = compare_page(compare_models(entries), {})
    assert "&amp; &lt;i&gt;go&lt;/i&gt;" in page
    assert "<i>go" not in page


def test_notes_are_published_with_the_results_and_covered_by_a_checksum(add: Add, tmp_path: Path) -> None:
    add()
    add_about(tmp_path / "results" / "tiny", About(metrics={"judge": NOTES}))
    publish_site(tmp_path / "results", tmp_path / "out")
    published = tmp_path / "out" / "results" / "tiny.about.json"
    assert read_about(tmp_path / "out" / "results" / "tiny").metrics == {"judge": NOTES}
    published.write_text("{}")
    with pytest.raises(ResultError, match="changed"):
        check_site(tmp_path / "out")


def test_validate_checks_notes_beside_results(add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add()
    suite = tmp_path / "results" / "tiny"
    add_about(suite, About(prompts={"compose": {"a": "x", "b": "y"}}, metrics={"judge": NOTES}))
    assert main(["validate", "--results", str(tmp_path / "results")]) == 0
    assert "ok, notes on 2 prompts and 1 metrics" in capsys.readouterr().out
    about_path(suite).write_text('{"prompts": 3}')
    assert main(["validate", str(about_path(suite))]) == 2
    assert "prompts" in capsys.readouterr().err
