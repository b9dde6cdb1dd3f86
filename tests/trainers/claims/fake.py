"""A study in seconds: a small plan, trainings that only write what trainings leave, evidence with known effects."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.config import UserError
from leaderboards import evidence
from leaderboards.schema import Cost, MetricResult, Model, Result, StageRecord, Task, Training
from leaderboards.statistics import breakdown
from leaderboards.store import publish
from trainers.checkpoint import LOG, STATE, claim_folder, keep_state, save_state, write_text
from trainers.claims.plan import Study, read_study
from trainers.config import RunConfig, resolved_settings
from trainers.pause import Paused
from trainers.study import CONFIGS

PLAN = f"""
title = "Tiny"
about = "Nothing is trained."
suite = "micro"
seeds = 2
headline_seeds = 3
passes_per_second = 100.0
benchmark_seconds = 10.0

[bases.rtdmd]
method = "rtdmd"
config = "{CONFIGS / "rtdmd-micro.toml"}"
stages.cold_start.budget_passes = 1000
stages.reinforce.budget_passes = 500

[arms.teacher]
model = "somewhere"

[arms.plain]
base = "rtdmd"

[arms.better]
title = "a better one"
like = "plain"
settings.stages.reinforce.settings.reinforce = {{ det_term = false }}

[arms.other]
base = "rtdmd"
settings.trainer.guidance_scale = 2.0

[arms.logged]
base = "rtdmd"
benchmark = false

[[claims]]
id = "first"
statement = "Better is better."
source = {{ paper = "P", where = "Table 1" }}
arms = ["better", "plain"]
measure = "shapes_geneval"
smallest = 0.02
headline = true

[[claims]]
id = "second"
statement = "Other is like plain."
source = {{ paper = "P", where = "Table 2" }}
arms = ["other", "plain"]
measure = "micro_clip"
claimed = "near"
smallest = 0.2

[[claims]]
id = "third"
statement = "The student beats the teacher."
source = {{ paper = "P", where = "Table 3" }}
arms = ["better", "teacher"]
measure = "shapes_geneval"
smallest = 0.02

[[figures]]
id = "curves"
title = "Curves"
kind = "curves"
arms = ["plain", "better"]
measures = ["micro_clip"]

[[figures]]
id = "bars"
title = "Bars"
kind = "bars"
arms = ["plain", "better", "other"]
measures = ["shapes_geneval"]

[[figures]]
id = "plane"
title = "Plane"
kind = "scatter"
arms = ["teacher", "plain"]
measures = ["micro_clip", "shapes_geneval"]
"""
MEANS = {"teacher": 0.5, "plain": 0.4, "better": 0.7, "other": 0.4}
PROMPTS, IMAGES = 30, 2


def write_plan(folder: Path, text: str = PLAN) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text)
    return read_study(folder / "tiny.toml")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Trainings:
    """Stands in for trainers.run.train: writes run.json, log, checkpoints and the student's record."""

    def __init__(self, seconds: float = 0.0, broken: str = "", spend: float = 1.0) -> None:
        self.seconds, self.broken, self.spend = seconds, broken, spend
        self.calls: list[str] = []
        self.clock = 1000.0

    def __call__(self, method: str, run: RunConfig, folder: Path, *, where: str, until: float) -> Path:
        self.calls.append(run.name)
        if self.broken and run.name.startswith(self.broken):
            raise UserError(f"{where}: broken")
        claim_folder(folder, method, begun(run))
        time.sleep(self.seconds)
        if time.monotonic() >= until:
            (folder / STATE).write_text("half")
            raise Paused
        write_run(folder, method, run, spend=self.spend)
        return folder / "student"


