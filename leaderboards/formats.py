"""Write a table of a recipe as Markdown, LaTeX (booktabs), CSV, JSON or HTML."""

import csv
import html
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from leaderboards.recipe_table import Grid, Line, Value
from leaderboards.table import escape_markdown

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$^\dagger$",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "η": r"$\eta$",
    "γ": r"$\gamma$",
    "Δ": r"$\Delta$",
    "⋆": r"$^\star$",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def to_markdown(grid: Grid) -> str:
    """Return the table in GitHub's Markdown, text of others made inert."""

    def cell(value: Value) -> str:
        text = escape_markdown(value.text) + ("†" if value.trained_on else "")
        text = f"**{text}**" if value.bold else text
        return f"{text} {_interval(value)}".strip()

    head = ["", "Model", *(escape_markdown(title) for title in grid.headings)]
    lines = [head, ["---", "---", *(["---:"] * len(grid.headings))]]
    for line in grid.lines:
        lines.append([escape_markdown(_section(line)), escape_markdown(_named(line)), *map(cell, line.values)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{escape_markdown(grid.name)}.** {escape_markdown(_caption(grid))}\n\n{table}\n"


def to_latex(grid: Grid) -> str:
    """Return a `table` environment with booktabs; needs \\usepackage{booktabs} and UTF-8 input."""

    def cell(value: Value) -> str:
        text = latex(value.text) + (r"$^\dagger$" if value.trained_on else "")
        text = rf"\textbf{{{text}}}" if value.bold else text
        return text if value.low is None else rf"{text} {{\scriptsize {latex(_interval(value))}}}"

    width = 1 + len(grid.headings)
    rows: list[str] = []
    section = ""
    for line in grid.lines:
        if (found := _section(line)) != section:
            rows += [
                *([r"\midrule"] if section else []),
                rf"\multicolumn{{{width}}}{{l}}{{\emph{{{latex(found)}}}}} \\",
            ]
            section = found
        rows.append(" & ".join([latex(_named(line)), *map(cell, line.values)]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex(_caption(grid))}}}",
            rf"\label{{tab:{grid.name if grid.name.replace('-', '').isalnum() else 'fewstep'}}}",
            rf"\begin{{tabular}}{{l{'r' * len(grid.headings)}}}",
            r"\toprule",
            " & ".join(["Model", *map(latex, grid.headings)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(grid: Grid) -> str:
    """Return one line per model: value, interval's ends and marks in columns of their own, numbers unrounded."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n")
    parts = ("", " low", " high", " bold", " trained on")
    write.writerow(
        ["origin", "group", "model", "reward", *(f"{title}{part}" for title in grid.headings for part in parts)]
    )
    for line in grid.lines:
        cells: list[object] = []
        for value in line.values:
            number = value.text if value.number is None else repr(value.number)
            ends = ["" if end is None else repr(end) for end in (value.low, value.high)]
            cells += [number, *ends, int(value.bold), int(value.trained_on)]
        write.writerow([line.origin, _inert(line.group), _inert(line.model), line.reward, *cells])
    return buffer.getvalue()


def to_json(grid: Grid) -> str:
    """Return everything of the table, the protocol match included."""
    return json.dumps({**asdict(grid), "notes": grid.notes}, indent=1, ensure_ascii=False) + "\n"


def to_html(grid: Grid) -> str:
    """Return one <table> without style, to paste into a page."""

    def cell(value: Value) -> str:
        text = html.escape(value.text) + ('<sup title="trained on this metric">†</sup>' if value.trained_on else "")
        text = f"<strong>{text}</strong>" if value.bold else text
        interval = "" if value.low is None else f" <small>{html.escape(_interval(value))}</small>"
        return f"<td>{text}{interval}</td>"

    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in ("Model", *grid.headings))
    lines, section = [], None
    for line in grid.lines:
        if (found := _section(line)) != section:
            lines.append(
                f'<tr><th colspan="{1 + len(grid.headings)}" scope="rowgroup">{html.escape(found)}</th></tr>'
            )
            section = found
        model = f'<th scope="row"><bdi>{html.escape(line.model)}</bdi>{html.escape(_verdict(line))}</th>'
        lines.append(f"<tr>{model}{''.join(map(cell, line.values))}</tr>")
    caption = f"<caption>{html.escape(_caption(grid))}</caption>"
    return f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>\n"


FORMATS: Mapping[str, Callable[[Grid], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": to_json,
    "html": to_html,
}


def latex(text: str) -> str:
    """Make text inert in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _caption(grid: Grid) -> str:
    return " ".join(part for part in (grid.caption, grid.notes) if part)


def _section(line: Line) -> str:
    """The banner above a row: what kind of number stands here comes first."""
    kind = "Measured here" if line.origin == "measured" else "Reported"
    return f"{kind}: {line.group}" if line.group else kind


def _named(line: Line) -> str:
    return line.model + _verdict(line)


def _verdict(line: Line) -> str:
    """What a reward did stands beside the model, whatever the format."""
    return f" (reward: {line.reward})" if line.reward else ""


def _interval(value: Value) -> str:
    if value.low is None or value.high is None:
        return ""
    decimals = len(value.text.partition(".")[2])
    return f"[{value.low:.{decimals}f}, {value.high:.{decimals}f}]"


def _inert(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
