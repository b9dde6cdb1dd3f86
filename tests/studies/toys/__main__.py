"""Toys: what DMD and RL do to mixtures, and what early steps decide, by the product's own losses. With pictures.

    python -m tests.studies.toys [--out leaderboards/studies/toys]

Writes toys.json (every number), README.md and a picture for each figure: minutes on one core.

    zero-forcing   a one-mode student of two modes: reverse KL at low noise takes one, over all levels it spans both
    projection     DMD's gradient of a broad student points at the nearest of the teacher's support
    modes          DMD, DMD + RL and RL alone on eight modes of which one is rewarded most
    branches       trajectories of the micro teacher that part at step k: early steps fix the layout
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from torch import Tensor

from leaderboards.store import write_atomically
from leaderboards.studies import STUDIES, Figure, Point, Series
from leaderboards.study_report import vega_lite
from tests.studies.toys import branches as branching
from tests.studies.toys import mixtures

Json = dict[str, Any]
TAU, RADIUS = 0.2, 1.5  # of the ring of modes
PROMPTS = (
    "a photo of a red circle", "a photo of a blue square", "a photo of a green ring", "a photo of a yellow cross",
    "a photo of a red circle and a blue square", "a photo of a green triangle and a red ring",
)  # fmt: skip


def zero_forcing() -> tuple[Json, list[Figure]]:
    """Return what each distance of the two modes gives."""
    rows: list[Json] = []
    for distance in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        row: Json = {"distance": distance, "forward KL": mixtures.moments(distance)}
        rows.append(row | {name: mixtures.fit_gaussian(distance, law) for name, law in mixtures.LEVELS.items()})
    named = {"forward KL": "forward KL", **{name: f"DMD, {name} of noise" for name in mixtures.LEVELS}}

    def lines(place: int, what: str) -> Figure:
        series = [
            Series(name=title, points=[Point(x=row["distance"], y=row[key][place]) for row in rows])
            for key, title in named.items()
        ]
        return Figure(
            id=f"zero-forcing-{what}", title=f"A one-mode student of two modes (deviation 0.25 each): its {what}",
            x="distance of the modes", y=what, series=series,
        )  # fmt: skip

    return {"rows": rows}, [lines(0, "mean"), lines(1, "deviation")]


def projection() -> tuple[Json, list[Figure]]:
    """Return how well DMD's gradient points to the teacher's support, by noise level."""
    means, points = mixtures.ring(32, 1.0), torch.cartesian_prod(*[torch.linspace(-1.75, 1.75, 15)] * 2)
    way = mixtures.towards(points, means)
    outside = way.norm(dim=1) > 3 * 0.05
    rows, arrows = [], []
    for t in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        gradient = mixtures.gradient_field(points, means, 0.05, 1.0, t)
        cosine = torch.cosine_similarity(gradient, way)[outside]
        rows.append({"t": t, "cosine": float(cosine.mean()), "aligned": float((cosine > 0.9).double().mean())})
        if t == 0.2:
            arrows = [
                {"x": float(p[0]), "y": float(p[1]), "dx": float(g[0]), "dy": float(g[1])}
                for p, g in zip(points, gradient, strict=True)
            ]
    figure = Figure(
        id="projection", title="DMD's gradient and the way to the nearest of the teacher's support",
        x="noise level t", y="mean cosine",
        series=[Series(name="cosine", points=[Point(x=row["t"], y=row["cosine"]) for row in rows])],
    )  # fmt: skip
    return {"rows": rows, "arrows": arrows}, [figure]


def modes(updates: int) -> tuple[Json, list[Figure]]:
    """Return what DMDR's phases leave of eight modes on a ring."""
    means, samples = mixtures.ring(8, RADIUS), dict[str, Any]()
    rows: list[Json] = []
    for name, phases in mixtures.PHASES.items():
        for seed in (0, 1):
            drawn = mixtures.train_student([p for p in phases if p], means, TAU, seed, updates)
            rows.append({"arm": name, "seed": seed, **mixtures.coverage(drawn, means, TAU)})
            samples.setdefault(name, drawn[:400].tolist())

    def bars(key: str, title: str, y: str) -> Figure:
        points = []
        for name in mixtures.PHASES:
            values = [row[key] for row in rows if row["arm"] == name]
            points.append(Point(x=name, y=sum(values) / len(values), low=min(values), high=max(values)))
        return Figure(
            id=f"modes-{key.replace('_', '-')}", title=title, x="", y=y, series=[Series(name=y, points=points)]
        )

    return {"rows": rows, "samples": samples}, [
        bars("modes", "Modes of eight that the student covers", "modes"),
        bars("off_support", "Samples that lie off the teacher's support", "share"),
        bars("reward", "Reward (first coordinate; the best mode has 1.5)", "mean reward"),
    ]


