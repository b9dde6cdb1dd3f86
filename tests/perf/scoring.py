"""Speed of scoring at true sizes: against official packages, their code with weights loaded once, and bare passes.

    python -m tests.perf.scoring [--images 16] [--rounds 3] [--case hps_v21]

Weights are random, in files of the true layout, in a temporary folder. Every measurement is a process of its own, and
they take turns, so that a busy machine slows all alike. What is measured, per picture with a prompt of its own:

    ours, first    read weights and pictures, score, keep the evidence: what a first run does
    ours           the same with the weights loaded already
    bare           the encoders' forward passes on tensors that are ready; nothing is read or kept
    readme         the official package as its README shows
    loaded         the official package's own code, its weights loaded once

Bars: readme / ours, first >= 5; loaded / ours >= 1.2; bare / ours >= 0.92 (seconds over seconds).
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from tests.perf.scoring_inputs import CASES, write_pictures, write_weights

ROOT = Path(__file__).resolve().parents[2]
BARS = {"readme / ours, first": 5.0, "loaded / ours": 1.2, "bare / ours": 0.92}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the speed of scoring."""

    images: int = 16
    side: int = 512
    """Pixels of the pictures"""
    rounds: int = 3
    case: tuple[str, ...] = tuple(CASES)
    """Which metrics to measure"""
    device: str = "cpu"
    threads: int = os.cpu_count() or 1


def main(arguments: Arguments) -> None:
    """Print seconds per picture of each way, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures", arguments.images, arguments.side)
        for name in arguments.case:
            write_weights(Path(folder) / "weights", CASES[name].weights)
            measure(name, Path(folder), arguments)


def measure(name: str, folder: Path, arguments: Arguments) -> None:
    """Measure one case in turns, and print its table."""
    ways = {"ours": [sys.executable, "-m", "tests.perf.scoring_worker", "ours", *CASES[name].metrics]}
    ways["bare"] = [sys.executable, "-m", "tests.perf.scoring_worker", "bare", *CASES[name].metrics]
    if peer := CASES[name].peer:
        python = peer_python(peer.environment)
        ways |= {way: [python, "-m", "tests.perf.scoring_peers", peer.name, way] for way in ("readme", "loaded")}
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for command in ways.values():
            for way, value in run(command, folder, arguments).items():
                seconds.setdefault(way, []).append(value / arguments.images)
    print(
        f"{name}: {arguments.images} pictures of {arguments.side} px on {arguments.device}, {arguments.rounds} rounds"
    )
    for way, values in seconds.items():
        print(f"  {way:12} {median(values):8.3f} s per picture ({', '.join(f'{value:.3f}' for value in values)})")
    for ratio, bar in BARS.items():
        above, below = ratio.split(" / ")
        if above in seconds:
            each = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
            print(f"  {ratio}: {median(each):.2f} (bar {bar}; rounds {', '.join(f'{value:.2f}' for value in each)})")
    if arguments.device.startswith("cuda"):
        found = run([*ways["bare"][:3], "bf16", *CASES[name].metrics], folder, arguments)
        speed = arguments.images / found["bf16"]
        print(f"  bf16: {speed:.1f} pictures per second, {found['share']:.0%} of a large product's speed")
    else:
        print("  bf16 on a GPU: not measured")


def run(command: list[str], folder: Path, arguments: Arguments) -> dict[str, float]:
    """Return what a worker measured: seconds by way."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(arguments.threads),
        "FEWSTEP_BENCH_WEIGHTS": str(folder / "weights"),
        "FEWSTEP_BENCH_SYNTHETIC": "1",
        "FEWSTEP_BENCH_PICTURES": str(folder / "pictures"),
        "FEWSTEP_BENCH_DEVICE": arguments.device,
    }
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peer_python(environment: str) -> str:
    """Return the interpreter of a tox environment, which is made where it is not there yet."""
    python = ROOT / ".tox" / environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "tox", "-e", environment, "--notest"], cwd=ROOT, check=True)
    return str(python)


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m tests.perf.scoring", config=(tyro.conf.FlagCreatePairsOff,)))
