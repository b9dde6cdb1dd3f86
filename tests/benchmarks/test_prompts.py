from pathlib import Path

import pytest

from benchmarks.prompts import PromptSet, read_prompts
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
