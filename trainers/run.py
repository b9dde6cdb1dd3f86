"""Train a student, export it, benchmark it, list it:

    python -m trainers.run --config trainers/configs/rtdmd-micro.toml [--set trainer.sampler.eta=0.8]
    python -m trainers.run --preset rtdmd-sd3m                (a row of a paper's table; --presets lists them)
    python -m trainers.run --preset rtdmd-sd3m --dry-run --plan-for h100     (what it would cost)
    python -m trainers.run rtdmd --keys        (what a file and --set may hold: every key, its values, its default)

The same command again continues where the last one stopped; Ctrl-C and SIGTERM finish the iteration and write a
checkpoint. On several accelerators, torchrun --nproc_per_node 8 -m trainers.run … trains on 8 times the batch of the
file, or shares a batch for `processes` of them. Exit codes: 0 done, 2 a mistake to mend, 1 ours, 130 after Ctrl-C and
143 after SIGTERM.
"""

import math
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.screen import guarded
from metrics.base import import_plugins

if TYPE_CHECKING:
    from trainers.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m trainers.run`."""

    method: Annotated[str, tyro.conf.Positional] = ""  # trainer's name, where the file has none; --list shows them
    config: Path | None = None  # TOML file of the run
    preset: str = ""  # the run behind a row of a paper's table, instead of a file
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # dotted.key=value on top of the file
    out: Path | None = None  # folder of the run; default runs/<name>
    board: Path | None = None  # folder of results to publish to; default leaderboards/results
    resume: bool = True  # continue what the folder holds; --no-resume starts over
    benchmark: bool = True  # run the config's suite at the end; --no-benchmark leaves it out
    list: bool = False  # show trainers and backbones
    presets: bool = False  # show the presets
    keys: bool = False  # show every key of a run's file and of the method's settings, with default and meaning
    dry_run: bool = False  # check the run, show its passes, operations, memory and hours; nothing is done
    plan_for: str = ""  # with --dry-run: on this device instead of the present one: h100, a100, …
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # Python modules that register more of them


def main(arguments: Arguments) -> int:
    """Run one training; return its exit code. Raises UserError for everything that the caller can mend."""
    import_plugins(arguments.plugin)
    if arguments.list:
        show_registries()
        return 0
    if arguments.presets:
        from trainers.presets import show_presets

        show_presets()
        return 0
    if arguments.keys:
        from trainers.keys import show_keys

        show_keys(chosen_run(arguments)[0] if arguments.preset or arguments.config else arguments.method)
        return 0
    method, run, where = chosen_run(arguments)
    if arguments.plan_for and not arguments.dry_run:
        raise UserError("--plan-for says for which device a plan is: add --dry-run, or leave it out")
    if arguments.set:
        from trainers.unread import check_overrides

        check_overrides(method, run, arguments.set, where)
    if not arguments.benchmark:
        run = replace(run, benchmark="")
    if arguments.dry_run:
        from trainers.checks import check_start
        from trainers.plan import show_plan

        untold = check_start(method, run, where, check_benchmark)
        show_plan(method, run, where, arguments.plan_for)
        for reason in untold:
            print(f"not checked: {reason}")
        return 0
    folder = arguments.out or Path("runs") / run.name
    student = train(method, run, folder, resume=arguments.resume, where=where, board=arguments.board)
    if is_main_process():
        print(f"student: {student}")
    return 0


def chosen_run(arguments: Arguments) -> tuple[str, "RunConfig", str]:
    """Return (method, run, what opens errors in its settings). Raises UserError where the two are not told."""
    from trainers.base import find

    if arguments.preset:
        from trainers.presets import find_preset

        if arguments.config:
            raise UserError("--preset and --config name a run each: leave one out; --set changes single values")
        preset = find_preset(arguments.preset, arguments.method)
        return preset.settings.method, preset.build(arguments.set), f"preset {preset.name}"
    if arguments.config is None:
        raise UserError(
            "name a trainer and its config: python -m trainers.run rtdmd --config FILE, or --preset; --list shows"
        )
    from trainers.config import read_method, read_run

    if arguments.method:
        find(arguments.method)  # before the file is read: what it may hold is the method's
    own = read_method(arguments.config)
    if not (method := arguments.method or own):
        raise UserError(f"{arguments.config} names no method: python -m trainers.run METHOD --config …; --list shows")
    if own and method != own:
        raise UserError(
            f"{arguments.config} is a file of {own!r}, not of {method!r}: leave the method out, or name another file"
        )
    find(method, "" if arguments.method else f"{arguments.config}: method: ")
    return method, read_run(arguments.config, arguments.set), str(arguments.config)


def train(
    method: str,
    run: "RunConfig",
    folder: Path,
    *,
    resume: bool = True,
    where: str = "config",
    board: Path | None = None,
    until: float = math.inf,
) -> Path:
    """Train, export and benchmark one student in a folder; return the student's own folder.

    until: a moment of time.monotonic() at which the training writes a checkpoint and raises trainers.pause.Paused.
    Raises UserError as the parts do, and where another start is at work in the folder; `where` opens the errors in
    settings. Processes that train together share the benchmark too: each draws the blocks it gets hold of."""
    from trainers.checkpoint import held
    from trainers.loop import Loop

    if run.benchmark and is_main_process():  # one reads the base for all
        check_benchmark(run)
    with held(folder) if is_main_process() else nullcontext():
        student = Loop(method, run, folder, resume, where).train(until)
        if run.benchmark:
            publish(student, run.benchmark, run.name, board)
    return student


def check_benchmark(run: "RunConfig") -> None:
    """Raise UserError, or NotHere, where the benchmark would refuse the student of this base: hours earlier."""
    from benchmarks.workflow import check
    from trainers.backbones.checkpoint import open_base

    base = open_base(run.backbone)
    try:
        check(base, run.benchmark)
    except UserError as error:
        raise type(error)(f"benchmark {run.benchmark!r}: {error}; --no-benchmark trains without it") from error


def is_main_process() -> bool:
    """Return whether this process is the first of those that a launcher (torchrun, accelerate) started together."""
    return int(os.environ.get("RANK", "0")) == 0


def publish(student: Path, suite: str, name: str, board: Path | None) -> None:
    """Benchmark an exported student, show its values, rebuild the leaderboard; `board` is its folder of results."""
    from benchmarks import evaluate
    from benchmarks.screen import show_result
    from leaderboards.build import RESULTS, SITE, build

    results = board or RESULTS
    out = student.parent / f"benchmark-{Path(suite).stem}"
    result = evaluate(student, suite, name=name, out=out, board=results if is_main_process() else None)
    if not is_main_process():
        return
    show_result(result, out)
    _, written = build(results, SITE if results == RESULTS else results.parent / "site")
    print("leaderboard: " + ", ".join(str(path) for path in written))


def show_registries() -> None:
    """Print what can be named: trainers, backbones, and as rewards the metrics that have a value for each image."""
    from metrics.base import available as metrics_available
    from metrics.base import make
    from trainers.backbones.base import available as backbones_available
    from trainers.base import available

    own = {name: kind.__module__.startswith("trainers.claims.") for name, kind in available().items()}
    print("trainers:  " + ", ".join(f"{name} (of the claims study alone)" if own[name] else name for name in own))
    print("backbones: " + ", ".join(backbones_available()))
    print("rewards:   " + ", ".join(name for name in metrics_available() if make(name).card.aggregate != "set"))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m trainers.run", description=__doc__))))
