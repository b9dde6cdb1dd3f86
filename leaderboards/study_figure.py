"""How a figure of a study is drawn: one Vega-Lite specification for the pictures in files and for the page.

What depends on where it is shown (width, colours, how long a name may be) is left to the `config` beside it.
"""

from typing import Any

from leaderboards.studies import Figure

# Seven, where colours come again after 8, 10 or 20: shape and colour together tell many series apart
SHAPES = ["circle", "square", "cross", "diamond", "triangle-up", "triangle-down", "triangle-right"]
ROW = 28  # pixels of a name
Spec = dict[str, Any]


def figure_spec(figure: Figure) -> Spec:
    """Return data, layers and, of names, the height: lines over numbers, points of two numbers, intervals of names.

    Names stand one below the other. A series has a colour, a lone point a shape as well, a measure a dash."""
    values = [
        point.model_dump() | {"name": one.name, "measure": one.measure}
        for one in figure.series
        for point in one.points
    ]
    named = any(isinstance(value["x"], str) for value in values)
    lonely = named or all(len(one.points) == 1 for one in figure.series)
    place: Spec = {"field": "x", "title": figure.x or None, "sort": None}
    place |= {"type": "nominal"} if named else _number(figure.x)
    size = {"field": "y"} | _number(figure.y)
    names = list(dict.fromkeys(one.name for one in figure.series))
    nominal: Spec = {"type": "nominal", "title": None, "sort": None}
    # Each layer would count the names of its own marks alone, and where one has no interval give others its colour
    by_name = nominal | {"field": "name", "scale": {"domain": names}}
    several, measured = len(figure.series) > 1, len({one.measure for one in figure.series}) > 1
    colour = {"color": by_name} if several else {}
    along, up = ("y", "x") if named else ("x", "y")
    shared: Spec = {along: place}
    if named and several:
        shared["yOffset"] = {"field": "name", "sort": None}
    marked = shared | colour | {up: size}
    if lonely and several and not named:
        marked["shape"] = by_name | {"scale": {"domain": names, "range": SHAPES}}
    if measured:
        marked["strokeDash"] = nominal | {"field": "measure", "legend": {"symbolSize": 300}}
        shared["detail"] = {"field": "measure"}
    dots = {} if measured else {"point": {"size": 20}}  # a legend of dashes and dots would show neither
    line = {"type": "point", "filled": True, "size": 90, "opacity": 1} if lonely else {"type": "line"} | dots
    layers: list[Spec] = [{"mark": line, "encoding": marked}]
    if any(value["low"] is not None for value in values):
        ends = {up: size | {"field": "low"}, f"{up}2": {"field": "high"}}
        interval = {"type": "rule", "strokeWidth": 2} if lonely else {"type": "area", "opacity": 0.15}
        layers.insert(0, {"mark": interval, "encoding": shared | colour | ends})
    # In pixels, not in steps: Vega-Lite warns of steps wherever the width is fitted to a page
    height = {"height": ROW * len({value["x"] for value in values}) * len(names)} if named else {}
    return {"data": {"values": values}, "layer": layers} | height


def _number(title: str) -> Spec:
    return {"type": "quantitative", "title": title or None, "scale": {"zero": False}}
