"""The page: one HTML file, and data in script files beside it that are loaded when a reader looks at them.

index.html holds style, script and the board itself; `leaderboards.page.data` tells what the rest holds. Nothing is
asked of the network. Text from result files reaches the page as JSON and is shown as text, never as markup. No
dates, no random ids: the same board gives the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from leaderboards.methods import Method
from leaderboards.page import data
from leaderboards.papers import PaperTable
from leaderboards.recipe import Recipe
from leaderboards.store import Entry, file_stem
from leaderboards.studies import AnyStudy
from leaderboards.table import SuiteTable

TEMPLATES = Path(__file__).parent / "templates"
LICENCE = (
    "/* Vega, Vega-Lite, Vega-Embed and Vega-Interpreter, (c) University of Washington Interactive Data Lab and "
    "contributors, BSD-3-Clause: https://vega.github.io; bundled by vl-convert-python. */\n"
)


def index(tables: Sequence[SuiteTable], errors: Sequence[str] = ()) -> str:
    """Return index.html: the shell and the board; an empty board says so."""
    tasks = {column.task for table in tables for column in table.columns}
    board = {
        "suites": [data.board(table) for table in tables],
        "stems": {task: file_stem(task) for task in sorted(tasks)},
    }
    scripts = sorted((TEMPLATES / "script").glob("*.js"))
    return render(
        "index.html",
        suites=tables,
        errors=errors,
        script=Markup("".join(path.read_text(encoding="utf-8") for path in scripts)),
        board=Markup(data.as_json(board)),
    )


def render(template: str, **values: object) -> str:
    """Fill one of the templates, with the page's style; every text is escaped that is not marked as markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def files(
    tables: Sequence[SuiteTable],
    papers: Mapping[str, PaperTable],
    recipes: Mapping[str, Recipe],
    suites: Mapping[str, Sequence[Entry]],
    studies: Mapping[str, AnyStudy],
    methods: Sequence[Method],
) -> Iterator[tuple[str, bytes]]:
    """Yield (path below data/, content) of every chunk, one at a time."""
    yield "plots.js", plots()
    yield "papers.js", data.as_script("papers", data.papers(papers, recipes, suites))
    yield "studies.js", data.as_script("studies", data.studies(studies))
    yield "methods.js", data.as_script("methods", data.methods(methods))
    for table in tables:
        for key, content in data.chunks(table):
            yield f"{key}.js", data.as_script(key, content)


def plots() -> bytes:
    """Return Vega-Lite with all it needs, from the package vl-convert-python; the same bytes for the same version."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub forgets that None means all
    # In a function, so that its hundreds of names stay out of the page's.
    return f"{LICENCE}(()=>{{{bundle}\n}})();\nfewstep.chunk('plots',true);\n".encode()
