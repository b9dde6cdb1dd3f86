"""Ablation studies as data: rows × seeds, each a training or a plain benchmark, all of them on one board.

    python -m trainers.study rtdmd [--seeds 0 1 2] [--rows ac-dmd subgrpo] [--list] [--table FILE]

A row is a name and what it changes in the study's base config. Called again, the study continues: finished rows are
left alone, an interrupted one goes on. Runs that agree in everything up to the end of a stage share that stage, so a
cold start is trained once per seed and all that follows starts from the same weights.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError, as_table, build, config, nearest, read_toml
from benchmarks.screen import guarded
from trainers.config import RunConfig, merge, read_table
from trainers.run import is_main_process

CONFIGS = Path(__file__).parent / "configs"


@config
class RowConfig:
    """One row of the study: a training that changes the base config, or a model that is only benchmarked."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)  # laid over the base config
    model: str = ""  # benchmark this folder instead of training
    steps: int = 0  # of that model; 0 = its protocol's
    guidance: float = -1.0  # of that model; -1 = its protocol's


@config
class StudyConfig:
    """A study's rows."""

    method: str
    base: str  # config file, relative to the study's own
    suite: str
    seeds: tuple[int, ...] = (0, 1, 2)
    measures: tuple[str, ...] = ()  # metrics of its table
    compared: tuple[str, ...] = ()  # metrics of which the table shows differences
    against: tuple[str, ...] = ()  # rows that they are taken to
    rows: tuple[RowConfig, ...]

    def __post_init__(self) -> None:
        if not self.seeds or not self.rows:
            raise ValueError("a study needs seeds and rows")
        for name in self.against:
            if name not in (names := [row.name for row in self.rows]):
                raise ValueError(f"against: no row {name!r}; {nearest(name, names)}")
        if len({row.name for row in self.rows}) < len(self.rows):
            raise ValueError("two rows have the same name")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m trainers.study`."""

    study: Annotated[str, tyro.conf.Positional]  # name (trainers/configs/study-<name>.toml) or a TOML file
    seeds: tuple[int, ...] = ()  # only these
    rows: tuple[str, ...] = ()  # only these
    out: Path | None = None  # folder of the runs; default runs/study-<name>
    board: Path | None = None  # folder of results; default: the leaderboard's
    table: Path | None = None  # write what was found there too, as Markdown
    list: bool = False  # show the rows and what is done


def main(arguments: Arguments) -> int:
    """Run what a study still lacks; return the exit code. Raises UserError for what the caller can mend."""
    named = CONFIGS / f"study-{arguments.study}.toml"
    path = named if named.is_file() else Path(arguments.study)
    if not path.is_file():
        known = [file.stem.removeprefix("study-") for file in CONFIGS.glob("study-*.toml")]
        raise UserError(f"unknown study {arguments.study!r}; {nearest(arguments.study, known)}")
    study = read_toml(StudyConfig, path)
    out = arguments.out or Path("runs") / path.stem
    rows = _chosen(study, arguments.rows)
    if arguments.list:
        show_rows(rows, arguments.seeds or study.seeds, out)
        return 0
    for seed in arguments.seeds or study.seeds:
        for row in rows:
            folder = _folder(out, row, seed)
            if not _done(folder).exists():
                print(f"{folder.name} …", file=sys.stderr, flush=True)
                run_row(study, path, row, seed, folder, arguments.board)
                if is_main_process():
                    _done(folder).touch()
    if is_main_process():
        report(study, arguments.board, arguments.table)
    return 0


def show_rows(rows: Iterable[RowConfig], seeds: Iterable[int], out: Path) -> None:
    """Print the rows, seed by seed and untrained ones once, and which of them are done in this folder."""
    for folder in dict.fromkeys(_folder(out, row, seed) for seed in seeds for row in rows):
        print(f"{folder.name}: {'done' if _done(folder).exists() else 'to do'}")
    print(f"as {out} on this machine has it; what was done elsewhere stands on the board", file=sys.stderr)


def report(study: StudyConfig, board: Path | None, to: Path | None) -> None:
    """Print what was found, and write it to a file if there is one to write to."""
    from leaderboards.build import RESULTS
    from trainers.checkpoint import write_text
    from trainers.study_table import study_table

    found = study_table(study, board or RESULTS)
    print(found, end="")
    if to is not None:
        write_text(to, found)


def run_row(study: StudyConfig, path: Path, row: RowConfig, seed: int, folder: Path, board: Path | None) -> None:
    """Train or only benchmark one row; an untrained row knows no seed."""
    from leaderboards.build import RESULTS
    from trainers.checkpoint import held
    from trainers.run import train

    if row.model:
        benchmark(row.model, study.suite, row.name, folder, board or RESULTS, row.steps, row.guidance)
        return
    run, where = row_settings(study, path, row, seed), f"{path}: {row.name}"
    if is_main_process():
        with held(folder):
            donate_stage(study.method, run, folder, where)
    train(study.method, run, folder, where=where, board=board)


def benchmark(
    model: str | Path, suite: str, name: str, folder: Path, board: Path, steps: int = 0, guidance: float = -1.0
) -> None:
    """Put a model through a suite, in a run's folder; 0 steps and a guidance of -1 are its protocol's own."""
    from benchmarks import evaluate
    from benchmarks.plan import Overrides

    overrides = Overrides(steps=steps or None, guidance=guidance if guidance >= 0 else None)
    place = folder / f"benchmark-{Path(suite).stem}"
    evaluate(model, suite, name=name, out=place, board=board, overrides=overrides)


def row_settings(study: StudyConfig, path: Path, row: RowConfig, seed: int) -> RunConfig:
    """Return a row's run. Raises UserError where base and row do not make one."""
    table = merge(read_table(path.parent / study.base), row.settings)
    table |= {"name": f"{row.name}-s{seed}", "seed": seed, "benchmark": study.suite}
    return build(RunConfig, table, f"{path}: {row.name}")


def donate_stage(method: str, run: RunConfig, folder: Path, where: str = "config") -> None:
    """Let a new run start from the end of the longest stage that a neighbour has trained under the same settings.

    Raises UserError, opened by `where`, for bad settings of a stage."""
    from trainers.checkpoint import STATE, adopt_state, changed_defaults, claim_folder, read_settings, stage_state
    from trainers.config import resolved_settings

    if (folder / STATE).exists():
        return
    names, resolved = list(run.stages), resolved_settings(method, run, where)
    for stage in reversed(names):
        earlier = {name: resolved[name] for name in names[: names.index(stage) + 1]}
        wanted = run_digest(method, run, stage)
        for donor in sorted(folder.parent.glob("*/run.json")):
            try:
                table = read_settings(donor)
            except UserError:
                continue  # of another version, or damaged: nothing to share
            alike = stage in table["stages"] and stages_digest(table, stage) == wanted
            alike = alike and not changed_defaults(donor, earlier)
            if donor.parent != folder and alike and stage_state(donor.parent, stage).exists():
                claim_folder(folder, method, replace(run, processes=run.processes or 1), where=where)
                adopt_state(folder, donor.parent, list(earlier))
                return


def run_digest(method: str, run: RunConfig, last: str) -> str:
    """Return `stages_digest` of a run as its folder will tell it: with the number of processes it begins with."""
    return stages_digest({"method": method, **as_table(replace(run, processes=run.processes or 1))}, last)


def stages_digest(table: dict[str, Any], last: str) -> str:
    """Return the sha256 of all that decides a run up to the end of a stage; compiled or not, it is the same run.

    Rewards belong to it: the canary scores them, and a stage may train on them."""
    names = list(table["stages"])
    stages = [(name, table["stages"][name]) for name in names[: names.index(last) + 1]]
    outside = ("name", "benchmark", "export", "stages")
    decisive = {key: value for key, value in table.items() if key not in outside} | {"stages": stages}
    decisive["backbone"] = {key: value for key, value in table["backbone"].items() if key not in ("name", "compile")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _chosen(study: StudyConfig, names: Iterable[str]) -> list[RowConfig]:
    rows = {row.name: row for row in study.rows}
    for name in names:
        if name not in rows:
            raise UserError(f"--rows {name}: no such row; {nearest(name, rows)}")
    return [row for name, row in rows.items() if not names or name in names]


def _folder(out: Path, row: RowConfig, seed: int) -> Path:
    """Return the folder of a row; an untrained one knows no seed."""
    return out / (row.name if row.model else f"{row.name}-s{seed}")


def _done(folder: Path) -> Path:
    return folder / "done"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m trainers.study", description=__doc__))))
