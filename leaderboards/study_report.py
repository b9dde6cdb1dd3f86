"""A study of claims as text and pictures, made from its JSON alone:

    python -m leaderboards.study_report leaderboards/studies/micro-claims.json

writes <name>.md beside it and <name>/<figure>.svg of every figure, drawn by Vega-Lite as the page draws it.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaderboards.schema import ResultError
from leaderboards.store import write_atomically
from leaderboards.studies import READING, Claim, Claims, Figure, Level, read_study, sections
from leaderboards.study_figure import figure_spec

WIDTH, HEIGHT = 560, 300
MARK = {  # in the order of the tables
    "holds": "**holds**",
    "does not hold": "**does not hold**",
    "undecided": "undecided",
    "not judged": "not judged",
}


def write_study(study: Claims, path: Path) -> list[Path]:
    """Write a study's JSON, its text and its pictures; return their paths. The same study gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (study.model_dump_json(indent=1) + "\n").encode())
    return [path, *write_report(study, path)]


def write_report(study: Claims, path: Path) -> list[Path]:
    """Write the text and the pictures of a study whose JSON lies at `path`; return their paths."""
    import vl_convert

    written, pictures = [], path.with_suffix("")
    for figure in study.figures:
        pictures.mkdir(exist_ok=True)
        picture = pictures / f"{figure.id}.svg"
        write_atomically(picture, vl_convert.vegalite_to_svg(vega_lite(figure)).encode())
        written.append(picture)
    text = path.with_suffix(".md")
    write_atomically(text, ("\n".join(_lines(study, path)) + "\n").encode())
    return [text, *written]


def vega_lite(figure: Figure) -> dict[str, Any]:
    """Return the Vega-Lite specification of a figure as a file of its own."""
    scheme = "tableau10" if len(figure.series) <= 10 else "tableau20"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": {"text": figure.title, "anchor": "start", "fontWeight": "normal"},
        "width": WIDTH,
        "height": HEIGHT,
        "background": "white",
        "config": {
            "axis": {"labelLimit": 0},
            "legend": {"orient": "bottom", "columns": 2, "labelLimit": 0, "symbolOpacity": 1},
            "range": {"category": {"scheme": scheme}},
            "rule": {"color": "#4c78a8"},  # as marks of other kinds have it
        },
        **figure_spec(figure),
    }


def tally(study: Claims) -> str:
    """Return how many claims have each verdict: "holds: 8, undecided: 9"."""
    counts = Counter[str](claim.verdict for claim in study.claims)
    return ", ".join(f"{verdict}: {counts[verdict]}" for verdict in MARK if counts[verdict])


def _lines(study: Claims, path: Path) -> Iterator[str]:
    yield f"# {study.title}"
    yield ""
    yield f"{study.about} Written by `{study.command}` from `{path.name}`, which holds every number shown here."
    yield ""
    yield f"{tally(study)}."
    yield from ("", "## How to read the tables", "", READING, "")
    yield '"Seen from" is about the smallest difference that four of five such studies would find.'
    for title, claims in sections(study):
        yield from ("", f"## {title}", "", "| Claim | Measure, arms | Difference, 95 % interval | Verdict | Seeds |")
        yield "|---|---|---|---|---|"
        yield from map(_row, claims)
    if study.arms:
        yield from (
            "",
            "## Levels of the arms",
            "",
            "Mean over seeds and, where two or more are there, ± half of its 95 % interval.",
            "",
        )
        yield from _levels(study)
    if study.changes:
        yield from ("", "## Changes of the plan after runs were known", "")
        yield from (f"- {change.date}: {change.what}" for change in study.changes)
    for figure in study.figures:
        yield from ("", f"![{figure.title}]({path.stem}/{figure.id}.svg)")


def _levels(study: Claims) -> Iterator[str]:
    yield "| " + " | ".join(["Arm", *study.measures, "Seeds", "Network passes", "Iterations"]) + " |"
    yield "|---" + "|---:" * (len(study.measures) + 3) + "|"
    for arm in study.arms:
        trained = [f"{arm.seeds}", f"{arm.network_passes:,}", f"{arm.iterations:,}"] if arm.seeds else ["–"] * 3
        yield "| " + " | ".join([arm.title, *map(_level, arm.levels), *trained]) + " |"


def _level(level: Level | None) -> str:
    if level is None:
        return "–"
    if level.low is None or level.high is None:
        return f"{level.value:.3f}"
    return f"{level.value:.3f} ± {(level.high - level.low) / 2:.3f}"


def _row(claim: Claim) -> str:
    source = f"{claim.source.paper}, {claim.source.where}"
    seeds = f"{len(claim.seeds)}" + (f" of {claim.seeds_needed}" if len(claim.seeds) < claim.seeds_needed else "")
    arms = f"**{claim.arms[0]}**<br>minus **{claim.arms[1]}**"
    if claim.at == "equal updates":
        arms += "<br>at equal updates"
    if claim.iterations:
        arms += f"<br>{claim.iterations[0]:,} and {claim.iterations[1]:,} iterations"
    notes = f"<br>{claim.notes}" if claim.notes else ""
    told = f"{claim.statement}<br><sub>{source}</sub>{notes}"
    verdict = MARK[claim.verdict] + (f"<br>{claim.remark}" if claim.remark else "")
    if claim.headline and claim.p is not None:
        verdict += f"<br>p {claim.p:.2g}" + ("" if claim.p_holm is None else f", by Holm {claim.p_holm:.2g}")
    if claim.effect is None:
        return f"| {told} | {arms} | – | {verdict} | {seeds} |"
    e = claim.effect
    size = f"{e.value:+.4f} ({e.low:+.4f} to {e.high:+.4f}{'' if claim.prompts else ', seeds alone'}) {e.unit}<br>"
    size += f"claimed {e.claimed} 0; matters from {e.smallest:g}"
    seen = "" if claim.detectable is None else f"; seen from {claim.detectable:.3g}"
    power = "" if claim.power is None else f"; power {100 * claim.power:.0f} %"
    return f"| {told} | {e.measure}<br>{arms} | {size}{seen}{power} | {verdict} | {seeds} |"


def main(paths: list[str]) -> int:
    """Write text and pictures of studies; return the exit code."""
    for path in map(Path, paths):
        try:
            study = read_study(path)
        except ResultError as error:
            print(error, file=sys.stderr)
            return 2
        if isinstance(study, Claims):
            print(*write_report(study, path), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
