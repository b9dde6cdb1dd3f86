"""The papers' own tables: what the authors report, cell by cell, browsable and never ranked with measured rows.

`leaderboards/reported/<paper>-table<number>.json`, one file per table. A printed number keeps its text where its
number form would lose something (trailing zeros, a sign). Empty protocol texts and None: the paper does not say.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from leaderboards.schema import (
    MAX_FILE_BYTES,
    Count,
    JsonValue,
    Name,
    Number,
    ResultError,
    Strict,
    first_fault,
    json_schema_of,
)

REPORTED = Path(__file__).parent / "reported"
_CITATION = re.compile(r"\s*\[[^\]]*\]")


class Paper(Strict):
    """Where the numbers were printed."""

    id: Name  # "dmdr-v2"
    title: str
    arxiv: str | None
    year: int

    @property
    def citation(self) -> str:
        """Title, year and arXiv number in one line."""
        return f"{self.title} ({self.year}{f', arXiv:{self.arxiv}' if self.arxiv else ''})"


class PaperProtocol(Strict):
    """How the paper says it evaluated; "" or None = it does not say."""

    backbone: str
    resolution: str
    prompts: str
    num_prompts: Count | None
    samples_per_prompt: Count | None
    notes: str


class PaperColumn(Strict):
    """One column; `metric` is what it measures: "clip_score", or "clip_score_delta" for a difference to a row."""

    name: Name
    metric: str
    direction: Literal["higher", "lower", "none"]
    unit: str

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "none": ""}[self.direction]


class PaperRow(Strict):
    """One printed row. `guidance`: classifier-free guidance while sampling, None = unknown."""

    system: str
    kind: Literal["teacher", "few-step", "ours", "baseline", "ablation"]
    group: str  # the banner above it
    nfe: Count | None
    guidance: bool | None
    values: dict[str, Number | None]
    printed: dict[str, str]
    confidence: Literal["high", "medium", "low"]  # of the transcription
    notes: str
    attributes: dict[str, JsonValue] = Field(default_factory=dict)  # columns that hold no number
    settings: dict[str, JsonValue] = Field(default_factory=dict)  # what an ablation varies

    @property
    def name(self) -> str:
        """The system without the paper's reference numbers: "DMD2 [58]*" → "DMD2*"."""
        return _CITATION.sub("", self.system)

    def text(self, column: str) -> str:
        """The cell as printed; "–" where the paper prints none."""
        value = self.values[column]
        if value is None:
            return "–"
        return self.printed.get(column) or f"{value:.10g}"


class PaperTable(Strict):
    """One table of one paper."""

    schema_version: Literal[1]
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
    paper: Paper
    number: str
    number_inferred: bool  # the caption was not at hand: the number follows from the order of the tables
    caption: str  # in our words
    protocol: PaperProtocol
    columns: Annotated[list[PaperColumn], Field(min_length=1)]
    rows: Annotated[list[PaperRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _cells_fit_columns(self) -> "PaperTable":
        if self.id != f"{self.paper.id}-table{self.number}":
            raise ValueError(f"id {self.id!r} is not that of table {self.number} of {self.paper.id!r}")
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("two columns have one name")
        for row in self.rows:
            if set(row.values) != set(names):
                raise ValueError(
                    f"row {row.system!r} has cells {sorted(set(row.values) ^ set(names))} too many or few"
                )
            for name, text in row.printed.items():
                if name not in names or not _same_number(text, row.values[name]):
                    raise ValueError(f"row {row.system!r}: printed {name!r} is {text!r}, its value is not")
        return self

    @property
    def title(self) -> str:
        return f"{self.paper.title}, Table {self.number}"

    def labels(self) -> list[str]:
        """The rows' names; where one stands twice under one banner, with the settings that tell them apart."""
        found = []
        for row in self.rows:
            twins = [
                other for other in self.rows if (other.group, other.name, other.nfe) == (row.group, row.name, row.nfe)
            ]
            telling = [key for key in row.settings if len({str(twin.settings.get(key)) for twin in twins}) > 1]
            settings = ", ".join(f"{key} = {row.settings[key]}" for key in telling)
            found.append(f"{row.name} ({settings})" if settings else row.name)
        return found

    @property
    def groups(self) -> list[str]:
        """The banners in the order of the table."""
        return list(dict.fromkeys(row.group for row in self.rows))


def read_paper_table(path: Path) -> PaperTable:
    """Read and validate one file of `leaderboards/reported`. Raises ResultError naming file, key and fault."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ResultError(f"larger than {MAX_FILE_BYTES // 2**20} MiB: not a paper's table")
        table = PaperTable.model_validate_json(path.read_bytes())
        if table.id != path.stem:
            raise ResultError(f"holds table {table.id!r}: file and table would differ in name")
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ResultError(f"{path}: {first_fault(error, 'table')}") from error
    except ResultError as error:
        raise ResultError(f"{path}: {error}") from error
    return table


def read_paper_tables(folder: Path = REPORTED) -> dict[str, PaperTable]:
    """Return every table of a folder by id. Raises ResultError for the first that is not valid."""
    return {path.stem: read_paper_table(path) for path in sorted(folder.glob("*.json"))}


def is_paper_table(path: Path) -> bool:
    """Whether a JSON file means to be a paper's table rather than a result."""
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and "paper" in table


def paper_json_schema() -> str:
    """Return the text of `reported.schema.json`, the JSON Schema of a paper's table."""
    return json_schema_of(PaperTable)


def _same_number(text: str, value: float | None) -> bool:
    try:
        return value is not None and float(text) == value
    except ValueError:
        return False
