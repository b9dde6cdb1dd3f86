"""Plots of the page as inline SVG: matplotlib draws, the page's style sheet colours.

Colours are placeholders (#0000f0, #0000f1, ...) that become CSS variables, so that a plot follows dark and light.
Text stays text: it takes the page's font and can be read aloud. The same data give the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

INK, MUTED, LINE, TRAINED, HELD_OUT = "#0000f0", "#0000f1", "#0000f2", "#0000f3", "#0000f4"
SERIES = tuple(f"#0000e{index}" for index in range(8))
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", TRAINED: "trained", HELD_OUT: "held-out"}
VARIABLES |= {colour: f"s{index}" for index, colour in enumerate(SERIES)}
MARKERS = "osD^vPX*"
LONGEST_LABEL = 26


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a scatter plot; the interval is of y."""

    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    series: int  # of the method; 0 = not trained here
    hollow: bool = False  # y is a metric it was trained on


def scatter(points: Sequence[Point], x_label: str, y_label: str, *, name: str, log_x: bool = False) -> str:
    """Draw labelled points with vertical intervals. `name` is the plot's own on its page."""
    with _style():
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for point in points:
            colour = SERIES[point.series % len(SERIES)]
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=colour, linewidth=1.4, alpha=0.55)
            axes.plot(
                [point.x],
                [point.y],
                MARKERS[point.series % len(MARKERS)],
                color=colour,
                markerfacecolor="none" if point.hollow else colour,
                markersize=6.5,
            )
        if log_x:
            _nfe_axis(axes, sorted({point.x for point in points}))
        else:
            axes.margins(x=0.14)
        axes.margins(y=0.12)
        axes.set_xlabel(_cut(x_label, 60), parse_math=False)
        axes.set_ylabel(_cut(y_label, 48), parse_math=False)
        _frame(axes)
        figure.draw_without_rendering()  # fixes the layout, and so where a point lies on the picture
        _label_points(axes, points, figure.dpi / 72)
        return _svg(figure, name)


def curve(iterations: Sequence[float], values: Sequence[float], *, name: str, trained_on: bool) -> str:
    """Draw one metric over training. `name` is the plot's own on its page."""
    with _style():
        figure = Figure(figsize=(2.7, 1.55))
        axes = figure.add_axes((0.17, 0.17, 0.8, 0.79))  # a layout engine would draw each of many panels thrice
        colour = TRAINED if trained_on else HELD_OUT
        axes.axhline(values[0], color=LINE, linewidth=1)
        axes.plot(iterations, values, color=colour, linewidth=1.8, linestyle="--" if trained_on else "-")
        axes.plot(iterations[-1:], values[-1:], "o", color=colour, markersize=4)
        axes.margins(y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        _frame(axes)
        return _svg(figure, name)


class _style:
    """matplotlib's own defaults, whatever the machine is configured to."""

    def __enter__(self) -> None:
        self._context = matplotlib.rc_context()
        self._context.__enter__()
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "fewstep-bench",
                "font.size": 9.5,
                "figure.facecolor": "none",
                "axes.labelcolor": MUTED,
                "axes.edgecolor": LINE,
                "xtick.color": LINE,
                "ytick.color": LINE,
                "xtick.labelcolor": MUTED,
                "ytick.labelcolor": MUTED,
                "text.color": INK,
                "axes.unicode_minus": False,
                "axes.formatter.useoffset": False,
            }
        )

    def __exit__(self, *failure: object) -> None:
        self._context.__exit__(None, None, None)


def _frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_facecolor("none")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _nfe_axis(axes: Axes, values: Sequence[float]) -> None:
    """A doubling scale with ticks at the numbers of passes that occur."""
    axes.set_xscale("log", base=2)
    apart = [values[0]]
    for value in values[1:]:
        if value / apart[-1] > 1.25:
            apart.append(value)
    axes.xaxis.set_major_locator(FixedLocator(apart))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(apart, [f"{value:g}" for value in apart])
    axes.set_xlim(values[0] / 3, values[-1] * 2.2)


def _label_points(axes: Axes, points: Sequence[Point], scale: float) -> None:
    """Put each name beside its point where it covers no other name, point or interval: the first free place."""
    dots = axes.transData.transform([(point.x, point.y) for point in points])
    frame = axes.get_window_extent()
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in dots]
    for point in points:
        if point.low is not None and point.high is not None:
            (x, bottom), (_, top) = axes.transData.transform([(point.x, point.low), (point.x, point.high)])
            taken.append((x - scale, bottom, x + scale, top))
    for index in sorted(range(len(points)), key=lambda i: (-points[i].y, points[i].label)):
        text = _cut(points[index].label, LONGEST_LABEL)
        width, height = 5.1 * scale * len(text), 10 * scale
        x, y = dots[index]
        for shift in (0, 11, -11, 22, -22, 33, -33, 44, -44, 55):
            for side in (1, -1):
                left = x + 8 * scale if side == 1 else x - 8 * scale - width
                middle = y + shift * scale
                box = (left, middle - height / 2, left + width, middle + height / 2)
                inside = frame.x0 <= box[0] and box[2] <= frame.x1 + 12 * scale
                if inside and not any(_overlap(box, other) for other in taken):
                    break
            else:
                continue
            break
        else:
            continue  # crowded: the table has the name
        taken.append(box)
        axes.annotate(
            text,
            (points[index].x, points[index].y),
            xytext=(8 * side, shift),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            fontsize=9,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8} if shift else None,
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Many plots share one page: keep the ids that something refers to, each under the plot's name.
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in referred else "", text)
    text = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]+"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]+"', r"\1", text, count=1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", text)


def as_number(value: object) -> float | None:
    """Return a value from a result file as a number that a plot can hold, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        return None
    return float(value)