def branched(out: Path, count: int, steps: tuple[int, ...]) -> tuple[Json, list[Figure]]:
    """Return what branches of the micro teacher have in common, by the step at which they part."""
    from benchmarks.samplers import sigma_grid
    from trainers.backbones.base import BackboneConfig, load

    backbone = load(BackboneConfig(path="benchmarks/micro/pipeline"), torch.device("cpu"))
    levels, found, sheet = sigma_grid(backbone.protocol()), [], []
    for k in steps:
        images = branching.branches(backbone, PROMPTS, count, k)
        found.append(branching.agreement(images, k, levels[k - 1]))
        sheet.append(images[4])
    contact_sheet(sheet).save(out / "branches.png")
    series = {
        "same objects": [Point(x=one.k, y=one.content) for one in found],
        "same objects in the same places": [Point(x=one.k, y=one.layout) for one in found],
        "same pixels (1 - mean difference)": [Point(x=one.k, y=1 - one.picture) for one in found],
    }
    figure = Figure(
        id="branches", title="What branches of the micro teacher have in common",
        x="step at which fresh noise parts them", y="share of pairs",
        series=[Series(name=name, points=points) for name, points in series.items()],
    )  # fmt: skip
    return {"rows": [asdict(one) for one in found], "prompts": PROMPTS, "branches": count}, [figure]


def contact_sheet(rows: list[Tensor]) -> Image.Image:
    """Return a picture with a row for each k and a column for each branch."""
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return Image.fromarray((255 * whole.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())


def quiver(arrows: list[dict[str, float]]) -> Json:
    """Return the Vega-Lite specification of a field of arrows of equal length, over the ring of the support."""
    values = []
    for one in arrows:
        length = max((one["dx"] ** 2 + one["dy"] ** 2) ** 0.5, 1e-12)
        values.append({**one, "x2": one["x"] + 0.17 * one["dx"] / length, "y2": one["y"] + 0.17 * one["dy"] / length})
    support = [{"x": x, "y": y} for x, y in mixtures.ring(32, 1.0).tolist()]
    x, y = ({"field": name, "type": "quantitative", "title": None} for name in "xy")
    ends = {"x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"}}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json", "width": 420, "height": 420,
        "background": "white",
        "title": "Where DMD's gradient moves samples (t = 0.2); dots: the teacher's support",
        "layer": [
            {"data": {"values": values}, "mark": {"type": "rule", "opacity": 0.7}, "encoding": ends},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 8},
             "encoding": {"x": {**x, "field": "x2"}, "y": {**y, "field": "y2"}}},
            {"data": {"values": support}, "mark": {"type": "point", "filled": True, "color": "#d62728"},
             "encoding": {"x": x, "y": y}},
        ],
    }  # fmt: skip


def study(
    out: Path = STUDIES / "toys",
    updates: int = 500,
    branch_count: int = 4,
    steps: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 16, 20, 24, 28),
) -> int:
    """Run the toys and return the exit code.

    Args:
        out: folder of the JSON, the text and the pictures
        updates: of the students of eight modes, in RL's phases; twice as many iterations in DMD's
        branch_count: branches of a trunk
        steps: steps of the micro teacher at which branches part
    """
    import vl_convert

    torch.set_num_threads(1)  # the same sums on every machine
    out.mkdir(parents=True, exist_ok=True)
    parts = {
        "zero_forcing": zero_forcing,
        "projection": projection,
        "modes": lambda: modes(updates),
        "branches": lambda: branched(out, branch_count, steps),
    }
    told: Json = {"schema_version": 1, "command": "tox -e study-toys"}
    figures: list[Figure] = []
    for name, part in parts.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        told[name], drawn = part()
        figures += drawn
    for figure in figures:
        write_atomically(out / f"{figure.id}.svg", vl_convert.vegalite_to_svg(vega_lite(figure)).encode())
    field = vl_convert.vegalite_to_svg(quiver(told["projection"]["arrows"]))
    write_atomically(out / "projection-field.svg", field.encode())
    told["figures"] = [figure.model_dump(mode="json") for figure in figures]
    write_atomically(out / "toys.json", (json.dumps(told, indent=1) + "\n").encode())
    write_atomically(out / "README.md", text(figures).encode())
    print(out / "README.md")
    return 0


def text(figures: list[Figure]) -> str:
    """Return the page that shows the pictures."""
    lines = [
        "# Toys",
        "",
        "Written by `tox -e study-toys`; every number stands in `toys.json`.",
        "",
        str(__doc__).split("\n\n")[-1],
    ]
    lines += [f"![{figure.title}]({figure.id}.svg)\n" for figure in figures]
    lines += ["![The field of DMD's gradient](projection-field.svg)\n"]
    lines += ["One prompt; rows: the step at which branches part, early ones first; columns: branches.\n"]
    return "\n".join([*lines, "![Branches](branches.png)\n"])


if __name__ == "__main__":
    sys.exit(tyro.cli(study))