def write_run(folder: Path, method: str, run: RunConfig, spend: float = 1.0, **lines: Callable[[int], float]) -> None:
    """Write what a finished training leaves: log.jsonl, checkpoints, student/training.json."""
    passes, total, now, log, curves, stages = 0, 0, 1000.0, [], [], []
    resolved = resolved_settings(method, run, "config")
    claim_folder(folder, method, begun(run))

    def measure(name: str, iteration: int) -> None:
        point = {"micro_clip": 0.01 * total, "shapes_geneval": 0.5}
        curves.append({"stage": name, "iteration": total, "passes": passes, **point})
        canary = {f"canary/{key}": value for key, value in point.items()} | {"canary_std/micro_clip": 0.5}
        log.append({"stage": name, "iteration": iteration, "passes": passes, **canary, "volatile": {"time": now}})

    measure(next(iter(run.stages)), 0)
    for name, stage in run.stages.items():
        for iteration in range(1, 11):
            passes, total, now = passes + int(spend * stage.budget_passes) // 10, total + 1, now + 2.0
            line: dict[str, Any] = {"stage": name, "iteration": iteration, "passes": passes}
            line |= {"reward_std/micro_clip": 0.1 + 0.01 * iteration}
            line |= {key: of(iteration) for key, of in lines.items()}
            log.append(line | {"volatile": {"time": now}})
            if iteration % 5 == 0:
                measure(name, iteration)
        save_state(folder, {"whole": True})
        if name != list(run.stages)[-1]:
            keep_state(folder, name)
        told = {"iterations": 10, "network_passes": stage.budget_passes, "settings": resolved[name]}
        stages.append(StageRecord(name=name, method=method, **told))  # type: ignore[arg-type]
    write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in log))
    (folder / "student").mkdir(exist_ok=True)
    record = Training(
        method=method,
        config={"backbone": {"compile": run.backbone.compile}},
        seed=run.seed,
        rewards=[],
        image_free=True,
        network_passes=passes,
        curves=curves,
        stages=stages,
    )
    told = {"base": "micro-teacher"} | record.model_dump(mode="json")  # as trainers.loop writes it
    write_text(folder / "student" / "training.json", json.dumps(told))


def begun(run: RunConfig) -> RunConfig:
    """Return the run as trainers.loop stores it: with the number of processes that it begins with."""
    return replace(run, processes=run.processes or 1)


class Benchmarks:
    """Stands in for benchmarks.evaluate: puts a result on the board whose effects are those of MEANS."""

    def __init__(self, means: dict[str, float] | None = None, prompts: int = PROMPTS) -> None:
        self.means, self.prompts = means or MEANS, prompts
        self.names: list[str] = []

    def __call__(self, model: object, suite: str, *, name: str, out: Path, board: Path, overrides: object) -> None:
        self.names.append(name)
        publish(
            result_of(name, table_of(name, self.means, self.prompts)), table_of(name, self.means, self.prompts), board
        )


def table_of(name: str, means: dict[str, float], prompts: int = PROMPTS) -> pa.Table:
    arm, _, seed = name.rpartition("-s")
    arm, number = (arm, int(seed)) if arm else (name, 99)
    draw = np.random.default_rng([number, len(arm)])
    level = means[arm] + 0.005 * draw.standard_normal()
    rows = []
    for prompt in range(prompts):
        easy = 0.2 * np.sin(prompt)  # the same for every arm
        for image in range(IMAGES):
            value = float(level + easy + 0.05 * draw.standard_normal())
            place = (f"p-{prompt:03d}", "all", "", image)
            rows += [("micro", "shapes_geneval", *place, value), ("micro", "micro_clip", *place, 2 * value)]
    return pa.table(dict(zip(evidence.COLUMNS.names, zip(*rows, strict=True), strict=True)), schema=evidence.COLUMNS)


def result_of(name: str, table: pa.Table) -> Result:
    found = {}
    for metric in ("shapes_geneval", "micro_clip"):
        total = breakdown(evidence.scores(table, "micro", metric), "prompts")
        parts = {key: evidence.as_category_value(part) for key, part in total.categories.items()}
        found[metric] = MetricResult(
            card_id=metric, version=1, variant="official", title=metric, unit="", higher_is_better=True,
            aggregate="prompts", status="ok", **vars(total.total), categories=parts,
        )  # fmt: skip
    recall = MetricResult(
        card_id="micro_recall", version=1, variant="official", title="recall", unit="", higher_is_better=True,
        aggregate="set", status="ok", value=0.25, n_images=len(table) // 2,
    )  # fmt: skip
    prompts = len(set(table["prompt_id"].to_pylist()))
    task = Task(
        name="micro", prompt_set="micro", prompts_digest=sha("p"), n_prompts=prompts, images_per_prompt=IMAGES,
        protocol={}, protocol_digest=sha("q"), nfe=4, metrics=found | {"micro_recall": recall},
    )  # fmt: skip
    return Result(
        model=Model(name=name, weights_digest=sha(name)), suite="micro", tasks=[task], cost=Cost(parameters=1, nfe=4),
        provenance={}, evidence=None,
    )  # fmt: skip
