"""Blind votes: what the page may know, and what the answers come to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboards.__main__ import main
from leaderboards.page.vote import vote_page, write_ballot
from leaderboards.schema import ResultError
from leaderboards.store import Entry, read_entry
from leaderboards.vote import HEADER, Key, Vote, make_ballot, read_key, read_votes, tally
from tests.leaderboards.conftest import gallery

Add = Callable[..., Path]


@pytest.fixture
def two(add: Add) -> tuple[Entry, Entry]:
    return read_entry(add("red-model", 0.9)), read_entry(add("blue-model", 0.1, gallery=gallery("blue")))


def csv_of(key: Key, choices: dict[int, str], voter: str = "v", question: int = 0) -> str:
    lines = [",".join(HEADER), *(f"{key.ballot},{voter},{pair},{question},{one}" for pair, one in choices.items())]
    return "\n".join(lines) + "\n"


def side_of_a(key: Key, pair: int) -> str:
    return "left" if key.pairs[pair].a_left else "right"


def test_the_page_knows_neither_names_nor_sides(two: tuple[Entry, Entry]) -> None:
    key, pairs = make_ballot(*two)
    page = vote_page(key, pairs)
    assert key.ballot in page and len(pairs) == 6
    for secret in ("red-model", "blue-model", "a_left", two[0].result.model.weights_digest):
        assert secret not in page
    assert "default-src 'none'" in page and "innerHTML" not in page and "fetch(" not in page


def test_sides_and_order_are_drawn_and_the_same_for_the_same_seed(two: tuple[Entry, Entry]) -> None:
    key, pairs = make_ballot(*two)
    assert (key, pairs) == make_ballot(*two) and key != make_ballot(*two, seed=1)[0]
    lots = [pair.a_left for seed in range(10) for pair in make_ballot(*two, seed=seed)[0].pairs]
    assert 15 <= sum(lots) <= 45
    red = two[0].samples[0].png
    assert all((shown["left"] == red) == pair.a_left for shown, pair in zip(pairs, key.pairs, strict=True))


def test_one_who_always_takes_a_gives_it_every_win_whatever_the_sides(two: tuple[Entry, Entry]) -> None:
    key, _ = make_ballot(*two)
    votes = [Vote(voter="v", pair=n, question=0, choice=side_of_a(key, n)) for n in range(6)]  # type: ignore[arg-type]
    (found,) = tally(votes, key)
    assert found.a_wins.value == 1 and found.votes == 6 and found.ties == 0 and found.agreement is None
    always_left = [Vote(voter="v", pair=n, question=0, choice="left") for n in range(6)]
    assert tally(always_left, key)[0].a_wins.value == sum(pair.a_left for pair in key.pairs) / 6


def test_ties_count_half_voters_are_averaged_first_and_the_last_answer_counts(two: tuple[Entry, Entry]) -> None:
    key, _ = make_ballot(*two)
    other = {"left": "right", "right": "left"}
    votes = [
        Vote(voter="x", pair=0, question=0, choice=other[side_of_a(key, 0)]),  # type: ignore[arg-type]  # taken back
        Vote(voter="x", pair=0, question=0, choice=side_of_a(key, 0)),  # type: ignore[arg-type]
        Vote(voter="y", pair=0, question=0, choice="tie"),
        Vote(voter="z", pair=0, question=0, choice=other[side_of_a(key, 0)]),  # type: ignore[arg-type]
        Vote(voter="x", pair=1, question=0, choice=side_of_a(key, 1)),  # type: ignore[arg-type]
    ]
    (found,) = tally(votes, key)
    pairs = {key.pairs[n].prompt_id for n in (0, 1)}
    expected = (0.5 + 1) / 2  # pair 0: (1 + 0.5 + 0) / 3; the two pairs weigh the same, in one prompt or in two
    assert found.a_wins.value == pytest.approx(expected) and found.a_wins.n_prompts == len(pairs)
    assert (found.votes, found.ties, found.voters, found.agreement) == (4, 1, 3, 0.0)


def test_swapping_the_models_mirrors_the_rate(two: tuple[Entry, Entry]) -> None:
    key, _ = make_ballot(*two)
    mirrored = key.model_copy(update={"pairs": [p.model_copy(update={"a_left": not p.a_left}) for p in key.pairs]})
    votes = [
        Vote(voter="v", pair=n, question=0, choice=one) for n, one in enumerate(("left", "left", "tie", "right"))
    ]
    assert tally(votes, key)[0].a_wins.value == pytest.approx(1 - tally(votes, mirrored)[0].a_wins.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("ballot,", "ballet,", 1), "first line"),
        (lambda text: text.replace("left", "up"), "line 2: choice 'up'"),
        (lambda text: text.replace(",v,0,", ",v,99,"), "no pair '99'"),
        (lambda text: text.replace(",v,0,", ",v,-1,"), "no pair '-1'"),
        (lambda text: text + "a,b\n", "2 columns"),
        (lambda text: text.replace(text.splitlines()[1][:64], "f" * 64), "another ballot"),
    ],
)
def test_answers_that_mean_nothing_are_refused_by_line(
    two: tuple[Entry, Entry], tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    key, _ = make_ballot(*two)
    path = tmp_path / "votes.csv"
    path.write_text(change(csv_of(key, {0: "left"})))
    with pytest.raises(ResultError, match=told):
        read_votes(path, key)


def test_models_without_common_pictures_have_no_ballot(add: Add) -> None:
    with pytest.raises(ResultError, match="no pictures"):
        make_ballot(read_entry(add("a")), read_entry(add("b", gallery=[])))


def test_the_command_writes_a_ballot_and_reads_its_votes(
    two: tuple[Entry, Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "vote")]
    assert main(["vote", "red-model", "blue-model", *board]) == 0
    key = read_key(tmp_path / "vote" / "key.json")
    assert json.loads((tmp_path / "vote" / "key.json").read_text())["a"] == "red-model"
    votes = tmp_path / "votes.csv"
    votes.write_text(csv_of(key, {n: side_of_a(key, n) for n in range(6)}))
    capsys.readouterr()
    assert main(["vote", "red-model", "blue-model", "--votes", str(votes), *board]) == 0
    assert "100.0" in capsys.readouterr().out
    assert main(["vote", "blue-model", "red-model", "--votes", str(votes), *board]) == 2
    assert "name them in this order" in capsys.readouterr().err


def test_writing_a_ballot_twice_gives_the_same_bytes(two: tuple[Entry, Entry], tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_ballot(*make_ballot(*two), tmp_path / name)
    assert (tmp_path / "x/vote.html").read_bytes() == (tmp_path / "y/vote.html").read_bytes()
