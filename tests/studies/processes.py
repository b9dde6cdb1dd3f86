"""Does the number of processes show in what comes out? Real ones, by torchrun, on the CPU (gloo).

    python -m tests.studies.processes [--iterations 20]

Trainings of a shrunken SD3 with one, two and three processes on one batch, also with a sharded base, and one of two
processes that is killed and goes on with one and with three: weights after 20 iterations in float64 within 1e-8, the
first gradients' norms in float32 within 1e-5, the same passes. Evaluations with one, two and three processes that
share a run directory: the same bytes of pictures, rows and result. Prints a Markdown table; exit code 1 where a row
fails.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cli import parse
from tests.shrunken.families import make
from tests.studies.kills import ROOT, differences, left_behind

COUNTS = (1, 2, 3)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
SUITE = """
[[tasks]]
name = "few"
prompts = "few.jsonl"
images_per_prompt = 2
metrics = ["micro_clip", "micro_aesthetic", "micro_diversity"]
"""
CONFIG = """
name = "few"
device = "cpu"
processes = 6
checkpoint_every = 2
log_every = 1
[backbone]
path = "{folder}/sd3"
precision = "{precision}"
lora = {{ rank = 2, alpha = 4 }}
sharded = {sharded}
[prompts]
source = "{folder}/few.jsonl"
{rewards}
[stages.only]
iterations = {iterations}
settings = {settings}
"""
GENTLE = "student = { lr = 1e-3, eps = 1e-4 }, fake_score = { eps = 1e-4 }"  # rounding shall not become a direction
REWARD = '[[rewards]]\nid = "micro_clip"'
SAMPLES = '{ count = 8, steps = 3, folder = "{folder}/samples" }'
SETTINGS = {
    "dmd2": f"{{ batch_size = 1, fake_score_updates = 2, teacher_samples = {SAMPLES}, {GENTLE} }}",
    "rtdmd": f'{{ phase = "reinforce", reinforce = {{ groups = 1, group_size = 3 }}, {GENTLE} }}',
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How long the trainings are."""

    iterations: int = 20


