"""Configs: TOML in, frozen dataclass out; an unknown key is an error that names the nearest known one.

    @config
    class DmdConfig:
        guidance_scale: float = 4.5   # of the teacher; 1 = off

    read_toml(DmdConfig, Path("dmd.toml"), overrides=["guidance_scale=3"])

A nested table changes the keys that it names. What it leaves out is what the field's own default says, which need not
be what the nested class says of itself:

    student: OptimiserConfig = OptimiserConfig(lr=1e-5)    # student = {weight_decay = 0.01} keeps that rate

Where one key stands for another (a list of levels for a shift), the nested class says so in REPLACES: a table that
names the first takes the second from the class, not from the field's default.

Validation is pydantic's (strict: "3" is no number, 3 is a fine float, nan and inf are none); ranges are checked in
`__post_init__` by raising ValueError.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from metrics.base import UserError, nearest

T = TypeVar("T")
__all__ = ["UserError", "as_table", "build", "config", "located", "nearest", "overridden", "parse_toml", "read_toml"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass, strictly validated, that refuses unknown keys."""
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return cast(type[T], pydantic_dataclass(frozen=True, kw_only=True, config=rules)(cls))


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a config from one table; `where` opens every error, such as "dmd.toml".

    Raises UserError for unknown keys, wrong types and values out of range, a line for each."""
    try:
        # By way of JSON: there, strict validation still takes a table for a dataclass and an array for a tuple.
        return TypeAdapter(cls).validate_json(json.dumps(_completed(cls, table), default=str))
    except ValidationError as error:
        raise UserError("\n".join(_explain(cls, detail, where) for detail in error.errors())) from error


def read_toml(cls: type[T], path: Path, overrides: Iterable[str] = ()) -> T:
    """Read a config file; each override is "dotted.key=value" with a TOML value (bare words are strings).

    Raises UserError for a missing or malformed file, and as `build` does."""
    return build(cls, overridden(parse_toml(path), overrides), str(path))


def overridden(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return the table itself with every "dotted.key=value" assigned. Raises UserError where that is impossible."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected key=value")
        _assign(table, key.strip().split("."), _toml_value(value.strip()), override)
    return table


def parse_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's table. Raises UserError where it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {'no such file' if not path.exists() else error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def as_table(settings: Any) -> dict[str, Any]:
    """Return a config as plain, JSON-ready values, defaults included."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Open every UserError of what runs within by where its cause stands, such as "dmd.toml: rewards".

    It stays of its own kind."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error


def _completed(under: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table laid over a config, or over the defaults of a config's class: nested ones over their fields'."""
    cls = under if isinstance(under, type) else type(under)
    replaced = {name for key in table for name in getattr(cls, "REPLACES", {}).get(key, ())}
    kept = {} if under is cls else {key: value for key, value in as_table(under).items() if key not in replaced}
    for key, value in table.items():
        default = getattr(under, key, None)
        inner = default if is_dataclass(default) else _class_at(cls, key)
        kept[key] = _completed(inner, value) if isinstance(value, Mapping) and inner is not cls else value
    return kept


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: --set rl=grpo


def _assign(table: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    place: Any = table
    for number, key in enumerate(keys):
        at: str | int = key
        if isinstance(place, list):  # an array of tables: --set rewards.0.weight=2
            if not (key.isdecimal() and int(key) < len(place)):
                array = ".".join(keys[:number])
                raise UserError(
                    f"--set {override}: {array} has entries 0 to {len(place) - 1}; for another number of them give "
                    f"the whole array: --set '{array}=[{{…}}, {{…}}]'"
                )
            at = int(key)
        elif not isinstance(place, dict):
            raise UserError(f"--set {override}: {keys[number - 1]!r} is a value, not a table")
        if number == len(keys) - 1:
            place[at] = value
        else:
            place = place.setdefault(at, {}) if isinstance(place, dict) else place[at]


def _explain(cls: type, detail: Any, where: str) -> str:
    path = [str(part) for part in detail["loc"]]
    dotted = ".".join(path)
    if detail["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown key {dotted!r}; {nearest(path[-1], _known_keys(cls, path[:-1]))}"
    if detail["type"] == "missing":
        return f"{where}: key {dotted!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if not dotted:
        return f"{where}: {message}"
    table = isinstance(detail["input"], (Mapping, ArgsKwargs)) or is_dataclass(detail["input"])  # too much to show
    return f"{where}: {dotted}: {message}" + ("" if table else f", not {detail['input']!r}")


def _known_keys(cls: Any, path: list[str]) -> list[str]:
    """Names of the fields of the (nested) dataclass at `path`."""
    for part in path:
        cls = _class_at(cls, part)
    return [f.name for f in fields(cls)]


def _class_at(cls: Any, key: str) -> Any:
    """Return the dataclass of a field, `cls` itself where it has none: an index into a tuple of configs leaves it."""
    kind = {f.name: f.type for f in fields(cls)}.get(key, cls)
    return next((inner for inner in (kind, *get_args(kind)) if is_dataclass(inner)), cls)
