"""Cost of building the page: time, memory and size for boards of growing size (`python -m tests.perf.board`).

Boards are made of seeded noise: M metrics, P prompts with one image each, a third of the models trained on a reward.
Building runs in a process of its own, so that its peak memory is that of a build alone.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", type=int, nargs="+", default=[50, 100, 200])
    arguments.add_argument("--metrics", type=int, default=40)
    arguments.add_argument("--prompts", type=int, default=1000)
    arguments.add_argument("--keep", type=Path, help="leave boards and sites in this folder")
    options = arguments.parse_args()
    print("models  seconds  of them CPU  peak MiB  index.html MiB  data MiB")
    with tempfile.TemporaryDirectory() as temporary:
        for models in options.models:
            root = (options.keep or Path(temporary)) / str(models)
            if not root.is_dir():
                make(root / "results", models, options.metrics, options.prompts)
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            command = ["build", "--results", str(root / "results"), "--out", str(root / "site")]
            subprocess.run([sys.executable, "-m", "leaderboards", *command], check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            first = (root / "site" / "index.html").stat().st_size / 2**20
            data = sum(path.stat().st_size for path in (root / "site" / "data").rglob("*.js")) / 2**20
            peak = after.ru_maxrss / 1024  # of the largest child so far: sizes grow, so it is this one's
            print(f"{models:6d}  {wall:7.1f}  {cpu:11.1f}  {peak:8.0f}  {first:14.2f}  {data:8.1f}", flush=True)


if __name__ == "__main__":
    main()
