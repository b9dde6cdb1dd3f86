"""Settings that a stage cannot read: sub-tables of a kind of reward term, or of a phase, that it does not have.

A config says of such a field where it is read:

    refl: ReflTerm = read_where(ReflTerm(), phase=("joint", "rl_only"), rl=("refl", "srpo"))

A file may hold them all the same, for what extends it to choose from; of what --set asks for, each must be read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any

from benchmarks.config import UserError
from trainers.config import RunConfig, stage_methods

WHERE = "read where"  # of a field's metadata


def read_where(default: Any, **conditions: tuple[str, ...]) -> Any:
    """Return a config's field that counts only where each of the other fields named has one of its values."""
    return field(default=default, metadata={WHERE: conditions})


def conditions_of(config: Any) -> dict[str, Mapping[str, tuple[str, ...]]]:
    """Return what `read_where` said of a config's fields, or of its class's: field -> other field -> its values."""
    return {one.name: one.metadata[WHERE] for one in fields(config) if WHERE in one.metadata}


def check_overrides(method: str, run: RunConfig, overrides: Iterable[str], where: str) -> None:
    """Raise UserError where an override is of a stage's own settings, and the stage does not read that sub-table."""
    methods = stage_methods(method, run, where)
    for override in overrides:
        match [part.strip() for part in override.partition("=")[0].split(".")]:
            case ["stages", stage, "settings", table, *_]:
                settings = methods[stage][1]
                for key, wanted in conditions_of(settings).get(table, {}).items():
                    if (found := getattr(settings, key)) not in wanted:
                        raise UserError(
                            f"--set {override}: stage {stage} has {key} = {found!r} and does not read {table}: leave "
                            f"it out, or set {key} to {' or '.join(map(repr, wanted))}"
                        )
