"""From the rows of a run to its result once more, and what differs from the one that is stated.

Statistics are deterministic to the bit, on every machine, so nothing is allowed for rounding: the result made again
must be the bytes of `result.json`, and its evidence those beside it. What no row tells (cost, versions, training,
what stands under `volatile`) is taken as stated.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from benchmarks.config import UserError, as_table
from benchmarks.manifest import not_shipped
from benchmarks.store import RESULT, ImageSet, Run, read_header
from benchmarks.values import value_of
from leaderboards import evidence
from leaderboards.schema import MetricResult, Result, Task, dump_result
from metrics.loaded import Scorer

MOST = 5  # differences that one message tells


def check_result(run: Run, image_sets: Sequence[ImageSet], result: Result) -> str:
    """Compute a result's numbers again from the rows of its run; return what was found equal.

    Raises UserError naming what differs: the stated value and the one that the rows give."""
    measured = [task for task in result.tasks if _measured(task)]
    names = sorted({name for task in measured for name in _measured(task)})
    scorer = Scorer(names)
    tasks, tables, differences = [], [evidence.COLUMNS.empty_table()], list(_of_header(run, result))
    if result.status == "ranked" and (own := not_shipped(names)):
        differences.append(f"status is 'ranked', but the weights of {', '.join(own)} are not those this project pins")
    for task in result.tasks:
        if task not in measured:
            tasks.append(task)
            continue
        image_set = _image_set(run, task, image_sets)
        metrics = dict(task.metrics)
        for name in _measured(task):
            metrics[name], rows = value_of(
                run, image_set, task.name, task.images_per_prompt, scorer.card(name), scorer
            )
            tables.append(rows)
        tasks.append(task.model_copy(update={**_of_set(image_set), "nfe": _nfe(run, image_set), "metrics": metrics}))
        differences += _differences(f"{task.name}.", task, tasks[-1])
    content = evidence.pack(pa.concat_tables(tables))
    if result.evidence and hashlib.sha256(content).hexdigest() != result.evidence.digest:
        differences.append(f"{result.evidence.file} holds other rows than {run.path.name}/*/evidence")
    if differences:
        more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
        raise UserError(f"{run.path / RESULT}: {'; '.join(differences[:MOST])}{more}")
    if dump_result(result.model_copy(update={"tasks": tasks})).encode() != (run.path / RESULT).read_bytes():
        raise UserError(f"{run.path / RESULT}: says the same in other bytes than this project writes; run it again")
    return f"result: {len(tables) - 1} metrics computed again from their rows, byte for byte"


def _measured(task: Task) -> list[str]:
    return [name for name, metric in task.metrics.items() if metric.status == "ok"]


def _of_header(run: Run, result: Result) -> Iterator[str]:
    header = read_header(run.path)
    told = {"suite": result.suite, "name": result.model.name, "weights_digest": result.model.weights_digest}
    for key, wanted in {"suite": header["suite"], **header["model"]}.items():
        if told.get(key) != wanted:
            yield f"{key} is stated as {told.get(key)!r}, the run was made with {wanted!r}"


def _image_set(run: Run, task: Task, image_sets: Sequence[ImageSet]) -> ImageSet:
    """Return the pictures a task looked at: its own, or those of another task of equal prompts and protocol."""

    def fits(image_set: ImageSet) -> bool:
        have = all(run.evidence(image_set.name, name).is_file() for name in _measured(task))
        same = image_set.prompts.digest == task.prompts_digest
        return have and same and image_set.images_per_prompt >= task.images_per_prompt

    found = sorted(filter(fits, image_sets), key=lambda image_set: (image_set.name != task.name, image_set.name))
    if not found:
        raise UserError(
            f"{run.path / RESULT}: no pictures of this run have the prompts of task {task.name!r} "
            f"and rows of {', '.join(_measured(task))}"
        )
    protocol = task.protocol_digest
    return next((one for one in found if one.protocol and one.protocol.digest() == protocol), found[0])


def _of_set(image_set: ImageSet) -> dict[str, Any]:
    """Return what an image set decides of a task."""
    told: dict[str, Any] = {
        "prompt_set": image_set.prompts.name,
        "prompts_digest": image_set.prompts.digest,
        "n_prompts": len(image_set.prompts.prompts),
    }
    if image_set.protocol:
        told |= {"protocol": as_table(image_set.protocol), "protocol_digest": image_set.protocol.digest()}
    return told


def _nfe(run: Run, image_set: ImageSet) -> int | None:
    count = (run.drawn(image_set, 0) or {}).get("nfe")
    return count if isinstance(count, int) else None


def _differences(where: str, stated: Task | MetricResult, again: Task | MetricResult) -> Iterator[str]:
    """Yield a line for every number or text that differs."""
    told, computed = (dict(_leaves(one.model_dump(mode="json"))) for one in (stated, again))
    for key in [*told, *(key for key in computed if key not in told)]:
        if told.get(key) != computed.get(key):
            yield f"{where}{key} is stated as {told.get(key)!r}, the run gives {computed.get(key)!r}"


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else key)
    else:
        yield where, value
