"""Why a picture got its verdict: python -m benchmarks.explain RUN --prompt-id 00012

Writes one HTML file with the pictures of a prompt, and for every metric that left more than a number: boxes with
class, colour and score, reasons, questions with their answers, lines of text that were read. Nothing is measured:
everything comes from the run's evidence.
"""

import base64
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError, nearest
from benchmarks.prompts import read_prompts
from benchmarks.seen import Row, seen, told_rows
from leaderboards.seen import Seen
from metrics.base import Prompt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ prompt.id }}: {{ prompt.text }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
figure { display: inline-block; vertical-align: top; margin: 0 1.5rem 2rem 0; max-width: 100% }
figure > div { position: relative; display: inline-block; line-height: 0 }
img { max-width: 100%; image-rendering: auto }
.box { position: absolute; border: 2px solid #d6006c; line-height: 1.2; font-size: 12px }
.box span { background: #d6006c; color: #fff; padding: 0 .25em; white-space: nowrap }
td, th { text-align: left; padding: .1em .8em .1em 0; vertical-align: top } .no { color: #a30000 }
</style></head><body><h1>{{ prompt.text }}</h1>
<p>Prompt <b>{{ prompt.id }}</b>{% if prompt.category %}, category {{ prompt.category }}{% endif %} · {{ run }}</p>
{% for picture in pictures %}<section><h2>{{ picture.task }}, picture {{ picture.seed }}</h2>
{% for view in picture.views %}<figure><div><img src="{{ picture.source }}" alt="{{ prompt.text }}"
width="{{ picture.width }}" height="{{ picture.height }}">
{% for box in view.seen.boxes %}<div class="box" style="left:{{ box.left }}%;top:{{ box.top }}%;
width:{{ box.width }}%;height:{{ box.height }}%"><span>{{ box.label }}</span></div>{% endfor %}</div>
<figcaption><b>{{ view.metric }}</b>: {{ view.score }}
{% for reason in view.seen.reasons %}<br><span class="no">{{ reason }}</span>{% endfor %}
{% if view.seen.table %}<table>{% for row in view.seen.table %}<tr>{% for cell in row %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table>{% endif %}</figcaption></figure>
{% endfor %}</section>{% endfor %}</body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show why the pictures of a prompt got their verdicts."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory"""
    prompt_id: str
    """Id of the prompt"""
    out: Path | None = None
    """The HTML file; default RUN/explain-<prompt id>.html"""


@dataclass(frozen=True)
class View:
    """What one metric says of one picture."""

    metric: str
    score: str
    seen: Seen


@dataclass(frozen=True)
class Shown:
    """One picture with all that metrics say of it; source: its PNG as a data address."""

    task: str
    seed: int
    source: str
    width: int
    height: int
    views: Sequence[View]


def main(arguments: Arguments) -> int:
    """Write the page; return the exit code."""
    out = arguments.out or arguments.run / f"explain-{arguments.prompt_id}.html"
    out.write_text(page(arguments.run, arguments.prompt_id), encoding="utf-8")
    print(out)
    return 0


def page(run: Path, prompt_id: str) -> str:
    """Return the HTML page of one prompt. Raises UserError where run, prompt or evidence cannot be read."""
    from jinja2 import Environment

    if not (run / "run.json").is_file():
        raise UserError(f"{run}: no run directory; pass the folder that --out named")
    prompt, pictures = None, []
    known: list[str] = []
    for folder in sorted(path for path in run.iterdir() if (path / "prompts.jsonl").is_file()):
        prompts = {one.id: one for one in read_prompts(folder / "prompts.jsonl").prompts}
        known += prompts
        if prompt_id in prompts:
            prompt = prompts[prompt_id]
            pictures += list(_pictures(folder, prompt))
    if prompt is None:
        raise UserError(f"{run}: no prompt {prompt_id!r}; {nearest(prompt_id, known)}")
    if not pictures:
        raise UserError(f"{run}: prompt {prompt_id!r} has no picture yet; run --stage generate first")
    return Environment(autoescape=True).from_string(PAGE).render(prompt=prompt, pictures=pictures, run=run.name)


def _pictures(folder: Path, prompt: Prompt) -> Iterator[Shown]:
    """Yield the pictures of a prompt in one image set, with the views of its metrics."""
    from metrics.images import read_image

    rows = {path.stem: told_rows(path, {prompt.id}) for path in sorted((folder / "evidence").glob("*.parquet"))}
    paths = sorted((folder / "images" / prompt.id).glob("*.png"), key=lambda path: int(path.stem))
    for path in paths:
        size = read_image(path).size
        seed = int(path.stem)
        views = [
            _view(metric, of[prompt.id, seed], prompt, size) for metric, of in rows.items() if (prompt.id, seed) in of
        ]
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        yield Shown(folder.name, seed, source, *size, views)


def _view(metric: str, row: Row, prompt: Prompt, size: tuple[int, int]) -> View:
    score = row.get("score")
    return View(metric=metric, score="" if score is None else f"{score:.4g}", seen=seen(row, prompt, size))


def cli() -> None:
    """Parse the command line, run, and exit."""
    from benchmarks.screen import guarded

    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.explain", description=__doc__))))


if __name__ == "__main__":
    cli()
