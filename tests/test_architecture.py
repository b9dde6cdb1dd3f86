"""Rules of the tree that a reader relies on: which package may import which, how long a piece may grow."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, set[str]] = {
    "metrics": set(),
    "leaderboards": set(),
    "benchmarks": {"metrics", "leaderboards"},
    "trainers": {"benchmarks", "metrics", "leaderboards"},
}
SOURCES = [path for top in ALLOWED for path in sorted((ROOT / top).rglob("*.py"))]


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """Return (line, module) of every absolute import of a file, the lazy ones inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for line, module in imported_modules(path):
        target = module.partition(".")[0]
        if target in ALLOWED:
            assert target in ALLOWED[package] | {package}, f"{path}:{line}: {package} may not import {target}"


def test_leaderboards_never_import_torch() -> None:
    heavy = {"torch", "torchvision", "diffusers", "transformers"}
    for path in (ROOT / "leaderboards").rglob("*.py"):
        names = {module.partition(".")[0] for _, module in imported_modules(path)}
        assert not names & heavy, f"{path} imports {names & heavy}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600, f"{path} has outgrown one idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 70, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_the_top_level_is_fixed() -> None:
    wanted = {"benchmarks", "trainers", "metrics", "leaderboards", "tests", "pyproject.toml", "tox.ini"}
    small = {"README.md", "constraints.txt", "LICENSE", "CONTRIBUTING.md", "SECURITY.md"}
    made = {"runs", "build", "dist", "fewstep_bench.egg-info"}  # git-ignored products of running things
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert wanted | small <= present
    assert present - wanted - small - made == set()


TRAINERS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "trainers").glob("*.py"))}
METHODS = {path: text for path, text in TRAINERS.items() if "\n@register(" in text}


def blocks(text: str, size: int) -> set[tuple[str, ...]]:
    """Return every run of `size` statements that stand one after the other in a function's body or a branch of it."""
    found: set[tuple[str, ...]] = set()
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
                if isinstance(body, list):
                    lines = [ast.unparse(one) for one in body if not isinstance(one, ast.Expr)]
                    found |= {tuple(lines[n : n + size]) for n in range(len(lines) - size + 1)}
    return found


def test_a_method_is_a_file_of_at_most_250_lines() -> None:
    assert len(METHODS) >= 10
    assert {path.name: len(text.splitlines()) for path, text in METHODS.items() if text.count("\n") > 250} == {}


def test_no_two_methods_repeat_a_piece_of_logic() -> None:
    found = {path.name: blocks(text, 3) for path, text in METHODS.items()}
    assert sum(map(len, found.values())) > 50
    for one, other in combinations(found, 2):
        assert found[one] & found[other] == set(), f"{one} and {other}: give what they share a place of its own"
