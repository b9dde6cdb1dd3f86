"""The main job on the shipped micro world, made short: train by RTDMD, benchmark, publish, recompute."""

import json
from pathlib import Path

import pytest
import torch

import metrics
from benchmarks import evaluate
from benchmarks.verify import verify
from leaderboards.build import build
from leaderboards.schema import read_result
from trainers.config import read_run
from trainers.run import train

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "trainers" / "configs" / "rtdmd-micro.toml"
SHORT = (
    "stages.cold_start.iterations=3",
    "stages.reinforce.iterations=2",
    "canary.limit=6",
    "canary.every=3",
    "log_every=1",
    "name=short",
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two prompts per category out of the shipped ones, two images each."""
    folder = tmp_path_factory.mktemp("suite")
    lines = (ROOT / "benchmarks" / "micro" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    by_tag: dict[str, list[str]] = {}
    for line in lines:
        by_tag.setdefault(json.loads(line)["tag"], []).append(line)
    chosen = [line for tag_lines in by_tag.values() for line in tag_lines[:2]]
    (folder / "few.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    metrics_line = '"shapes_geneval", "micro_clip", "micro_clip_heldout", "micro_aesthetic", "micro_diversity"'
    (folder / "few.toml").write_text(
        f'[[tasks]]\nname = "few"\nprompts = "few.jsonl"\nimages_per_prompt = 2\nmetrics = [{metrics_line}]\n',
        encoding="utf-8",
    )
    return folder / "few.toml"


@pytest.fixture(scope="module")
def student(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student after a few iterations of both stages, benchmarked by the run itself."""
    folder = tmp_path_factory.mktemp("job")
    run = read_run(CONFIG, [*SHORT, f"benchmark={json.dumps(str(suite))}"])
    return train("rtdmd", run, folder / "run", board=folder / "board" / "results")


def test_a_run_ends_on_the_leaderboard_beside_its_teacher(student: Path, suite: Path) -> None:
    board = student.parents[1] / "board" / "results"
    teacher = ROOT / "benchmarks" / "micro" / "pipeline"
    evaluate(teacher, str(suite), name="teacher", out=student.parent / "teacher", board=board)
    _, written = build(board, board.parent / "site")
    page = (board.parent / "site" / "index.html").read_text(encoding="utf-8")
    assert "short" in page and "teacher" in page
    assert any(path.suffix == ".md" for path in written)


def test_the_result_tells_what_was_trained_on(student: Path) -> None:
    result = read_result(next((student.parents[1] / "board" / "results").rglob("short.json")))
    assert result.model.method == "rtdmd"
    assert result.model.trained_on == ["micro_clip"]
    assert result.model.training is not None and result.model.training.image_free
    assert len(result.model.training.curves) >= 2
    task = result.tasks[0]
    assert task.nfe == 4
    assert {metric.status for metric in task.metrics.values()} == {"ok"}


def test_every_value_can_be_recomputed(student: Path) -> None:
    run = student.parent / "benchmark-few"
    assert any("values follow from" in line for line in verify(run, recompute=True))


def test_stock_diffusers_loads_the_student_and_draws(student: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(student, torch_dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 64, "width": 64, "max_sequence_length": 0}
    image = pipeline("a photo of a red circle", generator=generator, **arguments).images[0]
    assert image.size == (64, 64)
    score = metrics.load("micro_clip")([image], ["a photo of a red circle"])
    assert -1 <= score.item() <= 1