def main(arguments: Arguments) -> int:
    """Print a line per comparison; return the exit code."""
    failed = 0
    print("| what | processes | difference | bar | |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        for row in chain(gradients(folder), trainings(folder, arguments.iterations), evaluations(folder)):
            what, processes, difference, bar = row
            failed += not difference <= bar
            verdict = "holds" if difference <= bar else "FAILS"
            print(f"| {what} | {processes} | {difference:.2g} | {bar:g} | {verdict} |", flush=True)
    return 1 if failed else 0


def prepare(folder: Path) -> None:
    """Write the model, prompts and suite."""
    make("sd3", folder / "sd3")
    colours, shapes, ends = ("red", "green", "blue"), ("circle", "square", "cross"), ("", " and a cross")
    texts = [f"a {colour} {shape}{end}" for colour in colours for shape in shapes for end in ends]
    lines = [json.dumps({"id": f"p-{n}", "prompt": text}) for n, text in enumerate(texts)]
    (folder / "few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "few.toml").write_text(SUITE, encoding="utf-8")


Row = tuple[str, str, float, float]


def gradients(folder: Path) -> Iterator[Row]:
    """Compare the norms that the first iteration of a float32 training logs."""
    for count in COUNTS:
        train(folder, "rtdmd", f"first-{count}", count, 1, "float32")
    train(folder, "rtdmd", "sharded-first-2", 2, 1, "float32", sharded=True)
    alone = norms(folder / "first-1")
    for run, count in (("first-2", 2), ("first-3", 3), ("sharded-first-2", 2)):
        found, after = norms(folder / run), ", sharded base" if run.startswith("sharded") else ""
        worst = max(abs(found[name] - value) / value for name, value in alone.items())
        yield f"rtdmd, norms of the first gradients, float32{after}", str(count), worst, 1e-5


def norms(run: Path) -> dict[str, float]:
    """Return the gradients' norms of the first logged iteration."""
    line = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {name: value for name, value in line.items() if name.endswith("_norm")}


def trainings(folder: Path, iterations: int) -> Iterator[Row]:
    """Compare weights and passes at the end of float64 trainings."""
    for count in COUNTS:
        train(folder, "dmd2", f"whole-{count}", count, iterations, "float64")
    kill(folder, "dmd2", "killed", 2, iterations)
    for count in (1, 3):
        shutil.copytree(folder / "killed", folder / f"resumed-{count}")
        train(folder, "dmd2", f"resumed-{count}", count, iterations, "float64")
    for count in COUNTS[1:]:
        train(folder, "dmd2", f"sharded-{count}", count, iterations, "float64", sharded=True)
    alone, told = weights(folder / "whole-1"), {"resumed": ", begun with 2 and killed", "sharded": ", sharded base"}
    for name in ("whole-2", "whole-3", "resumed-1", "resumed-3", "sharded-2", "sharded-3"):
        distance = float((weights(folder / name) - alone).norm() / alone.norm())
        kind, _, count = name.partition("-")
        after = told.get(kind, "")
        yield f"dmd2, weights after {iterations} iterations, float64{after}", count, distance, 1e-8
        yield "dmd2, network passes", count, abs(passes(folder / name) - passes(folder / "whole-1")), 0


def weights(run: Path) -> Tensor:
    """Return all trained weights as one vector."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)["trainer"]
    return torch.cat([p.flatten() for role in ("student", "fake_score") for p in state[role]["parameters"]])


def passes(run: Path) -> int:
    """Return the network passes that a finished run has counted."""
    return int(json.loads((run / "student" / "training.json").read_text(encoding="utf-8"))["network_passes"])


def evaluations(folder: Path) -> Iterator[Row]:
    """Compare everything that evaluations leave, byte for byte."""
    for count in COUNTS:
        line = ["benchmarks.run", "--model", str(folder / "sd3"), "--suite", str(folder / "few.toml"), "--offline"]
        line += ["--board", "none", "--batch-size", "4"]
        torchrun(count, [*line, "--out", str(folder / f"run-{count}")])
    alone = left_behind(folder / "run-1")
    for count in COUNTS[1:]:
        yield "files of an evaluation", str(count), len(differences(left_behind(folder / f"run-{count}"), alone)), 0


def command(
    folder: Path, method: str, name: str, iterations: int, precision: str, sharded: bool = False
) -> list[str]:
    """Return the module and its arguments of a training, its config written."""
    settings = SETTINGS[method].replace("{folder}", str(folder))
    rewards = REWARD if method == "rtdmd" else ""
    text = CONFIG.format(
        folder=folder, precision=precision, rewards=rewards, iterations=iterations, settings=settings,
        sharded=str(sharded).lower(),
    )  # fmt: skip
    config = folder / f"{name}.toml"
    config.write_text(text, encoding="utf-8")
    return ["trainers.run", method, "--config", str(config), "--out", str(folder / name)]


def train(
    folder: Path, method: str, name: str, count: int, iterations: int, precision: str, sharded: bool = False
) -> None:
    """Train to the end with so many processes; what they draw of a teacher is their own."""
    shutil.rmtree(folder / "samples", ignore_errors=True)
    torchrun(count, command(folder, method, name, iterations, precision, sharded))


def torchrun(count: int, module: list[str]) -> None:
    """Run a module in so many processes. Raises RuntimeError where one fails."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    line += ["--master_addr", "127.0.0.1", "--master_port", free_port(), "-m", *module]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(module)}: exit code {done.returncode}\n{done.stderr[-4000:]}")


def kill(folder: Path, method: str, name: str, count: int, iterations: int) -> None:
    """Kill a float64 training of so many processes at about a third, not all of them at the same moment."""
    module, port = command(folder, method, name, iterations, "float64"), free_port()
    started = []
    for rank in range(count):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        line = [sys.executable, "-m", *module]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(line, cwd=ROOT, env=os.environ | ENVIRONMENT | places | where, **quiet))
    log = folder / name / "log.jsonl"
    while not log.is_file() or len(log.read_bytes().splitlines()) < max(3, iterations // 3):
        if any(process.poll() is not None for process in started):
            raise RuntimeError(f"{name}: a process ended before it could be killed")
        time.sleep(0.05)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


def free_port() -> str:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(parse(Arguments, prog="python -m tests.studies.processes", description=__doc__)))
