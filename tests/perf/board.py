"""Cost of building the page: time, memory and size for boards of growing size (`python -m tests.perf.board`).

Boards are made of seeded noise: M metrics, P prompts with one image each, a third of the models trained on a reward.
Building runs in a process of its own, so that its peak memory is that of a build alone. The page is then opened in a
headless Chromium (package playwright, CHROMIUM or a program on the path), where there is one. Exit code 1 where the
largest board misses a bar: 60 s, 1.5 GiB, 5 MB of index.html, 2 s until the table stands, cost linear in models.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from leaderboards import evidence
from leaderboards.schema import Cost, MetricResult, Model, Result, Task, Training
from leaderboards.statistics import breakdown
from leaderboards.store import publish

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "attributes")
METHODS = ("", "dmd", "dmdr", "rtdmd", "dp-dmd")


def table_of(draw: np.random.Generator, difficulty_P: np.ndarray, quality: float, metrics: int) -> pa.Table:
    """Evidence of one model: metric 0 says right or wrong, metric 1 is a diversity, the others are scores."""
    prompts = len(difficulty_P)
    ids, categories = [f"prompt-{p:05d}" for p in range(prompts)], [CATEGORIES[p % 6] for p in range(prompts)]
    columns: dict[str, list] = {name: [] for name in evidence.COLUMNS.names}
    for metric in range(metrics):
        level_P = quality + difficulty_P + draw.normal(scale=0.15, size=prompts)
        values_P = (level_P > draw.random(prompts)).astype(float) if metric == 0 else level_P * (metric + 1) / 10
        columns["task"] += ["main"] * prompts
        columns["metric"] += [name_of(metric)] * prompts
        columns["prompt_id"] += ids
        columns["category"] += categories
        columns["split"] += ["unseen" if p % 4 == 0 else "seen" for p in range(prompts)]
        columns["seed"] += [0] * prompts
        columns["value"] += values_P.tolist()
    return pa.table(columns, schema=evidence.COLUMNS)


def name_of(metric: int) -> str:
    return ("judge", "feature_diversity")[metric] if metric < 2 else f"score_{metric:02d}"


def result_of(table: pa.Table, index: int, metrics: int, prompts: int) -> Result:
    method = METHODS[index % len(METHODS)]
    rewards = ["score_02"] if method in ("dmdr", "rtdmd") else []
    curves = [
        {"iteration": 50 * i, **{name_of(m): 0.3 + 0.01 * i for m in range(min(metrics, 6))}} for i in range(12)
    ]
    measured = {}
    for metric in range(metrics):
        aggregate = "categories" if metric == 0 else "prompts"
        found = breakdown(evidence.scores(table, "main", name_of(metric)), aggregate, replicates=0)
        measured[name_of(metric)] = MetricResult(
            card_id=name_of(metric), version=1, variant="official", unit="share",
            title=name_of(metric).replace("_", " "),
            higher_is_better=True, aggregate=aggregate, status="ok", **vars(found.total),
            categories={key: evidence.as_category_value(part) for key, part in found.categories.items()},
            splits={key: evidence.as_category_value(part) for key, part in found.splits.items()},
        )  # fmt: skip
        value = measured[name_of(metric)].value or 0.0
        measured[name_of(metric)] = measured[name_of(metric)].model_copy(
            update={"low": value - 0.02, "high": value + 0.02}  # true intervals would take hours to make
        )
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    training = Training(method=method, config={"eta": 0.9}, seed=0, rewards=rewards, image_free=True,
                        network_passes=1000, curves=curves) if method else None  # fmt: skip
    task = Task(name="main", prompt_set="noise", prompts_digest="a" * 64, n_prompts=prompts, images_per_prompt=1,
                protocol={"sampler": "euler", "num_inference_steps": 4}, protocol_digest="b" * 64, nfe=4,
                metrics=measured)  # fmt: skip
    model = Model(name=f"model-{index:03d}", weights_digest=digest, base="model-000" if method else "", method=method,
                  trained_on=rewards, training=training)  # fmt: skip
    return Result(model=model, suite="noise", tasks=[task], cost=Cost(parameters=10**9, nfe=2 ** (index % 6)),
                  provenance={"numpy": np.__version__}, evidence=None)  # fmt: skip


def make(board: Path, models: int, metrics: int, prompts: int) -> None:
    """Write a board; its intervals are not those of the evidence, which `build` does not recompute."""
    difficulty_P = np.random.default_rng(0).normal(scale=0.2, size=prompts)
    check, evidence.check = evidence.check, lambda *_, **__: None
    try:
        for index in range(models):
            draw = np.random.default_rng([1, index])
            table = table_of(draw, difficulty_P, 0.3 + 0.4 * draw.random(), metrics)
            publish(result_of(table, index, metrics, prompts), table, board)
    finally:
        evidence.check = check


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a board of one size cost."""

    models: int
    seconds: float  # of building, from start to end of its process
    cpu: float
    peak_mib: float
    first_mb: float  # index.html
    data_mb: float
    interactive: float | None  # until a browser has drawn the table; None without playwright or Chromium
    sorting: float | None  # from a click on a heading to the table in the new order

    def __str__(self) -> str:
        shown = [self.seconds, self.cpu, self.peak_mib, self.first_mb, self.data_mb, self.interactive, self.sorting]
        return f"{self.models:6d}" + "".join(f"{'–' if one is None else f'{one:.2f}':>13s}" for one in shown)


