"""Every method's settings: a file holds differences, so a nested table must leave the method's own defaults alone."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from benchmarks.config import as_table, build
from trainers.base import available, find


def _nested(settings: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of every config inside a config."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from ((*path, field.name, key.name) for key in fields(value))
            yield from _nested(value, (*path, field.name))


@pytest.mark.parametrize("method", available())
def test_a_key_that_says_what_the_default_says_changes_nothing(method: str) -> None:
    cls = find(method).Config
    usual = as_table(cls())
    for path in _nested(cls()):
        table: Any = usual
        for key in path:
            table = table[key]
        for key in reversed(path):
            table = {key: table}
        if path[-1] in getattr(_at(cls(), path[:-1]), "REPLACES", {}):
            continue  # it stands for other keys: tests/benchmarks/test_config.py
        assert as_table(build(cls, table, method)) == usual, f"{method}: {'.'.join(path)}"


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        settings = getattr(settings, key)
    return settings
