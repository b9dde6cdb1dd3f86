"""Does every method train every family, from a shrunken checkpoint to a scored student? A table.

    python -m tests.studies.families [--only 'sdxl/*']

Three iterations of each stage; the student is exported as LoRA (SiT, whose pipeline loads none, and full copies as a
whole pipeline), opened as a stock pipeline, drawn from and scored by the suite's metrics. A pair fails
where the student's pictures are those of its base, drawn from the same noise. Exit code 1 where a pair fails.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import evaluate
from benchmarks.cli import parse
from benchmarks.config import UserError, build
from benchmarks.screen import guarded
from metrics.images import read_image, to_tensor
from tests.studies.presets import FAMILIES, family_folder, prompt_file
from trainers.config import RunConfig
from trainers.loop import Loop

ITERATIONS = 3
FAST = {"lr": 0.03}  # far enough for a picture of 8 bits to show it
OWN = {"student": FAST, "ema": {"decay": 0.0}}
PAIRS = {"count": 4, "steps": 2, "folder": "{place}/samples"}
REWARD = {"id": "micro_aesthetic"}
SUITE = """
[[tasks]]
name = "few"
prompts = "{prompts}"
images_per_prompt = 2
metrics = ["micro_aesthetic", "micro_diversity"]
"""
DISTIL = {"batch_size": 2, "fake_score_updates": 1, "guidance_scale": 2.0, "fake_score": FAST}
# By method: the settings of its stages.
METHODS: dict[str, list[dict[str, Any]]] = {
    "dmd": [DISTIL],
    "dmd2": [DISTIL | {"teacher_samples": PAIRS}],
    "dmd_gan": [DISTIL | {"teacher_samples": PAIRS}],
    "dmd_lpips": [DISTIL | {"teacher_samples": PAIRS, "lpips": {"distance": "micro_perceptual", "batch_size": 2}}],
    "dp_dmd": [DISTIL | {"first_step": {"weight": 0.05, "k_anchor": 1, "teacher_steps": 3}}],
    "tdm": [{"batch_size": 2, "guidance_scale": 2.0, "fake_score": FAST}],
    "dmdr": [
        DISTIL | {"phase": "rt_dm"},
        DISTIL | {"phase": "joint", "rl": "refl"},
        DISTIL | {"phase": "joint", "rl": "grpo", "grpo": {"groups": 1, "group_size": 3}},
    ],
    "rtdmd": [
        {"cold_start": {"batch_size": 2, "fake_score_updates": 1}, "fake_score": FAST},
        {"phase": "reinforce", "reinforce": {"groups": 1, "group_size": 3}, "fake_score": FAST},
    ],
    "refl": [{"batch_size": 2}],
    "grpo": [{"grpo": {"groups": 1, "group_size": 3}}],
    "dpo": [{"dpo": {"groups": 1, "group_size": 3}}],
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which pairs are tried."""

    only: str = "*"  # family/method, with * and ?


def main(arguments: Arguments) -> int:
    """Print a line per pair; return the exit code."""
    failed = 0
    print("| Family | Method | Result | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as families:
        for family in FAMILIES:
            for method in METHODS:
                if not fnmatch(f"{family}/{method}", arguments.only):
                    continue
                began = time.monotonic()
                with tempfile.TemporaryDirectory() as place:
                    try:
                        result, good = tried(family, method, Path(families), Path(place))
                    except UserError as error:
                        result, good = str(error), False
                failed += not good
                took = f"{time.monotonic() - began:.0f} s"
                print(f"| {family} | {method} | {result} | {took}{'' if good else ', FAILS'} |", flush=True)
    return 1 if failed else 0


def tried(family: str, method: str, families: Path, place: Path) -> tuple[str, bool]:
    """Train, export, open, draw and score; return (what came out, whether it is as it should be)."""
    base = family_folder(family, families)
    prompts = prompt_file(family, place)
    run = build(RunConfig, table_of(family, method, base, prompts, place), "run")
    student = Loop(method, run, place / "run").train()
    suite = place / "few.toml"
    suite.write_text(SUITE.format(prompts=prompts), encoding="utf-8")
    shutil.copytree(base, place / "base")
    shutil.copyfile(student / "protocol.json", place / "base" / "protocol.json")  # drawn as the student is
    drawn = {}
    for name, model in (("base", place / "base"), ("student", student)):
        result = evaluate(model, str(suite), name=name, out=place / f"run-{name}", board=None, batch_size=6)
        (task,) = result.tasks
        if faults := {metric: one.status for metric, one in task.metrics.items() if one.status != "ok"}:
            return f"{name}: {faults}", False
        drawn[name] = to_tensor([read_image(path) for path in sorted((place / f"run-{name}").rglob("*.png"))])
    change = float((drawn["student"] - drawn["base"]).abs().mean())
    return f"scored, pictures changed by {change:.3f}", change > 1e-3


def table_of(family: str, method: str, base: Path, prompts: Path, place: Path) -> dict[str, Any]:
    """Return the run's table."""
    stages = {
        f"stage-{number}": {"iterations": ITERATIONS, "settings": _placed({**settings, **OWN}, place)}
        for number, settings in enumerate(METHODS[method])
    }
    return {
        "name": "few", "device": "cpu", "checkpoint_every": 100, "log_every": 1, "stages": stages,
        "backbone": {"kind": family, "path": str(base), "lora": {"rank": 2, "alpha": 4}},
        "prompts": {"source": str(prompts)}, "rewards": [REWARD],
        "export": {"weights": "merged" if family == "sit" else "lora"},
    }  # fmt: skip


def _placed(value: Any, place: Path) -> Any:
    if isinstance(value, dict):
        return {key: _placed(inner, place) for key, inner in value.items()}
    return value.format(place=place) if isinstance(value, str) else value


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m tests.studies.families", description=__doc__))))
