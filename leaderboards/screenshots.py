"""Pictures of the page, made by a headless Chromium: what the README shows, and what a change of style is judged by.

CHROMIUM names the program; else it is looked for on the path. Needs the package playwright.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from leaderboards.schema import ResultError

WIDTHS = (1440, 768, 390)
VIEWS = (
    "table",
    "tradeoffs",
    "categories",
    "pictures",
    "prompts",
    "model",
    "claims",
    "speed",
    "metrics",
    "papers",
    "methods",
)


def photograph(
    site: Path,
    to: Path,
    theme: Literal["light", "dark"] = "light",
    views: Sequence[str] = VIEWS,
    widths: Sequence[int] = WIDTHS,
) -> Iterator[Path]:
    """Write <view>-<width>.png of every view into `to`; yield their paths.

    Raises ResultError where there is no such view, no page, no browser, or no package playwright."""
    if unknown := sorted(set(views) - set(VIEWS)):
        raise ResultError(f"no view {unknown[0]!r}; known: {', '.join(VIEWS)}")
    if not (site / "index.html").is_file():
        raise ResultError(f"{site}: no index.html; build the page first")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ResultError("screenshots need the package playwright: pip install playwright") from error
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise ResultError("no Chromium: install it, or set CHROMIUM to its program")
    to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width in widths:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            for view in views:
                page.goto(f"{(site / 'index.html').resolve().as_uri()}#view={view}")
                page.wait_for_selector("#body:not([aria-busy])", state="attached")
                page.wait_for_selector(".plot:not(:has(svg))", state="detached")
                path = to / f"{view}-{width}.png"
                page.screenshot(path=path)
                yield path
            page.close()
        browser.close()
