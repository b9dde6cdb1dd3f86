"""Benchmark a text-to-image model: python -m benchmarks.run --model ckpt/ --suite micro

Stages generate, score and summarise do only what is missing: the same command continues whatever was interrupted, and
several processes may work on one run. Exit codes: 0 done, 1 our mistake, 2 something for you to mend (one line).
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.protocol import Dtype
from benchmarks.screen import guarded, show_catalogue, show_missing, show_plan, show_result

if TYPE_CHECKING:
    from benchmarks.workflow import Settings


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Benchmark a model on a suite."""

    model: str = ""
    """Diffusers folder, LoRA folder, card of a published model (--list), hub id (org/name[@revision]), function
    (module:function), or folder of pictures made elsewhere"""
    suite: str = "micro"
    """Name of a suite, or a TOML file"""
    out: Path | None = None
    """Run directory; default runs/<model>-<suite>"""
    name: str | None = None
    """Name of the model in results; default: the folder's"""
    base: str | None = None
    """Base of a LoRA folder; default: the one it names"""
    stage: Literal["generate", "score", "summarise", "all"] = "all"
    """Do one stage only"""
    limit: int | None = None
    """Only this many prompts of each task; the result is partial"""
    seeds: int | None = None
    """Only this many images of each prompt; the result may be partial"""
    metrics: tuple[str, ...] = ()
    """Only these metrics; the result is partial"""
    steps: int | None = None
    """Sampling steps, instead of the model's own"""
    guidance: float | None = None
    """Guidance scale (1 = off), instead of the model's own"""
    dtype: Dtype | None = None
    """Number format of the network, instead of the model's own"""
    shard: str = "1/1"
    """K/N: only the K-th of N parts, on a machine of its own; python -m benchmarks.merge joins the directories"""
    batch_size: int | None = None
    """Pictures drawn at once, fixed for a run; default up to 16, by the size of pictures and memory"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; default: an accelerator where there is one"""
    board: str = ""
    """Folder of results to publish to, or "none"; default leaderboards/results"""
    plugin: tuple[str, ...] = ()
    """Modules that register metrics of your own"""
    weights: Path | None = None
    """Folder of the metrics' weights, DIR/<id>/<file>; default: FEWSTEP_BENCH_WEIGHTS, then the hub's cache"""
    prompts: Path | None = None
    """Folder of prompt sets that are not shipped; default: the environment variable FEWSTEP_BENCH_PROMPTS"""
    backend: Literal["native", "official"] = "native"
    """official: score with the packages image-reward and hpsv2 as well, in their own environment, and compare"""
    skip_missing: bool = False
    """Run what can run, without the metrics whose weights are not here"""
    offline: bool = False
    """Never ask the hub"""
    list: bool = False
    """List suites, metrics and published models"""
    dry_run: bool = False
    """Show what would be done, its operations and memory, and about how long it takes"""
    plan_for: str = ""
    """With --dry-run: hours on this device instead of the present one: h100, a100, …"""


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    from benchmarks import workflow

    if arguments.list:
        show_catalogue(arguments.plugin)
        return 0
    if not arguments.model:
        raise UserError("--model is missing: pass a folder or a hub id (--list shows suites and metrics)")
    prepared = workflow.prepare(arguments.model, arguments.suite, _settings(arguments))
    if arguments.dry_run:
        show_plan(prepared, arguments.plan_for)
        show_missing(prepared.plan.missing)
        return 0
    if not arguments.skip_missing:
        show_missing(prepared.plan.missing)
    summarised = workflow.work(prepared)
    if summarised is None:
        print(f"{prepared.out}: {arguments.stage} done, part {arguments.shard}")
        return 0
    if not _is_main_process():
        return 0  # one of those that a launcher started together shows the result
    show_result(summarised.result, prepared.out)
    if arguments.backend == "official":
        from benchmarks import official

        official.main(official.Arguments(run=prepared.out))
    failed = [
        f"{task.name}/{name}: {metric.reason}"
        for task in summarised.result.tasks
        for name, metric in task.metrics.items()
        if metric.status == "failed"
    ]
    if failed:
        raise UserError(f"{len(failed)} metrics failed, the others are done ({failed[0]})")
    return 0


def cli() -> None:
    """Parse the command line, run, and exit."""
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.run", description=__doc__))))


def _settings(arguments: Arguments) -> "Settings":
    from benchmarks.plan import Overrides
    from benchmarks.workflow import BOARD, Settings

    boards = {"": BOARD, "none": None}
    overrides = Overrides(
        limit=arguments.limit,
        seeds=arguments.seeds,
        metrics=arguments.metrics,
        steps=arguments.steps,
        guidance=arguments.guidance,
        dtype=arguments.dtype,
    )
    return Settings(
        name=arguments.name,
        base=arguments.base,
        out=arguments.out,
        board=boards.get(arguments.board, Path(arguments.board)) if _is_main_process() else None,
        stage=arguments.stage,
        batch_size=arguments.batch_size,
        shard=_shard(arguments.shard),
        device=arguments.device,
        offline=arguments.offline,
        plugins=arguments.plugin,
        weights=arguments.weights,
        prompts=arguments.prompts,
        skip_missing=arguments.skip_missing,
        overrides=overrides,
    )


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _shard(text: str) -> tuple[int, int]:
    """Return (k, n), k from 0, of "K/N"."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise UserError(f"--shard {text}: must be K/N, such as 1/3")
    return int(part) - 1, int(parts)


if __name__ == "__main__":
    cli()
