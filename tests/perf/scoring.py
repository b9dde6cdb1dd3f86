"""Speed of scoring at true sizes: against official packages, their code with weights loaded once, and bare passes.

    tox -e perf-scoring                                   everything: three rounds, 16 pictures, 5.5 GB on the disk
    tox -e perf-scoring -- --case image_reward --rounds 1
    tox -e perf-scoring -- --small                        shrunken models: whether it runs; no bar is judged

Weights are random, in files of the true layout, written once under --folder. Our code and the package's each run in a
process of their own, and score one prompt's four pictures at a time in turns, so that a busy moment slows all alike.
Figures are printed as they come. A round is kept once it is whole; a second start goes on with the next round.
What is measured, imports aside, is the sum over all prompts:

    ours, first    read weights and pictures, score, keep the evidence: what a first run does
    ours           the same with the weights loaded already
    bare           the encoders' forward passes on tensors that are ready; nothing is read or kept
    readme         the official package as its README shows: a call for each prompt; of hpsv2, each reads the weights
    loaded         the official package's own code, its weights loaded once

Bars: readme / ours, first >= 5; loaded / ours >= 1.2; bare / ours >= 0.92 (seconds over seconds). Exit code 1 where
one is missed at true sizes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from tests.perf.scoring_inputs import CASES, Work, architectures, write_pictures, write_weights

ROOT = Path(__file__).resolve().parents[2]
BARS = {"readme / ours, first": 5.0, "loaded / ours": 1.2, "bare / ours": 0.92}
Round = Mapping[str, float]  # seconds for all pictures by way, and "peak_gb" of memory by what was run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the speed of scoring."""

    prompts: int = 4
    images_per_prompt: int = 4
    side: int = 512
    """Pixels of the pictures"""
    rounds: int = 3
    case: tuple[str, ...] = tuple(CASES)
    """Which metrics to measure"""
    device: str = "cpu"
    threads: int = os.cpu_count() or 1
    small: bool = False
    """Shrunken models, a toy run"""
    folder: Path = Path("runs/perf")
    """Where weights, pictures and finished rounds are kept"""


def main(arguments: Arguments) -> int:
    """Print seconds per picture of each way, and their ratios; return the exit code."""
    folder = (arguments.folder / ("scoring-small" if arguments.small else "scoring")).resolve()
    work = Work(
        folder=str(folder),
        distinct_prompts=arguments.prompts,
        images_per_prompt=arguments.images_per_prompt,
        device=arguments.device,
        small=arguments.small,
    )
    settings = {"work": asdict(work), "side": arguments.side, "threads": arguments.threads}
    write_pictures(folder / "pictures", work.images, arguments.side)
    missed = 0
    for name in arguments.case:
        with architectures(arguments.small):
            for identity in CASES[name].weights:
                write_weights(folder / "weights", identity)
        kept = Rounds(folder / "rounds.jsonl", name, settings)
        for number in range(len(kept.found), arguments.rounds):
            print(f"{name}, round {number + 1} of {arguments.rounds}:", flush=True)
            kept.add(measure(name, work, arguments.threads))
        missed += print_case(name, kept.found, work.images, arguments)
        if arguments.device.startswith("cuda"):
            measure_bf16(name, work, arguments.threads)
        else:
            print("  bf16 on a GPU: not measured", flush=True)
    return int(missed > 0 and not arguments.small)