def build_apart(root: Path) -> tuple[float, float, float]:
    """Build a board in a process of its own; return its seconds, its CPU seconds and its peak in MiB."""
    command = [sys.executable, "-m", "leaderboards", "build"]
    command += ["--results", str(root / "results"), "--out", str(root / "site")]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone: a browser's peak is larger
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def open_in_browser(site: Path, models: int) -> tuple[float | None, float | None]:
    """Return the seconds until the table stands, and until it is sorted by a click; None without a browser."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        return None, None
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        rows = page.locator(".board tbody th[scope=row]")
        start = time.perf_counter()
        page.goto((site / "index.html").resolve().as_uri())
        rows.nth(models - 1).wait_for(state="attached")
        ready = time.perf_counter() - start
        start = time.perf_counter()
        page.locator("[data-sort=name]").click()
        page.locator("th[aria-sort=ascending]").wait_for()
        sorting = time.perf_counter() - start
        browser.close()
    return ready, sorting


def missed(found: Sequence[Figures]) -> Iterator[str]:
    """Yield the bars that the largest board misses, and whether cost grew faster than the number of models."""
    smallest, largest = found[0], found[-1]
    bars = {"seconds": 60, "peak_mib": 1536, "first_mb": 5, "interactive": 2}
    for name, most in bars.items():
        value = getattr(largest, name)
        if value is not None and value > most:
            yield f"{largest.models} models: {name} {value:.2f}, at most {most} wanted"
    if largest.cpu / largest.models > smallest.cpu / smallest.models:
        yield (
            f"not linear: {largest.cpu / largest.models:.3f} CPU seconds a model at {largest.models}, "
            f"{smallest.cpu / smallest.models:.3f} at {smallest.models}"
        )


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", type=int, nargs="+", default=[50, 100, 200])
    arguments.add_argument("--metrics", type=int, default=40)
    arguments.add_argument("--prompts", type=int, default=1000)
    arguments.add_argument("--keep", type=Path, help="leave boards and sites in this folder")
    options = arguments.parse_args()
    heads = ("seconds", "of them CPU", "peak MiB", "index MB", "data MB", "interactive", "sorting")
    print("models" + "".join(f"{head:>13s}" for head in heads))
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for models in sorted(options.models):
            root = (options.keep or Path(temporary)) / str(models)
            if not root.is_dir():
                make(root / "results", models, options.metrics, options.prompts)
            seconds, cpu, peak = build_apart(root)
            first = (root / "site" / "index.html").stat().st_size / 1e6
            data = sum(path.stat().st_size for path in (root / "site" / "data").rglob("*.js")) / 1e6
            interactive, sorting = open_in_browser(root / "site", models)
            found.append(
                Figures(
                    models=models, seconds=seconds, cpu=cpu, peak_mib=peak, first_mb=first, data_mb=data,
                    interactive=interactive, sorting=sorting,
                )
            )  # fmt: skip
            print(found[-1], flush=True)
    faults = list(missed(found))
    print("\n".join(faults) or "every bar is met")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
