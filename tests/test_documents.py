"""Markdown that people read: what a careless reflow would glue together."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {part for part in path.relative_to(ROOT).parts if part.startswith(".")} and "build" not in path.parts
]
FENCE = re.compile(r"^ {0,3}```\w*$")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_fences_and_headings_stand_on_lines_of_their_own(path: Path) -> None:
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
            continue
        assert "```" not in line, f"{path.name}:{number}: a fence within a line"
        assert inside or not re.search(r"\S +#{2,} ", line), f"{path.name}:{number}: a heading within a line"
    assert not inside, f"{path.name}: a fence is not closed"
