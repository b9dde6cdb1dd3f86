"""Keep measured ratios where the page shows them: `--record` of the measuring commands.

Each ratio has an id; measured again it takes the place of the older one. A ratio tells the setting it was measured
in, so rows of several machines may stand side by side.
"""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from leaderboards.studies import STUDIES, Measured, Measurements, Speed, Speeds, read_study

SPEED = STUDIES / "speed.json"


def record(rows: Iterable[Speed], path: Path = SPEED) -> None:
    """Put rows into the study, in the order of their ids."""
    keep(
        Speeds,
        rows,
        path,
        title="Cost of what is around the networks",
        about="Ratios of times taken in turns within one run, so that a busy machine slows both sides alike.",
        command="tox -e perf -- --record, tox -e perf-distribution -- --record, tox -e perf-composition -- --record",
    )


def keep(
    kind: type[Speeds] | type[Measurements], rows: Iterable[Speed] | Iterable[Measured], path: Path, **about: str
) -> None:
    """Put rows into a study of some kind, beside those of other ids; about: its title, about and command."""
    study = read_study(path) if path.exists() else None
    kept = {row.id: row for row in (study.rows if isinstance(study, kind) else ())}
    kept |= {row.id: row for row in rows}
    if not kept:
        return
    told = kind.model_validate({**about, "rows": [kept[key] for key in sorted(kept)]})
    path.write_text(told.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")


def machine(device: str | torch.device = "cpu") -> str:
    """Return what a reader needs to know of where a ratio was measured."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name() if kind == "cuda" else f"{os.cpu_count()} cores of {platform.machine()}"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"
