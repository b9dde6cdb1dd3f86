"""Settings that a stage cannot read: sub-tables of a kind of reward term, or of a phase, that it does not have.

A file may hold them, for what extends it to choose from; of what --set asks for, each must be read.
"""

from collections.abc import Iterable, Mapping

from benchmarks.config import UserError
from trainers.config import RunConfig, stage_methods

RL = ("joint", "rl_only")
# Config class -> sub-table -> what the config must hold for it to be read
READ: Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "DmdrConfig": {
        "rt_dm": {"phase": ("rt_dm",)},
        "refl": {"phase": RL, "rl": ("refl", "srpo")},
        "dpo": {"phase": RL, "rl": ("dpo",)},
        "grpo": {"phase": RL, "rl": ("grpo",)},
    },
    "RtdmdConfig": {"cold_start": {"phase": ("cold_start",)}, "reinforce": {"phase": ("reinforce",)}},
}


def check_overrides(method: str, run: RunConfig, overrides: Iterable[str], where: str) -> None:
    """Raise UserError where an override is of a stage's own settings, and the stage does not read that sub-table."""
    methods = stage_methods(method, run, where)
    for override in overrides:
        match [part.strip() for part in override.partition("=")[0].split(".")]:
            case ["stages", stage, "settings", table, *_]:
                settings = methods[stage][1]
                for key, wanted in READ.get(type(settings).__name__, {}).get(table, {}).items():
                    if (found := getattr(settings, key)) not in wanted:
                        raise UserError(
                            f"--set {override}: stage {stage} has {key} = {found!r} and does not read {table}: leave "
                            f"it out, or set {key} to {' or '.join(map(repr, wanted))}"
                        )
