"""Put claims of the papers to the test on the micro world:

    python -m trainers.claims [micro] --hours H      train what decides most, then write the study of what is there
    python -m trainers.claims [micro] --list         runs, passes and hours still to do; counts first and last

Called again it goes on: finished runs are left alone, an unfinished training continues, further seeds are added. It
may be stopped at any moment; --hours 0 only writes the study. Calls at the same time share the work:
what one of them trains, or a cold start that it is training, the others leave to it.

What a finished run leaves of numbers is kept beside the study (<study>/runs/*.json), on whatever machine it was
trained: runs that stand there are not trained again. To repeat all of it: --study build/again.json.

--compile trains with torch.compile: quicker per pass, after some minutes of compiling; it needs a C++ compiler.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.cli import parse
from benchmarks.screen import guarded
from benchmarks.suites import read_suite
from leaderboards.studies import STUDIES, Claims
from leaderboards.study_report import tally, write_study
from trainers.backbones.prompt_store import made_folder
from trainers.claims.measures import check_measures
from trainers.claims.plan import Study, find_plan, read_study
from trainers.claims.record import Records
from trainers.claims.report import claims_of
from trainers.claims.runs import Runs
from trainers.claims.schedule import Item, ordered, work_off


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m trainers.claims`."""

    plan: Annotated[str, tyro.conf.Positional] = "micro"  # name (trainers/configs/claims/<name>.toml) or a TOML file
    compile: bool = False  # torch.compile (backbone.compile) of what is trained: quicker, and needs a C++ compiler
    hours: float = 0.0  # begin nothing that would not fit; 0 = write the study of what is there
    list: bool = False  # show what is to do and what it takes
    out: Path | None = None  # folder of the runs; default runs/claims-<plan>
    study: Path | None = None  # the JSON, beside the records; default leaderboards/studies/<plan>-claims.json


def main(arguments: Arguments) -> int:
    """Train for some hours, then write the study; return the exit code: 2 where an arm could not be trained."""
    started = time.monotonic()
    path = find_plan(arguments.plan)
    study = read_study(path)
    check_plan(study)
    to = arguments.study or STUDIES / f"{path.stem}-claims.json"
    made_folder(to.parent, "--study")
    folder = arguments.out or Path("runs") / f"claims-{path.stem}"
    runs = Runs(study, folder, Records(to.with_suffix("") / "runs"), arguments.compile)
    items = ordered(study)
    if arguments.list:
        show(runs, items)
        return 0
    until = started + 3600 * arguments.hours
    waiting = work_off(
        items,
        runs.state,
        runs.seconds,
        left=lambda: until - time.monotonic(),
        free=runs.free,
        run=lambda item: runs.advance(item, until),
    )
    found = claims_of(runs, "tox -e study -- --hours H")
    for written in write_study(found, to):
        print(written)
    print(summary(found, len(items) - len(waiting), len(items)))
    for item, reason in runs.failed.items():
        print(f"{item.name}: {reason}", file=sys.stderr)
    return 2 if runs.failed else 0


def check_plan(study: Study) -> None:
    """Raise UserError where a measure asks for what neither suite nor canary of its arms hold."""
    plan = study.plan
    suite = list(read_suite(plan.suite).tasks[0].metrics)
    for where, arms, measures in (
        *((f"claims.{one.id}", one.arms, (one.measure,)) for one in plan.claims),
        *((f"figures.{one.id}", one.arms, one.measures) for one in plan.figures if one.kind != "curves"),
    ):
        for arm in arms:
            benchmarked = suite if plan.arms[arm].benchmark else ()
            check_measures(measures, benchmarked, watched(study, arm), f"{study.path}: {where}: {arm}")
    for figure in (one for one in plan.figures if one.kind == "curves"):
        for arm in figure.arms:
            curves = [one if ":" in one else f"area:{one}" for one in figure.measures]
            check_measures(curves, (), watched(study, arm), f"{study.path}: figures.{figure.id}: {arm}")


def watched(study: Study, arm: str) -> list[str]:
    """Return the metrics that an arm's canary measures: none where it is not trained."""
    if arm not in study.runs:
        return []
    _, run = study.run(arm, 0)
    return [*(reward.id for reward in run.rewards), *run.canary.metrics]


def show(runs: Runs, items: list[Item]) -> None:
    """Print what is to do and the hours it takes at the pace that logs tell; first and last, how much that is."""
    table = Table("run", "state", "passes to do", "passes per second", "hours", title=runs.study.plan.title)
    shared: set[str] = set()
    finished, passes, hours = 0, 0, 0.0
    for item in items:
        if (state := runs.state(item)) == "done":
            finished += 1
            continue
        left = runs.passes_left(item, shared)
        took = runs.seconds_for(item, left) / 3600
        passes, hours = passes + left, hours + took
        table.add_row(item.name, state, f"{left:,}", f"{runs.pace(item.arm):.0f}", f"{took:.2f}")
    counts = f"{finished} of {len(items)} runs done; {passes:,} network passes and {hours:.1f} hours to do"
    print(counts)
    if table.rows:
        Console().print(table)
        print(counts)


def summary(study: Claims, finished: int, runs: int) -> str:
    """Return one line on the study."""
    return f"{finished} of {runs} runs; {len(study.claims)} claims: {tally(study)}"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m trainers.claims", description=__doc__))))
