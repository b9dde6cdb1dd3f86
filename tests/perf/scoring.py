"""Speed of scoring at true sizes: against official packages, their code with weights loaded once, and bare passes.

    tox -e perf-scoring                                   everything: three rounds, 16 pictures, 5.5 GB on the disk
    tox -e perf-scoring -- --case image_reward --rounds 1
    tox -e perf-scoring -- --small                        shrunken models: whether it runs; no bar is judged

Weights are random, in files of the true layout, written once under --folder. Every measurement is a process of its
own, and the ways take turns, so that a busy machine slows all alike. Figures are printed as they come. A round is
kept once all of its ways are measured, for only these can be compared; a second start goes on with the next round.
What is measured, imports aside, with four pictures a prompt as in the suite `preference`:

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
from collections.abc import Iterator, Mapping
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
            kept.add(measure(name, work, arguments.threads, backwards=number % 2 == 1))
        missed += print_case(name, kept.found, work.images, arguments)
        if arguments.device.startswith("cuda"):
            found = run(own(name, "bf16"), work, arguments.threads)
            print(f"  bf16: {work.images / found['bf16']:.1f} pictures per second, {found['share']:.0%} of a large "
                  "product's speed")  # fmt: skip
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


def measure(name: str, work: Work, threads: int, backwards: bool) -> dict[str, float]:
    """Measure one case by all ways in turn, print each figure; return seconds by way."""
    commands = list(ways(name))
    seconds: dict[str, float] = {}
    for command in commands[::-1] if backwards else commands:
        found = run(command, work, threads)
        peak = found.pop("peak_gb")
        for way, value in found.items():
            print(f"  {way:12} {value / work.images:8.3f} s per picture (peak {peak:.1f} GiB)", flush=True)
        seconds |= found
    return seconds


def ways(name: str) -> Iterator[list[str]]:
    """Yield the commands that measure a case, all but what they work on."""
    yield own(name, "ours")
    yield own(name, "bare")
    if peer := CASES[name].peer:
        python = peer_python(peer.environment)
        for way in ("readme", "loaded"):
            yield [python, "-m", "tests.perf.scoring_peers", peer.name, way]


def own(name: str, way: str) -> list[str]:
    """Return the command of one of our own ways."""
    return [sys.executable, "-m", "tests.perf.scoring_worker", way, *CASES[name].metrics]


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


def run(command: list[str], work: Work, threads: int) -> dict[str, float]:
    """Return what a worker measured: seconds by way."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "FEWSTEP_BENCH_WEIGHTS": f"{work.folder}/weights",
        "FEWSTEP_BENCH_SYNTHETIC": "1",
    }
    told = json.dumps(asdict(work))
    done = subprocess.run(
        [*command, told], cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


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
