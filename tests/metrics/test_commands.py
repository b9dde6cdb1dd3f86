"""Command lines of this package: a mistake is one line, and nothing runs."""

import pytest

from metrics import parity, reference, selfcheck
from metrics.__main__ import main as metrics_main
from metrics.weights.__main__ import main as weights_main

MAINS = {
    "metrics": metrics_main,
    "metrics.weights": weights_main,
    "metrics.selfcheck": selfcheck.main,
    "metrics.parity": parity.main,
    "metrics.reference": reference.main,
}


@pytest.mark.parametrize(
    ("prog", "arguments", "message"),
    [
        ("metrics.selfcheck", ["--nope"], "unrecognized options: --nope"),
        ("metrics.parity", ["--metric", "hps_v2"], "unrecognized options: --metric"),
        ("metrics", ["card", "micro_clip", "--ot", "pages"], "unrecognized options: --ot"),
        ("metrics", ["crad"], "crad"),
        ("metrics.weights", ["list", "--weight", "here"], "did you mean --weights?"),
        ("metrics.weights", ["fetch", "--suite"], "--suite"),
        ("metrics.reference", ["build", "pictures", "-o", "x.npz", "--batch-size", "many"], "--batch-size"),
        ("metrics.reference", ["build", "pictures"], "-o"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    prog: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MAINS[prog](arguments) == 2
    out, said = capsys.readouterr()
    assert out == "" and len(said.splitlines()) == 1
    assert said.startswith("error: ") and said.rstrip().endswith(f"; see python -m {prog} --help")
    assert message.lower() in said.lower() and not set("│╭─\x1b") & set(said)


@pytest.mark.parametrize("prog", MAINS)
def test_help_is_shown(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        MAINS[prog](["--help"])
    assert not end.value.code
    assert f"usage: python -m {prog}" in capsys.readouterr().out
