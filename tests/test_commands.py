"""Commands at the end of whose output nobody listens any more end in silence."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [["leaderboards", "limits"], ["metrics", "card", "clip_score"]])
def test_a_reader_that_goes_away_is_no_fault(command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()  # before anything is written
    assert process.stderr.read() == ""
    assert process.wait() == 141
