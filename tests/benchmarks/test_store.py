import json
from pathlib import Path

import pytest

from benchmarks.prompts import PromptSet
from benchmarks.protocol import Protocol
from benchmarks.store import ImageSet, Journal, Run, read_header
from metrics.base import Prompt, UserError

PROMPTS = PromptSet("five", tuple(Prompt(text=f"text {n}", id=f"p-{n}") for n in range(5)))
MODEL = {"name": "m", "weights_digest": "0" * 64}


def image_set(name: str = "set", **changes: object) -> ImageSet:
    common = {"prompts": PROMPTS, "images_per_prompt": 2, "protocol": Protocol()}
    return ImageSet(name=name, **{**common, **changes})  # type: ignore[arg-type]


def open_run(path: Path, *sets: ImageSet, block_size: int | None = 3, **changes: object) -> Run:
    common = {"model": MODEL, "suite": "micro"}
    return Run.open(path, sets=list(sets) or [image_set()], block_size=block_size, **{**common, **changes})  # type: ignore[arg-type]


def draw(run: Run, block: int) -> None:
    run.keep_pictures(image_set(), block, [b"png %d" % n for n in range(len(run.block(image_set(), block)))], nfe=4)


def test_blocks_hold_consecutive_images_and_all_of_them(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    blocks = [run.block(image_set(), number) for number in range(run.count_blocks(image_set()))]
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    assert tuple(item for block in blocks for item in block) == image_set().items


def test_a_block_is_drawn_only_with_all_its_pictures(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    assert run.drawn(image_set(), 0) is None
    draw(run, 0)
    entry = run.drawn(image_set(), 0)
    assert entry is not None and entry["nfe"] == 4
    run.image("set", run.block(image_set(), 0)[1]).unlink()
    assert run.drawn(image_set(), 0) is None


def test_pictures_without_a_line_in_the_journal_are_not_drawn(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    draw(run, 0)
    (tmp_path / "run" / "journal.jsonl").unlink()
    assert open_run(tmp_path / "run").drawn(image_set(), 0) is None


def test_a_line_cut_short_by_a_kill_never_happened(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    draw(run, 0)
    path = tmp_path / "run" / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"set": "set", "blo')
    again = open_run(tmp_path / "run")
    assert again.drawn(image_set(), 0) is not None
    draw(again, 1)
    assert again.drawn(image_set(), 1) is not None
    assert list(Journal(path).drawn()) == [("set", 0), ("set", 1)]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    folder = tmp_path / "run" / "set" / "images" / "p-0"
    folder.mkdir(parents=True)
    (folder / ".0.png.abc.tmp").write_bytes(b"half")
    draw(run, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png"]


def test_claims_skip_what_is_done_and_come_once(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    claimed = []
    for block, lock in run.claim("stage", range(4), done=lambda block: block == 1):
        claimed.append(block)
        lock.release()
    assert claimed == [0, 2, 3]


def test_a_block_held_by_another_comes_last(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    held = run.lock("stage-000001")
    held.acquire()
    claimed = []
    for block, lock in run.claim("stage", range(4), done=lambda block: False):
        claimed.append(block)
        lock.release()
        if block == 3:
            held.release()
    assert claimed == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("key", "sets", "changes"),
    [
        (
            "sets.set.protocol.num_inference_steps = 28, now it is 4",
            image_set(protocol=Protocol(num_inference_steps=4)),
            {},
        ),
        ("sets.set.n_prompts = 5, now it is 2", image_set(prompts=PROMPTS.spread(2)), {}),
        ("sets.set.images_per_prompt = 2, now it is 1", image_set(images_per_prompt=1), {}),
        ("model.weights_digest", image_set(), {"model": {**MODEL, "weights_digest": "1" * 64}}),
        ("model.name = 'm', now it is 'n'", image_set(), {"model": {**MODEL, "name": "n"}}),
        ("suite = 'micro', now it is 'full'", image_set(), {"suite": "full"}),
        ("block_size = 3, now it is 4", image_set(), {"block_size": 4}),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, key: str, sets: ImageSet, changes: dict) -> None:
    open_run(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UserError, match=key):
        open_run(tmp_path / "run", sets, **changes)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_the_block_size_of_a_run_is_kept_where_none_is_asked_for(tmp_path: Path) -> None:
    open_run(tmp_path / "run", block_size=3)
    assert open_run(tmp_path / "run", block_size=None).block_size == 3


def test_a_suite_that_grew_adds_its_image_sets(tmp_path: Path) -> None:
    open_run(tmp_path / "run")
    open_run(tmp_path / "run", image_set(), image_set("more"))
    open_run(tmp_path / "run", image_set())  # an older suite leaves the new set in peace
    assert set(read_header(tmp_path / "run")["sets"]) == {"set", "more"}


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 99, "sets": {}, "block_size": 1})])
def test_a_damaged_header_is_one_clear_line(tmp_path: Path, text: str) -> None:
    open_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(UserError, match="not a run of this version"):
        open_run(tmp_path / "run")
