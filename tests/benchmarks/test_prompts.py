from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.prompts import Fields, PromptSet, read_prompts
from metrics.base import Prompt, UserError


def write(folder: Path, text: str, name: str = "some.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_prompt_keeps_what_judges_need(tmp_path: Path) -> None:
    line = '{"id": "a-1", "prompt": "two dogs", "tag": "counting", "split": "unseen", "include": [{"class": "dog"}]}'
    prompts = read_prompts(write(tmp_path, line + "\n\n")).prompts
    assert prompts == (
        Prompt(
            text="two dogs",
            id="a-1",
            category="counting",
            split="unseen",
            metadata={"prompt": "two dogs", "tag": "counting", "include": [{"class": "dog"}]},
        ),
    )


def test_prompts_without_ids_are_numbered_as_geneval_does(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}\n')).prompts
    assert [prompt.id for prompt in prompts] == ["00000", "00001"]


def test_what_a_run_stores_reads_back_to_the_same_set(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "\\u00e9 \\u2028 line", "category": "x", "tag": "y"}',
        '{"id": "b", "prompt": "b", "more": [1.5]}',
    ]
    first = read_prompts(write(tmp_path, "\n".join(lines)))
    again = read_prompts(write(tmp_path, first.jsonl(), "again.jsonl"))
    assert again.prompts == first.prompts
    assert again.digest == first.digest


def test_the_digest_sees_every_field(tmp_path: Path) -> None:
    texts = ['{"prompt": "a"}', '{"prompt": "b"}', '{"prompt": "a", "tag": "t"}', '{"prompt": "a", "split": "seen"}']
    assert len({read_prompts(write(tmp_path, text)).digest for text in texts}) == 4


