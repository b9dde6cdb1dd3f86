"""Limits: every method that the papers name, and whether this project has it.

    implemented       all of its files are in this tree
    reported only     a paper's table on this board has rows of it, nothing here trains or measures it
    not implemented   neither

The list is `methods.toml`; the state is not written there but looked up, so that it cannot outlive the code.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from leaderboards.schema import ResultError, Strict, first_fault
from leaderboards.table import escape_markdown

METHODS = Path(__file__).parent / "methods.toml"
ROOT = METHODS.parent.parent
State = Literal["implemented", "reported only", "not implemented"]


class Method(Strict):
    """One method, model or metric."""

    name: str
    kind: str
    named_by: list[str] = Field(min_length=1)  # papers
    why: str  # it is not here
    files: list[str] = Field(default_factory=list)  # that implement it
    rows: list[str] = Field(
        default_factory=list
    )  # beginnings of the systems' names in the papers' tables, or of what follows "w/"

    @property
    def state(self) -> State:
        """Whether this tree has it."""
        if self.files and all((ROOT / name).is_file() for name in self.files):
            return "implemented"
        return "reported only" if self.rows else "not implemented"


def read_methods(path: Path = METHODS) -> list[Method]:
    """Return the list in the order of the file. Raises ResultError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[Method]).validate_python(table["methods"], strict=False)
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'methods')}") from error


def limits_markdown(methods: Sequence[Method]) -> str:
    """Return the list as a Markdown table per kind."""
    parts = []
    for kind in dict.fromkeys(method.kind for method in methods):
        lines = [
            f"**{kind.capitalize()}**",
            "",
            "| name | state | where, or why not | named by |",
            "| --- | --- | --- | --- |",
        ]
        for one in (method for method in methods if method.kind == kind):
            where = ", ".join(f"`{name}`" for name in one.files)
            told = where if one.state == "implemented" else escape_markdown(one.why)
            lines.append(f"| {escape_markdown(one.name)} | {one.state} | {told} | {', '.join(one.named_by)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
