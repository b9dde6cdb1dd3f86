"""Presets: the trainings behind the rows of the papers' tables, as data.

    python -m trainers.run --presets
    python -m trainers.run --preset dmdr-v2-table5c-lambda-2.0 [--set backbone.path=models/sd3]
    python -m trainers.run --preset rtdmd-micro              a method at a size for a laptop
    python -m trainers.presets               writes configs/presets/README.md: preset -> paper, table, row

A file of trainers/configs/presets is a paper, or the small versions of several papers' methods. A preset names its
method, the rows it stands for, what it extends (a TOML file, or an earlier preset of the same file) and the settings
in which it differs. Values that no paper and no authors' code state are said to be ours in the note of the preset, or
of one that it extends. Rows that the authors trained and that have no preset are `left_out`, with the reason.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.config import UserError, build, config, nearest, overridden, parse_toml
from benchmarks.screen import guarded
from trainers.config import RunConfig, merge, read_table

FOLDER = Path(__file__).parent / "configs" / "presets"
REPORTED = Path(__file__).parent.parent / "leaderboards" / "reported"
PAGE = FOLDER / "README.md"


@config
class RowRef:
    """One row of a table as leaderboards/reported holds it."""

    table: str
    row: str  # as printed
    group: str = ""  # where rows of several groups have one name
    nth: int = 1  # of the rows with this name and group
    paper: str = ""  # "" = that of the file


@config
class LeftOut:
    """Rows that no preset stands for."""

    rows: tuple[RowRef, ...]
    reason: str


@config
class PresetConfig:
    """One training."""

    method: str
    extends: str
    rows: tuple[RowRef, ...]
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@config
class PaperConfig:
    """A file of presets; their names are <paper>-<key>, or the keys where it is of several papers."""

    paper: str = ""  # tables are leaderboards/reported/<paper>-table<table>.json; "" = every row names its own
    title: str
    column: str = "Table, row"  # what a preset is to its rows, as the page's head of that column
    benchmark: str  # the suite that its students are put through
    presets: dict[str, PresetConfig]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A preset with its place in the papers and its whole run as a table."""

    name: str
    paper: str  # "" = small versions of several papers' methods
    settings: PresetConfig
    run: dict[str, Any]
    base: str = ""  # the name of the preset that it extends

    def build(self, overrides: tuple[str, ...] = ()) -> RunConfig:
        """Return the run. Raises UserError for an override that does not fit."""
        table = merge(self.run, {"name": self.name})  # a copy: overrides are assigned in place
        return build(RunConfig, overridden(json.loads(json.dumps(table)), overrides), f"preset {self.name}")


def read_presets(folder: Path = FOLDER) -> dict[str, Preset]:
    """Return every preset by name. Raises UserError where a file of them makes no sense."""
    found: dict[str, Preset] = {}
    for path, paper in read_papers(folder).items():
        names = {key: f"{paper.paper}-{key}" if paper.paper else key for key in paper.presets}
        for key, preset in paper.presets.items():
            base = found.get(names.get(preset.extends, ""))
            if preset.extends.endswith(".toml"):
                table = read_table(path.parent / preset.extends)
            elif base:
                table = base.run
            else:
                raise UserError(f"{path}: presets.{key}.extends: no such preset before it: {preset.extends!r}")
            run = merge({"benchmark": paper.benchmark} | table, preset.settings)
            found[names[key]] = Preset(names[key], paper.paper, preset, run, base.name if base else "")
    return found


def read_papers(folder: Path = FOLDER) -> dict[Path, PaperConfig]:
    """Return the files of presets. Raises UserError where one of them is malformed."""
    return {path: build(PaperConfig, parse_toml(path), str(path)) for path in sorted(folder.glob("*.toml"))}


def find_preset(name: str, method: str = "") -> Preset:
    """Return a preset by name. Raises UserError where it is unknown, or another method's than `method`."""
    presets = read_presets()
    if name not in presets:
        raise UserError(f"--preset {name}: no such preset; {nearest(name, presets)}")
    preset = presets[name]
    if method and method != preset.settings.method:
        raise UserError(f"--preset {name} trains {preset.settings.method!r}, not {method!r}: leave the method out")
    return preset


