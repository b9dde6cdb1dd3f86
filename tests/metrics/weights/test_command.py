import os
from pathlib import Path

import huggingface_hub
import pytest
import torch

from metrics.weights import __main__ as command
from metrics.weights.__main__ import main
from metrics.weights.places import FOLDER, SYNTHETIC

HEAD = "sac+logos+ava1-l14-linearMSE.pth"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """--weights sets variables for the processes that a command starts; they end with the test."""
    monkeypatch.setattr(os, "environ", dict(os.environ) | {FOLDER: "", SYNTHETIC: ""})


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    """A user's folder with a head of the right size and the wrong content."""
    folder = tmp_path / "mine"
    (folder / "laion-aesthetic-v2").mkdir(parents=True)
    (folder / "laion-aesthetic-v2" / HEAD).write_bytes(bytes(3714759))
    return folder


def test_list_shows_all_weights_and_what_waits_for_them(capsys: pytest.CaptureFixture[str], forged: Path) -> None:
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "2.0 GB" in lines["hps-v2.1"]
    assert lines["hps-v2.1"].rstrip().endswith("missing")
    assert main(["list", "laion-aesthetic-v2", "--weights", str(forged)]) == 0
    assert "here" in capsys.readouterr().out


def test_verify_names_the_wrong_file_and_the_digest_it_should_have(
    capsys: pytest.CaptureFixture[str], forged: Path
) -> None:
    assert main(["verify", "--weights", str(forged)]) == 2
    shown = capsys.readouterr().out
    assert f"{HEAD}: sha256 is " in shown
    assert "should be 21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0" in shown
    assert len(shown.splitlines()) == 1  # what is not here is not wrong, unless it is asked for
    assert main(["verify", "hps-v2.1"]) == 2
    assert (
        "HPS_v2.1_compressed.pt is missing; run: python -m metrics.weights fetch hps-v2.1" in capsys.readouterr().out
    )


def test_where_prints_paths(capsys: pytest.CaptureFixture[str], forged: Path) -> None:
    assert main(["where", "laion-aesthetic-v2", "--weights", str(forged)]) == 0
    assert capsys.readouterr().out == f"laion-aesthetic-v2\t{forged / 'laion-aesthetic-v2' / HEAD}\n"
    assert main(["where", "hps-v2"]) == 2


@pytest.mark.parametrize(
    ("arguments", "fetched"),
    [
        (["hps-v2", "hps-v2"], ["HPS_v2_compressed.pt"]),
        (["hps_v21"], ["HPS_v2.1_compressed.pt"]),
        (["pick_score", "pick-score-v1"], ["model.safetensors"]),
    ],
)
def test_fetch_takes_weights_and_metrics_each_once(
    arguments: list[str], fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(repo: str, name: str, **options: object) -> str:
        asked.append(name)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert main(["fetch", *arguments]) == 2
    assert asked == fetched
    assert "no network in tests" in capsys.readouterr().err


def test_fetch_of_a_metric_brings_what_its_self_check_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(command, "fetch", lambda entry: fetched.append(entry.id) or [])
    assert main(["fetch", "image_reward"]) == 0
    assert sorted(fetched) == ["bert-base-uncased-vocab", "image-reward-example", "image-reward-v1"]
    fetched.clear()
    assert main(["fetch", "image-reward-v1"]) == 0
    assert fetched == ["image-reward-v1"]


def test_fetch_goes_on_with_the_next_weights_when_one_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def download(repo: str, name: str, **options: object) -> str:
        if "hps" in repo.lower():
            raise ConnectionError("gone")
        torch.save({}, tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert main(["fetch", "hps-v2", "pick-score-v1"]) == 2
    shown = capsys.readouterr()
    assert "for weights.toml: bytes = " in shown.out
    assert shown.err.count("\n") == 1


def test_fetch_of_a_suite_reads_its_metrics_and_those_it_includes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(repo: str, name: str, **options: object) -> str:
        asked.append(repo)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    suite = tmp_path / "mine.toml"
    suite.write_text('include = ["micro"]\n[[tasks]]\nname = "a"\nmetrics = ["hps_v2", "micro_clip", "hps_v2"]\n')
    assert main(["fetch", "--suite", str(suite)]) == 2
    assert asked == ["xswu/HPSv2"]
    capsys.readouterr()
    assert main(["fetch", "--suite", "micro"]) == 0
    assert capsys.readouterr().out == "micro: no published weights needed\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fetch"], "error: say what to fetch: ids of weights or metrics, or --suite NAME"),
        (["fetch", "hps-v2.2"], "error: unknown weights or metric 'hps-v2.2'; did you mean 'hps-v2.1'?"),
        (["fetch", "--suite", "micr"], "error: --suite micr: no such suite; did you mean 'micro'?"),
        (["list", "--weights", "/nowhere/at/all"], "error: --weights /nowhere/at/all: no such folder"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1
