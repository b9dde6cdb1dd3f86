from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from benchmarks.cli import parse
from metrics.base import UserError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line."""

    method: Annotated[str, tyro.conf.Positional] = ""
    batch_size: int = 4
    stage: Literal["score", "all"] = "all"
    resume: bool = True
    offline: bool = False


def read(*args: str) -> Arguments:
    return parse(Arguments, prog="python -m some.thing", args=args)


def test_flags_become_fields() -> None:
    line = ("rtdmd", "--batch-size", "3", "--stage=score", "--no-resume", "--offline")
    assert read(*line) == Arguments(method="rtdmd", batch_size=3, stage="score", resume=False, offline=True)
    assert read() == Arguments()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--batch-sise", "3"], r"unknown: --batch-sise, 3; did you mean --batch-size\?"),
        (["rtdmd", "--bach_size=3"], r"unknown: --bach_size=3; did you mean --batch-size\?"),
        (["--no-resme"], r"unknown: --no-resme; did you mean --no-resume\?"),
        (["rtdmd", "dmd"], "unknown: dmd"),
        (["--batch-size", "many"], "--batch-size: .*'many'.*; see python -m some.thing --help"),
        (["--batch-size"], "Missing value for argument '--batch-size'.*; see python -m some.thing --help"),
        (["--stage", "scoer"], "invalid choice 'scoer'.*'score', 'all'.*; see python -m some.thing --help"),
    ],
)
def test_a_mistake_is_one_line(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(*line)
    assert "\n" not in str(caught.value)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_help_is_shown_and_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    assert "--batch-size" in capsys.readouterr().out