class Rounds:
    """The finished rounds of one case under one setting, a line of JSON each in a file that other settings share."""

    def __init__(self, path: Path, case: str, settings: Mapping[str, Any]) -> None:
        self.path, self.key = path, {"case": case, "settings": dict(settings)}
        content = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = content[: content.rfind("\n") + 1]
        if whole != content:  # a kill cut the last line short
            path.write_text(whole, encoding="utf-8")
        rows = [json.loads(line) for line in whole.splitlines()]
        self.found: list[Round] = [row["round"] for row in rows if row | self.key == row]

    def add(self, found: Round) -> None:
        """Keep one round."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**self.key, "round": dict(found)}) + "\n")
        self.found.append(found)


def measure(name: str, work: Work, threads: int) -> dict[str, float]:
    """Measure one case by all ways in turn, print each figure; return seconds by way."""
    peer = CASES[name].peer
    with ExitStack() as running:
        own = running.enter_context(Worker("ours", own_command(name, "turns"), work, threads))
        cold = own.seconds("ours", 0)  # reads the weights
        ways = {"ours": own, "bare": own}
        loading = 0.0
        if peer:
            command = [peer_python(peer.environment), "-m", "tests.perf.scoring_peers", peer.name]
            theirs = running.enter_context(Worker(peer.name, command, work, threads))
            ways["loaded"] = theirs
            if peer.reads_at_every_call:
                ways["readme"] = theirs
            else:
                loading = theirs.seconds("load", 0)
        for way in set(ways) - {"ours"}:
            ways[way].seconds(way, 0)  # a warm one
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(work.distinct_prompts):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                taken[way].append(ways[way].seconds(way, number))
    found = {way: sum(seconds) for way, seconds in taken.items()}
    found["ours, first"] = cold + sum(taken["ours"][1:])
    if peer and not peer.reads_at_every_call:
        found["readme"] = loading + found["loaded"]
    for way, value in sorted(found.items()):
        print(f"  {way:12} {value / work.images:8.3f} s per picture", flush=True)
    return found


def own_command(name: str, way: str) -> list[str]:
    """Return the command of one of our own workers."""
    return [sys.executable, "-m", "tests.perf.scoring_worker", way, *CASES[name].metrics]


class Worker:
    """A process that scores one prompt's pictures whenever it is asked to."""

    def __init__(self, name: str, command: list[str], work: Work, threads: int) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(work))],
            cwd=ROOT,
            env=environment(work, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        if kind is None:
            print(f"  {self.name}: peak of memory {self._answer():.1f} GiB", flush=True)
        else:
            self._process.kill()
        self._process.wait()

    def seconds(self, way: str, number: int) -> float:
        """Return what one way takes for one prompt's pictures. Raises CalledProcessError where the worker died."""
        assert self._process.stdin
        print(way, number, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self._process.wait(), self._process.args)
        return float(line)


def print_case(name: str, rounds: list[Round], images: int, arguments: Arguments) -> int:
    """Print the medians of a case and its ratios, each taken within a round; return how many bars are missed."""
    print(f"{name}: {images} pictures of {arguments.side} px, {len(rounds)} rounds, {arguments.device}, "
          f"{arguments.threads} threads")  # fmt: skip
    for way in rounds[0]:
        each = [found[way] / images for found in rounds]
        print(f"  {way:12} {median(each):8.3f} s per picture")
    missed = 0
    for ratio, bar in BARS.items():
        above, below = ratio.split(" / ")
        if above in rounds[0]:
            each = [found[above] / found[below] for found in rounds]
            verdict = "toy run" if arguments.small else "holds" if median(each) >= bar else "MISSED"
            missed += median(each) < bar
            print(f"  {ratio}: {median(each):.2f} (bar {bar}, {verdict}; rounds "
                  f"{', '.join(f'{value:.2f}' for value in each)})")  # fmt: skip
    return missed


def environment(work: Work, threads: int) -> dict[str, str]:
    """Return the environment variables of a worker."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "FEWSTEP_BENCH_WEIGHTS": f"{work.folder}/weights",
        "FEWSTEP_BENCH_SYNTHETIC": "1",
    }


def measure_bf16(name: str, work: Work, threads: int) -> None:
    """Print the speed of the forwards in bfloat16, and the share of a large product's speed that they reach."""
    command = [*own_command(name, "bf16"), json.dumps(asdict(work))]
    done = subprocess.run(command, cwd=ROOT, env=environment(work, threads), stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = work.images / found["bf16"]
    print(f"  bf16: {rate:.1f} pictures per second, {found['share']:.0%} of a large product's speed", flush=True)


def peer_python(environment: str) -> str:
    """Return the interpreter of a tox environment, which is made where it is not there yet."""
    folder = Path(os.environ.get("TOX_WORK_DIR", ROOT / ".tox"))
    python = folder / environment / "bin" / "python"
    if not python.exists():
        # Within tox, its own variables would turn the inner tox into the outer one.
        outer = {name for name in os.environ if name.startswith("TOX_") or name == "VIRTUAL_ENV"} - {"TOX_WORK_DIR"}
        environ = {name: value for name, value in os.environ.items() if name not in outer}
        command = [sys.executable, "-m", "tox", "run", "-q", "-e", environment, "--notest"]
        subprocess.run(command, cwd=ROOT, env=environ, check=True)
    return str(python)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m tests.perf.scoring", config=(tyro.conf.FlagCreatePairsOff,))))
