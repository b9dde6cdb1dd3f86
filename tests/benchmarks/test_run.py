"""The command line: exit codes, one line for each fault, and what is shown."""

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.run import Arguments, main
from benchmarks.screen import guarded
from tests.benchmarks.conftest import PLUGIN, PROMPTS

ROOT = Path(__file__).resolve().parents[2]


def command(pipeline: Path, toys: Path, /, **changes: object) -> Arguments:
    common = {"model": str(pipeline), "suite": str(toys), "out": toys.parent / "run", "board": "none"}
    defaults = {"plugin": (PLUGIN,), "device": "cpu", "batch_size": 4}
    return Arguments(**{**common, **defaults, **changes})  # type: ignore[arg-type]


def test_a_run_ends_with_a_table(pristine_pipeline: Path, suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: main(command(pristine_pipeline, suite))) == 0
    shown = capsys.readouterr()
    assert "toy_redness" in shown.out and " .. " in shown.out
    assert "tiny on toys: ranked, 3 passes per image" in shown.out
    assert "toys: drawing: 10/10 images" in shown.err  # plain lines: nobody watches a terminal
    assert "\r" not in shown.err


def test_the_plan_is_shown_and_nothing_done(
    pristine_pipeline: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(suite.read_text().replace('"toy_spread"', '"toy_spread", "toy_gone"'))
    assert guarded(lambda: main(command(pristine_pipeline, suite, dry_run=True))) == 0
    shown = capsys.readouterr().out
    assert "0/10" in shown and "16x16" in shown
    assert "python -m make.them (3 GB)" in shown
    assert "M parameters" in shown and "nothing was done" in shown and "TFLOP an image (counted)" in shown
    assert not (suite.parent / "run").exists()


def test_the_catalogue_names_suites_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: main(Arguments(list=True, plugin=(PLUGIN,)))) == 0
    shown = capsys.readouterr().out
    assert "micro" in shown and "full" in shown and "toy_redness" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "--model is missing"),
        ({"model": "./gone"}, "./gone: no such folder"),
        ({"suite": "mikro"}, "unknown suite 'mikro'; did you mean 'micro'"),
        ({"metrics": ("toy_rednes",)}, "did you mean 'toy_redness'"),
        ({"weights": Path("no/such/folder")}, "--weights no/such/folder: no such folder"),
        ({"plugin": ("no_such_plugin",)}, "--plugin no_such_plugin: no such module"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"guidance": -1.0}, "guidance_scale must be at least 0"),
        ({"device": "cuda:99"}, "--device cuda:99: not usable here"),
        ({"stage": "score"}, "run --stage generate first"),
        ({"name": "a/b"}, "--name 'a/b'"),
        ({"out": Path(__file__)}, "is a file, not a run directory"),
        ({"out": Path(__file__).parent}, "holds other things than a run"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    pristine_pipeline: Path, suite: Path, changes: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: main(command(pristine_pipeline, suite, **changes))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]


def test_a_metric_that_fails_ends_in_exit_code_2_after_the_table(
    pristine_pipeline: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(suite.read_text().replace('"toy_spread"', '"toy_nan"'))
    assert guarded(lambda: main(command(pristine_pipeline, suite))) == 2
    shown = capsys.readouterr()
    assert "tiny on toys: partial" in shown.out
    assert "1 metrics failed, the others are done" in shown.err


def test_missing_weights_are_one_table_and_one_line(
    pristine_pipeline: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(suite.read_text().replace('"toy_spread"', '"toy_gone"'))
    assert guarded(lambda: main(command(pristine_pipeline, suite))) == 2
    shown = capsys.readouterr()
    assert "toy_gone" in shown.out and "python -m make.them (3 GB)" in shown.out
    assert shown.err.strip().count("\n") == 0 and "--skip-missing" in shown.err
    assert not (suite.parent / "run").exists()
    assert guarded(lambda: main(command(pristine_pipeline, suite, skip_missing=True))) == 0
    shown = capsys.readouterr()
    assert "skipped: no weights in" in shown.out and "toy_redness" in shown.out


def test_the_command_itself_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "benchmarks.run", "--model", str(tmp_path), "--suite", "micro", "--board", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}: no model_index.json")
    assert "Traceback" not in ended.stderr


def picture_folder(folder: Path) -> Path:
    """Write a folder of pictures made elsewhere, two for each prompt of the suite."""
    for record in PROMPTS:
        (folder / record["id"]).mkdir(parents=True)
        for seed in range(2):
            Image.new("RGB", (16, 16), (200, 40 * seed, 0)).save(folder / record["id"] / f"{seed}.png")
    return folder


def make_huge(path: Path) -> None:
    """Let a PNG's header claim 30,000 x 30,000 pixels, checksum included."""
    content = bytearray(path.read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder, prompts: make_huge(folder / "two-1" / "1.png"),
            "two-1/1.png: more than 67,108,864 pixels",
        ),
        (
            lambda folder, prompts: make_huge(folder / "colors-0" / "0.png"),
            "colors-0/0.png: more than 67,108,864 pixels",
        ),
        (lambda folder, prompts: (folder / "two-0" / "1.png").unlink(), "two-0/1.png: no such file"),
        (
            lambda folder, prompts: (folder / "two-0" / "1.png").write_bytes(b""),
            "two-0/1.png: not a picture in any of",
        ),
        (lambda folder, prompts: prompts.write_text("\n\n"), "prompts.jsonl: holds no prompt"),
    ],
    ids=["huge header", "huge first header", "missing picture", "empty picture", "no prompts"],
)
def test_bad_pictures_and_prompts_are_one_line(
    tmp_path: Path, suite: Path, spoil: Callable, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder(tmp_path / "pictures")
    spoil(folder, tmp_path / "prompts.jsonl")
    assert guarded(lambda: main(command(folder, suite))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "drawing" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_the_official_backend_scores_the_same_run_after_the_native_one(
    pristine_pipeline: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import official

    scored: list[Path] = []
    monkeypatch.setattr(official, "run_official", lambda path, metrics: scored.append(path) or [])
    assert guarded(lambda: main(command(pristine_pipeline, suite, backend="official"))) == 0
    assert scored == [suite.parent / "run"]
    assert "toy_redness" in capsys.readouterr().out
