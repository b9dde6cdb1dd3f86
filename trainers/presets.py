"""Presets: the trainings behind the rows of the papers' tables, as data.

    python -m trainers.run --presets
    python -m trainers.run --preset dmdr-v2-table5c-lambda-0.5 [--set backbone.path=models/sd3]
    python -m trainers.presets               writes configs/presets/README.md: preset -> paper, table, row

A file of trainers/configs/presets is a paper. A preset names its method, the rows it stands for, what it extends (a
TOML file, or an earlier preset of the same paper) and the settings in which it differs. Values that no paper and no
authors' code state are said to be ours in the preset's note.
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
    """A file of presets; their names are <paper>-<key>."""

    paper: str  # tables are leaderboards/reported/<paper>-table<table>.json
    title: str
    benchmark: str  # the suite that its students are put through
    presets: dict[str, PresetConfig]


@dataclass(frozen=True)
class Preset:
    """A preset with its place in the papers and its whole run as a table."""

    name: str
    paper: str
    title: str
    settings: PresetConfig
    run: dict[str, Any]

    def build(self, overrides: tuple[str, ...] = ()) -> RunConfig:
        """Return the run. Raises UserError for an override that does not fit."""
        table = merge(self.run, {"name": self.name})  # a copy: overrides are assigned in place
        return build(RunConfig, overridden(json.loads(json.dumps(table)), overrides), f"preset {self.name}")


def read_presets(folder: Path = FOLDER) -> dict[str, Preset]:
    """Return every preset by name. Raises UserError where a file of them makes no sense."""
    found: dict[str, Preset] = {}
    for path in sorted(folder.glob("*.toml")):
        paper = build(PaperConfig, parse_toml(path), str(path))
        runs: dict[str, dict[str, Any]] = {}
        for key, preset in paper.presets.items():
            if preset.extends.endswith(".toml"):
                base = read_table(path.parent / preset.extends)
            elif preset.extends in runs:
                base = runs[preset.extends]
            else:
                raise UserError(f"{path}: presets.{key}.extends: no such preset before it: {preset.extends!r}")
            runs[key] = merge({"benchmark": paper.benchmark} | base, preset.settings)
            name = f"{paper.paper}-{key}"
            found[name] = Preset(name, paper.paper, paper.title, preset, runs[key])
    return found


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
    """Return the Markdown page: preset, method, and the rows it stands for."""
    return "\n".join(_lines(presets)) + "\n"


def show_presets() -> None:
    """Print name, method and rows of every preset."""
    for name, preset in read_presets().items():
        print(f"{name:34} {preset.settings.method:10} {'; '.join(map(_place, preset.settings.rows))}")


def _lines(presets: Mapping[str, Preset]) -> Iterator[str]:
    yield "# Presets"
    yield ""
    yield "Written by `python -m trainers.presets`. Train one with `python -m trainers.run --preset NAME`; `--set`"
    yield 'changes single values, such as the path of the base model or of your prompts. "Ours" marks values that'
    yield "neither paper nor authors' code states. At its end a student goes through the suite of its paper; which"
    yield "weights of the suite are not here is told before anything is trained; `--no-benchmark` trains without it."
    title = ""
    for name, preset in presets.items():
        if preset.title != title:
            title = preset.title
            yield from ("", f"## {title}", "", "| Preset | Method | Table, row | Note |", "|---|---|---|---|")
        rows = "<br>".join(_place(row) for row in preset.settings.rows)
        yield f"| `{name}` | `{preset.settings.method}` | {rows} | {preset.settings.note} |"


def _place(row: RowRef) -> str:
    group = f"{row.group}: " if row.group else ""
    table = row.table.capitalize() if row.table.startswith("figure") else f"Table {row.table}"
    return f"{table}, {group}{row.row}" + (f" (no. {row.nth})" if row.nth > 1 else "")


def main() -> int:
    """Write the page; return the exit code."""
    PAGE.write_text(page(read_presets()), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
