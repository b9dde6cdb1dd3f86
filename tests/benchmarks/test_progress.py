import io

import pytest

from benchmarks import progress as module
from benchmarks.progress import progress


def test_without_a_terminal_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 12.0, 13.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("set: drawing", 40) as advance:
        for _ in range(4):
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "set: drawing: 20/40 images, 1.7 images/s, 12 s left",
        "set: drawing: 40/40 images, 2.0 images/s, 0 s left",
    ]


def test_on_a_terminal_progress_is_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(module.sys, "stderr", screen)
    with progress("set: drawing", 4) as advance:
        advance(4)
    assert "set: drawing" in screen.getvalue() and "4/4" in screen.getvalue()


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("set: drawing", 0):
        pass
    assert capsys.readouterr().err == ""
