"""Mistakes of a command line are one line; a command runs outside of the parsing."""

import sys

import pytest

from leaderboards.cli import Commands, complaint
from leaderboards.schema import ResultError


def commands() -> Commands:
    found = Commands()

    @found.add("greet")
    def greet(name: str = "you", times: int = 1) -> int:
        """Greet somebody."""
        print(f"greeting {name}", file=sys.stderr)
        return times

    @found.add("nothing")
    def nothing() -> None:
        """Do nothing."""

    return found


def test_a_command_runs_and_its_stderr_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands().run(["greet", "--name", "me", "--times", "3"], prog="x") == 3
    assert capsys.readouterr().err == "greeting me\n"
    assert commands().run(["nothing"], prog="x") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["greed"], "unknown: greed"),
        (["greet", "--nme", "me"], "did you mean --name?"),
        (["greet", "--times", "three"], "three"),
        (["greet", "more"], "unknown: more"),
        ([], "Expected one of"),
    ],
)
def test_every_mistake_is_one_line_that_names_it(arguments: list[str], told: str) -> None:
    with pytest.raises(ResultError) as caught:
        commands().run(arguments, prog="x")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("see x --help")
    assert not set(str(caught.value)) & set("│─╭")


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands().run(["greet", "--help"], prog="x")
    assert ended.value.code == 0 and "Greet somebody." in capsys.readouterr().out


def test_a_frame_of_ascii_is_read_as_well() -> None:
    box = "- Parsing error -\n  Unrecognized options: --x\n  -----\n  For full helptext, run y --help\n"
    assert complaint(box) == "unknown: --x"
