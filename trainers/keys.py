"""The keys that a run's file may hold, as `python -m trainers.run METHOD --keys` shows them.

    export.dtype: "float32" | "float16" | "bfloat16" = "float16"  # comment beside the field

<name> stands for a table of any name, <n> for a place in an array, counted from 0.
"""

import ast
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from trainers.base import find
from trainers.config import RunConfig
from trainers.unread import conditions_of

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
WIDTH = 118  # of a line of the terminal; a longer comment goes below its key


def show_keys(method: str) -> None:
    """Print every key of a run's file and of a method's settings. Raises UserError for an unknown method."""
    settings = find(method).Config if method else None
    print(_line("extends: string", "the file that this one changes, relative to itself"))
    print(_line("method: string", "whose file this is; --config then needs no METHOD before it"))
    print("\n".join(key_lines(RunConfig)))
    if settings is None:
        print("\nthe keys of [trainer] are a method's: python -m trainers.run METHOD --keys")
        return
    print(f"\nof {method}, in [trainer] for all stages or in stages.<name>.settings for one:\n")
    print("\n".join(key_lines(settings, "trainer.")))


def key_lines(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield a line for every key of a config class, or of a config whose values are the defaults."""
    cls = config if isinstance(config, type) else type(config)
    kinds = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        key, kind, default = f"{prefix}{field.name}", kinds[field.name], field.default
        if config is not cls:
            default = getattr(config, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        inner, place = _nested(kind)
        if is_dataclass(default) or (inner and default is MISSING):
            value = ""  # its keys tell their own
        elif default is None or default is MISSING:
            value = ", required" if default is MISSING else ", may be left out"
        else:
            value = f" = {json.dumps(default, ensure_ascii=False)}"
        told = [comments(cls).get(field.name, ""), *_conditions(cls, field.name)]
        yield _line(f"{key}: {_name(kind)}{value}", "; ".join(filter(None, told)))
        if inner:
            yield from key_lines(default if is_dataclass(default) else inner, f"{key}.{place}")


def _conditions(cls: type, name: str) -> list[str]:
    """Return where a field is read, as `trainers.unread.read_where` says it; nothing where it always is."""
    where = [
        f"{key} = {' | '.join(map(json.dumps, wanted))}" for key, wanted in conditions_of(cls).get(name, {}).items()
    ]
    return [f"read where {' and '.join(where)}"] if where else []


@cache
def comments(cls: type) -> dict[str, str]:
    """Return what the source says of each field: the comment above it, or the one beside it."""
    found = dict[str, str]()
    for base in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        said = {
            token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in said and said[first - 1][1]:
                    first -= 1
                lines = range(first, (node.end_lineno or node.lineno) + 1)
                found[node.target.id] = " ".join(said[line][0] for line in lines if line in said)
    return found


def _line(key: str, comment: str) -> str:
    one = f"{key}  # {comment}" if comment else key
    if len(one) <= WIDTH:
        return one
    return "\n".join([key, *textwrap.wrap(comment, WIDTH, initial_indent="    # ", subsequent_indent="    # ")])


def _nested(kind: Any) -> tuple[Any, str]:
    """Return (the config class that a field's type holds, how its tables are told apart); (None, "") without one."""
    if is_dataclass(kind):
        return kind, ""
    if get_origin(kind) is Annotated:  # of which the limits are dataclasses
        return None, ""
    inner = next((one for one in get_args(kind) if is_dataclass(one)), None)
    return inner, {dict: "<name>.", tuple: "<n>."}.get(get_origin(kind), "") if inner else ""


def _name(kind: Any) -> str:
    """Return a type in the words of TOML."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        limits = [f" {SIGNS[sign]} {limit}" for one in arguments[1:] for sign, limit in asdict(one).items()]
        return _name(arguments[0]) + ",".join(limits)
    if get_origin(kind) is Literal:
        return " | ".join(json.dumps(one) for one in arguments)
    if get_origin(kind) is tuple:
        of = [_name(one) for one in arguments if one is not Ellipsis]
        return f"[{', '.join(of)}{', …' if Ellipsis in arguments else ''}]"
    if get_origin(kind) is dict:
        return "tables" if is_dataclass(arguments[-1]) else "table"
    if arguments:
        return " | ".join(_name(one) for one in arguments if one is not type(None))
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return "table" if is_dataclass(kind) else names.get(kind, str(kind))
