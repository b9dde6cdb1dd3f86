"""What the commands show on a terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboards.columns import number
from leaderboards.comparison import Compared, Contrast, changed_most
from leaderboards.hacking import MEANING, Report
from leaderboards.vote import Key, Outcome

MOST = 5  # prompts shown


def show_comparison(compared: Compared, rewards: Mapping[str, Report]) -> None:
    """Print the differences of the first to every other, the prompts that changed most by the first metric, and what
    their rewards did to those models that were trained on some."""
    console = Console()
    for other in compared.entries[1:]:
        name = other.result.model.name
        table = _table(
            f"{compared.names[0]} − {name}", "metric", "difference", "95 % interval", "p (Holm)", "wins", "n"
        )
        for one in compared.contrasts:
            if one.other == name:
                table.add_row(*_contrast(one))
        console.print(table)
    column = compared.columns[0]
    changed = _table(f"changed most by {column.title}", "prompt", *compared.names)
    for prompt in changed_most(compared.entries, column)[:MOST]:
        changed.add_row(Text(prompt.prompt_id), *map(number, prompt.means))
    console.print(changed)
    for name, report in rewards.items():
        console.print(Text(f"{name}: reward {report.verdict}: {MEANING[report.verdict]}"), soft_wrap=True)


def show_outcomes(told: tuple[Key, Sequence[Outcome]]) -> None:
    """Print the win rates of a vote."""
    key, outcomes = told
    console = Console()
    for one in outcomes:
        rate, names = one.a_wins, {"a preferred": f"{key.a} preferred", "b preferred": f"{key.b} preferred"}
        interval = "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        agreed = "" if one.agreement is None else f", {100 * one.agreement:.0f} % of pairs of votes agree"
        table = _table(one.question, "wins", "%")
        table.add_row(Text(key.a), f"{100 * rate.value:.1f}{interval}")
        table.add_row(Text(key.b), f"{100 * (1 - rate.value):.1f}")
        console.print(table)
        votes = f"{one.votes} votes ({one.ties} ties) of {one.voters} voters on {rate.n_images} pairs"
        console.print(Text(f"{names.get(one.verdict, one.verdict)}; {votes}{agreed}"))


def _contrast(one: Contrast) -> tuple[Text | str, ...]:
    found = one.difference
    return (
        Text(f"{one.column.title} {one.column.arrow}{' † trained on' if one.trained_on else ''}"),
        f"{found.difference:+.3f}",
        "–" if found.low is None else f"{number(found.low)} to {number(found.high)}",
        f"{one.p:.4f}",
        f"{100 * one.wins.value:.1f} %",
        f"{found.n_prompts} × {found.n_pairs / found.n_prompts:g}",
    )


def _table(title: str, *headings: str) -> Table:
    """An empty table; the first column is text, aligned left and wrapped where there is no room."""
    table = Table(title=Text(title))
    for place, heading in enumerate(headings):
        numbers = place > 0
        table.add_column(Text(heading), justify="right" if numbers else "left", no_wrap=numbers and len(heading) < 16)
    return table
