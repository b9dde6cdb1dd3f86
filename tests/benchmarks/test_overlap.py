from pathlib import Path

import pytest

from benchmarks.overlap import trained_on, write_fingerprints
from benchmarks.prompts import PromptSet
from metrics.base import Prompt, UserError

EVALUATED = PromptSet("e", tuple(Prompt(text=text, id=text[0]) for text in ("A red  cat", "b dog", "c")))


def test_overlap_names_the_prompts_trained_on_whatever_their_case_and_blanks(tmp_path: Path) -> None:
    write_fingerprints(tmp_path, ["a red cat ", "something else", "C"])
    assert trained_on(tmp_path, EVALUATED) == ["A", "c"]


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    first = write_fingerprints(tmp_path, ["x", "y", "x"]).read_bytes()
    assert write_fingerprints(tmp_path, ["y", "x"]).read_bytes() == first
    assert len(first) == 16


def test_a_checkpoint_that_does_not_say_is_unknown_and_a_damaged_file_an_error(tmp_path: Path) -> None:
    assert trained_on(tmp_path, EVALUATED) is None
    write_fingerprints(tmp_path, ["x"]).write_bytes(b"123")
    with pytest.raises(UserError, match="3 bytes are no whole number"):
        trained_on(tmp_path, EVALUATED)
