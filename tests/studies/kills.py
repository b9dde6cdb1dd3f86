"""SIGKILL of the whole command at random moments, from outside: training, checkpoints, export, benchmark.

    python -m tests.studies.kills [--kills 10] [--seed 0]

A short job on the shipped micro world runs once undisturbed. Then, once per kill, it is started in a new folder,
killed at a random moment and started again. Everything it leaves must be the same: the student's files, checkpoints,
log, pictures, rows and result; only times may differ. Exit code 1 and the names of what differs, otherwise 0.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cli import parse

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "trainers/configs/rtdmd-micro.toml"
SHORT = (
    "name=short",
    "stages.cold_start.iterations=4",
    "stages.reinforce.iterations=3",
    "canary.limit=6",
    "canary.every=2",
    "checkpoint_every=2",
    "log_every=1",
)
SUITE = """
[[tasks]]
name = "few"
prompts = "few.jsonl"
images_per_prompt = 2
metrics = ["shapes_geneval", "micro_clip", "micro_aesthetic", "micro_diversity"]
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How often, and which moments."""

    kills: int = 10
    seed: int = 0


def main(arguments: Arguments) -> int:
    """Print a line per kill; return the exit code."""
    moments, different = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = (ROOT / "benchmarks" / "micro" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / "few.jsonl").write_text("\n".join(lines[:: len(lines) // 12]) + "\n", encoding="utf-8")
        (folder / "few.toml").write_text(SUITE, encoding="utf-8")
        began = time.monotonic()
        finish(folder, "whole")
        whole, wanted = time.monotonic() - began, left_behind(folder / "whole")
        for kill in range(arguments.kills):
            name, moment = f"killed-{kill}", (kill + moments.random()) / arguments.kills * whole
            process = start(folder, name)
            time.sleep(moment)
            process.kill()
            process.wait()
            reached = latest(folder / name)
            finish(folder, name)
            faults = differences(left_behind(folder / name), wanted)
            different += bool(faults)
            found = ", ".join(faults) or "the same"
            print(f"killed after {moment:.1f} of {whole:.1f} s ({reached}): {found}", flush=True)
    return 1 if different else 0


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Start the job in folder/name as a user would."""
    settings = [*SHORT, f"benchmark={json.dumps(str(folder / 'few.toml'))}"]
    line = [sys.executable, "-m", "trainers.run", "rtdmd", "--config", CONFIG, "--out", str(folder / name)]
    line += ["--board", str(folder / name / "results"), *(part for one in settings for part in ("--set", one))]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(folder: Path, name: str) -> None:
    """Run the job to its end. Raises RuntimeError where it fails."""
    if code := start(folder, name).wait():
        raise RuntimeError(f"{name}: the job ended with exit code {code}")


def latest(folder: Path) -> str:
    """Return the file of a run that was written last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return str(max(files, key=lambda path: path.stat().st_mtime).relative_to(folder)) if files else "nothing yet"


def left_behind(folder: Path) -> dict[str, Any]:
    """Return what a run left, by file name, without what is volatile."""
    kept: dict[str, Any] = {}
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".html")):
        content: Any = path.read_bytes()
        if path.suffix == ".pt":
            content = flat(torch.load(path, weights_only=True))
        elif path.name in ("journal.jsonl", "page.sha256"):
            continue  # order and times of drawing, while the pictures are compared; sums of files that show times
        elif path.name.endswith(".details.js"):
            content = without_times(content[content.index(b",") + 1 : content.rindex(b")")])
        elif path.suffix == ".jsonl":
            content = [without_times(line) for line in content.splitlines()]
        elif path.suffix == ".json":
            content = without_times(content)
        kept[str(path.relative_to(folder))] = content
    return kept


def without_times(text: bytes) -> Any:
    """Return JSON without what was measured once: the key `volatile` of results and logs, `measured` of the page."""
    table = json.loads(text)
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in table.items() if key not in ("volatile", "measured")}


def flat(state: Any) -> Any:
    """Return a checkpoint with bytes in place of tensors, which compare."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list) else state


def differences(ours: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the files that differ, or that only one of the two has."""
    return sorted(name for name in ours.keys() | wanted.keys() if ours.get(name) != wanted.get(name))


if __name__ == "__main__":
    sys.exit(main(parse(Arguments, prog="python -m tests.studies.kills", description=__doc__)))