def test_a_limited_set_is_spread_over_the_whole() -> None:
    prompts = PromptSet("s", tuple(Prompt(text=str(n), id=str(n)) for n in range(10)))
    assert [prompt.id for prompt in prompts.spread(3).prompts] == ["0", "3", "6"]
    assert prompts.spread(10) is prompts.spread(None) is prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "prompt": "x"}\n{"id": "A", "prompt": "y"}', r":2: id 'A' is taken by line 1"),
        ('{"id": "../up", "prompt": "x"}', r":1: id '../up' cannot name a folder"),
        ('{"id": "..", "prompt": "x"}', r":1: id '..' cannot name a folder"),
        ('{"id": "", "prompt": "x"}', r":1: id '' cannot name"),
        ('{"prompt": "x"}\n{"prompt": "  "}', r":2: 'prompt' is missing or empty"),
        ('{"id": "a"}', r":1: 'prompt' is missing or empty"),
        ('{"prompt": 3}', r":1: 'prompt' must be text"),
        ('{"prompt": "x", "tag": ["y"]}', r":1: 'tag' must be text"),
        ('{"prompt": "' + "x" * 10_001 + '"}', r":1: the prompt has 10,001 characters"),
        ('{"prompt": "x"', r":1: not a line of JSON"),
        ("[" * 100_000, r":1: not a line of JSON"),
        ('["x"]', r":1: expected an object"),
        ("\n\n", "holds no prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(write(tmp_path, text))


def test_unknown_sets_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown prompt set 'mirco'; did you mean 'micro'"):
        read_prompts("mirco")
    with pytest.raises(UserError, match="no such prompt file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"end in \.jsonl"):
        read_prompts(write(tmp_path, "x", "a.docx"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


def test_plain_text_is_a_prompt_a_line_and_repeated_lines_are_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a red circle\n\n a blue square \na red circle\n", encoding="utf-8")
    prompts = read_prompts(path).prompts
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("00000", "a red circle"), ("00001", "a blue square")]


def test_a_limited_set_keeps_the_balance_of_categories() -> None:
    categories = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    prompts = PromptSet("s", tuple(Prompt(text=str(n), id=str(n), category=c) for n, c in enumerate(categories)))

    def counts(limit: int) -> tuple[int, ...]:
        chosen = [prompt.category for prompt in prompts.spread(limit).prompts]
        assert len(chosen) == limit
        return tuple(chosen.count(name) for name in "abc")

    assert counts(10) == (5, 3, 2)
    assert counts(6) == (3, 2, 1)
    assert counts(1) == (1, 0, 0)
    ids = [int(prompt.id) for prompt in prompts.spread(10).prompts]
    assert ids == sorted(ids) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_tables_name_the_column_of_their_prompts(tmp_path: Path) -> None:
    table = write(tmp_path, 'caption,category,prompt\n"a, b",x,other\nc,y,\n', "t.csv")
    first, second = read_prompts(f"{table}#caption").prompts
    assert (first.text, first.category, first.metadata["prompt"]) == ("a, b", "x", "a, b")
    assert second.text == "c"
    pq.write_table(pa.table({"Prompt": ["a", "b"], "image": [b"1", b"2"], "n": [1, 2]}), tmp_path / "t.parquet")
    found = read_prompts(f"{tmp_path / 't.parquet'}#Prompt").prompts
    assert [(prompt.text, prompt.metadata["n"]) for prompt in found] == [("a", 1), ("b", 2)]
    assert all("image" not in prompt.metadata for prompt in found)
    for name in ("t.csv#text", "t.parquet"):
        with pytest.raises(UserError, match=r"no column .* name one of .*#COLUMN"):
            read_prompts(f"{tmp_path / name}")


def test_damaged_tables_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable Parquet file"):
        read_prompts(write(tmp_path, "no parquet", "t.parquet"))
    with pytest.raises(UserError, match=r"t.csv:2: not a line of CSV"):
        read_prompts(write(tmp_path, 'prompt\n"a" b\n', "t.csv"))


def test_repeats_of_a_list_are_counted(tmp_path: Path) -> None:
    text = read_prompts(write(tmp_path, "a\nb\na\na\n", "l.txt"))
    lines = read_prompts(write(tmp_path, '{"prompt": "a"}\n{"prompt": "a"}\n'))
    assert (len(text.prompts), text.listed, text.repeats) == (2, 4, 2)
    assert (len(lines.prompts), lines.listed, lines.repeats) == (2, 2, 1)


def test_other_fields_can_hold_id_and_category(tmp_path: Path) -> None:
    path = write(tmp_path, '{"item_id": 7, "prompt": "a", "atom_count": 3}\n')
    (prompt,) = read_prompts(path, Fields(id="item_id", category="atom_count")).prompts
    assert (prompt.id, prompt.category) == ("7", "atom_count 3")


def test_a_hub_source_is_fetched_and_its_errors_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def download(repo: str, path: str, *, repo_type: str, revision: str | None) -> str:
        calls.append((repo, path, repo_type, revision))
        return str(write(tmp_path, "caption\na dog\n", "part.csv"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (prompt,) = read_prompts("hf:org/name@abc/data/part.csv#caption").prompts
    assert prompt.text == "a dog"
    assert calls == [("org/name", "data/part.csv", "dataset", "abc")]
    with pytest.raises(UserError, match="expected hf:org/name"):
        read_prompts("hf:nonsense")


def test_a_list_of_records_is_read_like_lines_of_them(tmp_path: Path) -> None:
    records = '{"caption": "a", "tag": "x"}', '{"caption": "b", "prompt": "c"}'
    listed = write(tmp_path, f"[{', '.join(records)}]", "list.json")
    lines = write(tmp_path, "\n".join(records), "list.jsonl")
    assert read_prompts(f"{listed}#caption").digest == read_prompts(f"{lines}#caption").digest
    for text, message in (("{", "list.json: not JSON"), ("{}", "expected a list of records"), ("[3]", "record 0: ")):
        with pytest.raises(UserError, match=message):
            read_prompts(write(tmp_path, text, "list.json"))
