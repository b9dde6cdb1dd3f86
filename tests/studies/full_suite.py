"""Does every metric of the suite `full` run from end to end? On a shrunken SD3, with shrunken weights of them all.

    python -m tests.studies.full_suite [--limit 4] [--suite full] [--out runs/shrunken-full]

Weights are seeded and random (tests/shrunken/metrics.py), so values mean nothing and the result is `synthetic`. A
metric must be measured by one task at least, unless all its tasks say a reason of those that no weights can mend:
prompts or questions that cannot be shipped, an engine that is no network of ours, more images than so few prompts
make, or pictures of another size. Prints a Markdown table of metrics; exit code 1 where one is left out otherwise.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.run import Arguments as RunArguments
from benchmarks.run import main as run
from benchmarks.suites import read_suite
from leaderboards.schema import Result, read_result
from tests.shrunken.families import make_wide
from tests.shrunken.metrics import stand_ins, write

MENDED_ELSEWHERE = {  # beginnings of parts of reasons
    "no such file": "prompts or questions are not shipped",
    "for models that draw": "for pictures of another size",
    "images in all": "more images than these",
    "images of each prompt": "more images than these",
    "paddleocr": "an engine, not a network of ours",
    "answers holds a rating": "a random network rates nothing",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How much, and where."""

    limit: int = 4
    suite: str = "full"
    out: Path | None = None


def main(arguments: Arguments) -> int:
    """Run the suite; print the table; return the exit code."""
    with tempfile.TemporaryDirectory() as place:
        folder, began = Path(place), time.monotonic()
        weights, prompts = folder / "weights", folder / "prompts"
        for made in (weights, prompts):
            made.mkdir()
        write(weights)
        texts = [f"a {colour} {thing} on a table" for colour in ("red", "blue") for thing in ("cup", "book", "cat")]
        (prompts / "sharegpt-4o.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        model, out = make_wide(folder / "model"), arguments.out or folder / "run"
        chosen = RunArguments(
            model=str(model), suite=arguments.suite, limit=arguments.limit, out=out, name="shrunken",
            board="none", skip_missing=True, offline=True, device="cpu",
        )  # fmt: skip
        environment = {"FEWSTEP_BENCH_PROMPTS": str(prompts)}
        with stand_ins(weights), patch.dict("os.environ", environment), suppress(UserError):
            run(chosen)  # a metric that fails is an error there, and a row here
        return show(arguments.suite, read_result(out / "result.json"), time.monotonic() - began)


def show(suite: str, result: Result, seconds: float) -> int:
    """Print what became of each metric; return the exit code."""
    tasks_of = {task.name: task.metrics for task in read_suite(suite).tasks}
    metrics = sorted({metric for named in tasks_of.values() for metric in named})
    asked = {metric: [task for task, named in tasks_of.items() if metric in named] for metric in metrics}
    failed = 0
    print("| metric | measured in | otherwise |\n|---|---|---|")
    for metric, tasks in asked.items():
        measured, reasons = outcome(metric, tasks, result)
        why = {explained(reason) for reason in reasons.values()}
        left_out = not measured and ("" in why or not why)
        failed += left_out
        said = "; ".join(sorted(filter(None, why))) if not left_out else f"LEFT OUT: {reasons}"
        print(f"| `{metric}` | {len(measured)} of {len(tasks)} | {said} |")
    print(f"\n{len(asked)} metrics, {failed} left out without a reason; {result.status}; {seconds:.0f} s")
    return 1 if failed or result.status == "ranked" else 0


def outcome(metric: str, tasks: list[str], result: Result) -> tuple[list[str], Mapping[str, str]]:
    """Return (those of a metric's tasks that have a value of it, the reasons of those that have none)."""
    measured, reasons = [], {}
    for task in (task for task in result.tasks if task.name in tasks):
        if task.status != "ok" and not task.metrics:
            reasons[task.name] = task.reason
        elif metric in task.metrics:
            found = task.metrics[metric]
            if found.value is not None:
                measured.append(task.name)
            else:
                reasons[task.name] = found.reason
    return measured, reasons


def explained(reason: str) -> str:
    """Return what a reason comes to, "" for one that weights should have mended."""
    return next((told for part, told in MENDED_ELSEWHERE.items() if part in reason.lower()), "")


if __name__ == "__main__":
    sys.exit(main(parse(Arguments, prog="python -m tests.studies.full_suite", description=__doc__)))
