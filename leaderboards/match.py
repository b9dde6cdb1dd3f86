"""Protocol match: in what a paper's table and our measurements of its suite agree, differ, or cannot be compared.

A number of ours beside one of a paper says nothing until this list is read. What the paper does not state is
"unknown", never assumed; what we have not measured yet is "unknown" as well.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leaderboards.papers import PaperTable
from leaderboards.recipe import Likeness, Recipe
from leaderboards.schema import JsonValue, Task
from leaderboards.store import Entry

NOT_STATED = "not stated"
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One thing that decides a number, as the paper has it and as we have it."""

    name: str
    paper: str
    ours: str
    verdict: Likeness


def protocol_match(table: PaperTable, recipe: Recipe, entries: Sequence[Entry]) -> list[Aspect]:
    """Return the aspects in the order of their weight: prompts, images, sampling, then the scorer of each column."""
    tasks = _tasks(recipe, entries)
    told = table.protocol
    nfe = sorted({row.nfe for row in table.rows if row.nfe is not None})
    guided = {row.guidance for row in table.rows} - {None}
    guidance = (
        "some rows guided" if len(guided) == 2 else "guided" if True in guided else "unguided" if guided else ""
    )
    ours_guidance = [_guidance(task.protocol.get("guidance_scale")) for task in tasks]
    return [
        _aspect("prompts", told.prompts, [task.prompt_set for task in tasks], same=False),
        _aspect("number of prompts", told.num_prompts, [task.n_prompts for task in tasks]),
        _aspect("images per prompt", told.samples_per_prompt, [task.images_per_prompt for task in tasks]),
        _aspect("resolution", re.sub(r"\s*[x×]\s*", " × ", told.resolution), [_pixels(task) for task in tasks]),
        _aspect("sampler", recipe.sampler, [_sampler(task) for task in tasks], same=False),
        _aspect("network passes per image", _listed(nfe), [task.nfe for task in tasks], same=False),
        _aspect("guidance", guidance, ours_guidance),
        *_scorers(recipe),
    ]


def own_protocol(recipe: Recipe, entries: Sequence[Entry]) -> list[Aspect]:
    """Return what a table of measured rows alone has to state of its protocol."""
    tasks = _tasks(recipe, entries)
    told: list[tuple[str, list[object]]] = [
        ("prompts", [task.prompt_set for task in tasks]),
        ("number of prompts", [task.n_prompts for task in tasks]),
        ("images per prompt", [task.images_per_prompt for task in tasks]),
        ("resolution", [_pixels(task) for task in tasks]),
        ("sampler", [_sampler(task) for task in tasks]),
    ]
    return [_aspect(name, None, ours) for name, ours in told]


def _tasks(recipe: Recipe, entries: Sequence[Entry]) -> list[Task]:
    wanted = {column.metric for column in recipe.columns}
    return [
        task
        for entry in entries
        if entry.result.kind == "measured"
        for task in entry.result.tasks
        if wanted & task.metrics.keys()
    ]


def _aspect(name: str, paper: JsonValue, ours: Iterable[object], *, same: bool = True) -> Aspect:
    """Compare one aspect. `same=False`: free text, in which equality of words would prove nothing."""
    known = list(dict.fromkeys(str(value) for value in ours if value is not None))
    stated = "" if paper is None else str(paper)
    verdict: Likeness = "unknown"
    if stated and known and same:
        verdict = "same" if known == [stated] else "differs"
    return Aspect(name=name, paper=stated or NOT_STATED, ours="; ".join(known) or NOT_MEASURED, verdict=verdict)


def _scorers(recipe: Recipe) -> list[Aspect]:
    """One aspect per metric of ours, with what is known of the paper's scorer."""
    found: dict[str, Aspect] = {}
    for column in recipe.columns:
        if column.metric not in ("", "nfe") and not column.category:
            paper = column.note or ("the same scorer" if column.scorer == "same" else NOT_STATED)
            scale = "" if column.scale == 1 else f", × {column.scale:g}"
            aspect = Aspect(
                name=f"scorer: {column.title}", paper=paper, ours=f"{column.metric}{scale}", verdict=column.scorer
            )
            found.setdefault(column.metric, aspect)
    return list(found.values())


def _guidance(scale: object) -> str | None:
    if not isinstance(scale, int | float):
        return None
    return "unguided" if scale in (0, 1) else "guided"


def _pixels(task: Task) -> str | None:
    width, height = task.protocol.get("width"), task.protocol.get("height")
    return None if width is None or height is None else f"{width} × {height}"


def _sampler(task: Task) -> str:
    steps = task.protocol.get("num_inference_steps")
    eta = task.protocol.get("eta")
    noise = f", η = {eta:g}" if isinstance(eta, float) and eta else ""
    return f"{task.protocol.get('sampler', 'unknown')}, {steps} steps{noise}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
