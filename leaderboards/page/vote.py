"""The page of a blind vote: one HTML file that shows pairs, keeps answers in the browser and saves them as CSV."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from leaderboards.page import TEMPLATES, data, render
from leaderboards.store import write_atomically
from leaderboards.vote import HEADER, Key

PAGE, KEY = "vote.html", "key.json"


def write_ballot(key: Key, pairs: Sequence[Mapping], folder: Path) -> list[Path]:
    """Write the page and its key into a folder; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PAGE, vote_page(key, pairs).encode())
    write_atomically(folder / KEY, (key.model_dump_json(indent=1) + "\n").encode())
    return [folder / PAGE, folder / KEY]


def vote_page(key: Key, pairs: Sequence[Mapping]) -> str:
    """Return the page. Of the key it holds the ballot's digest and the questions, neither names nor sides."""
    shown = [{"text": one["text"], "left": _uri(one["left"]), "right": _uri(one["right"])} for one in pairs]
    told = {"ballot": key.ballot, "questions": key.questions, "header": HEADER, "pairs": shown}
    script = (TEMPLATES / "vote.js").read_text(encoding="utf-8")
    return render("vote.html", script=Markup(script), told=Markup(data.as_json(told)), pairs=len(pairs))


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