def reported_row(paper: str, row: RowRef) -> Mapping[str, Any] | None:
    """Return a table's row as the papers print it, None where there is none of that name."""
    path = REPORTED / f"{paper}-table{row.table}.json"
    if not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    named = [one for one in rows if one["system"] == row.row and (not row.group or one["group"] == row.group)]
    return named[row.nth - 1] if len(named) >= row.nth else None


def page(presets: Mapping[str, Preset]) -> str:
    """Return the Markdown page: preset, method, the rows it stands for, and the rows that have none."""
    return "\n".join(_lines(presets)) + "\n"


def show_presets() -> None:
    """Print name, method and rows of every preset."""
    for name, preset in read_presets().items():
        print(f"{name:34} {preset.settings.method:10} {'; '.join(map(_place, preset.settings.rows))}")


INTRODUCTION = """\
# Presets

Written by `python -m trainers.presets`. Train one with `python -m trainers.run --preset NAME`; `--set`
changes single values, such as the path of the base model. At its end a student goes through the suite of
its paper; which weights of the suite are not here is told before anything is trained; `--no-benchmark`
trains without it.

- **Notes.** "Ours" marks values that neither paper nor authors' code states. "As" another preset: what that
  one's note says holds here too, as far as nothing else is said.
- **(CFG value lost)** ends names of groups whose guidance scale was lost in the text that the paper's tables
  were taken from.
- **GPUs.** Batch sizes are per process, of as many as the authors had (`processes`). On fewer, each takes a
  larger share of the same batch, and `backbone.microbatch` makes it fit; `--set processes=1` is a smaller
  training.
- **Prompts.** A name is that of a declared set, which `python -m benchmarks.prompts fetch NAME` brings or
  tells how to get; a file is yours to write. `--set prompts.source=FILE` takes others
  (`stages.NAME.prompts.source` where a stage has its own).
- **Everywhere.** AdamW's moments have 32 bits, where DMDR's authors keep 8; samplers end at level 0, where
  DMDR's code ends at 0.001. A model that stands in two rows with equal numbers is one preset.
"""


def _lines(presets: Mapping[str, Preset]) -> Iterator[str]:
    yield INTRODUCTION.rstrip()
    for paper in read_papers().values():
        head = f"| Preset | Method | {paper.column} | Prompts | GPUs | Note |"
        yield from ("", f"## {paper.title}", "", head, "|---|---|---|---|---|---|")
        for name, preset in presets.items():
            if preset.paper == paper.paper:
                run, rows = preset.build(), "<br>".join(map(_place, preset.settings.rows))
                sources = dict.fromkeys(f"`{run.prompts_of(stage).source}`" for stage in run.stages)
                cells = (f"`{name}`", f"`{preset.settings.method}`", rows or "none", ", then ".join(sources))
                yield f"| {' | '.join(cells)} | {run.processes or 1} | {_note(preset, presets)} |"
        if paper.left_out:
            yield from ("", "Rows without a preset:", "")
        for one in paper.left_out:
            yield f"- {'; '.join(map(_place, one.rows))}: {one.reason}"


def _note(preset: Preset, presets: Mapping[str, Preset]) -> str:
    """Return the note of a preset; where one that it extends has a note too, its name."""
    base = presets[preset.base] if preset.base else None
    while base and not base.settings.note:
        base = presets[base.base] if base.base else None
    return "; ".join(filter(None, (preset.settings.note, f"as `{base.name}`" if base else "")))


def _place(row: RowRef) -> str:
    paper, group = (f"{text}{end}" if text else "" for text, end in ((row.paper, ", "), (row.group, ": ")))
    named = row.table.startswith(("figure", "appendix"))
    table = row.table[0].upper() + row.table[1:] if named else f"Table {row.table}"
    return f"{paper}{table}, {group}{row.row}" + (f" (no. {row.nth})" if row.nth > 1 else "")


def main() -> int:
    """Write the page; return the exit code."""
    PAGE.write_text(page(read_presets()), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
