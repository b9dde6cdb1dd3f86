"""The official packages on a run's own pictures, beside the native metrics: tox -e official -- runs/tiny-preference

    image_reward.package    ImageReward.score of image-reward 1.5          beside image_reward
    hps_v2.package          hpsv2.score of hpsv2 1.2.0, version v2.0       beside hps_v2
    hps_v21.package         the same, version v2.1                         beside hps_v21

The packages' requirements fit neither this project's nor each other's, so they run in an environment of their own
(`tox -e official-packages`), which gets a list of pictures and gives back a list of numbers: files, nothing else.
The numbers become evidence of the run, and each is compared with the native one of the same picture. What was scored
is not scored again. The environment is made at the first use, from a package registry.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.cli import parse
from benchmarks.config import UserError
from benchmarks.rows import Identity, read_rows, write_rows
from benchmarks.score import identify
from benchmarks.screen import guarded
from benchmarks.store import ImageSet, Run, write_whole
from benchmarks.verify import open_run
from metrics.base import nearest
from metrics.commands import print_table
from metrics.loaded import Scorer
from metrics.weights import manifest, use_folder

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "official"  # of a run: what is exchanged with the other environment
TOX = (sys.executable, "-m", "tox", "run", "-q", "-c", str(ROOT / "tox.ini"), "-e", "official-packages", "--")
Row = Mapping[str, Any]
Key = tuple[str, str, int]  # image set, prompt's id, seed


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A score as a package computes it."""

    native: str  # the metric of this project that it is compared with
    package: str
    files: Mapping[str, tuple[str, str]]  # role: id of the weights, name of the file
    version: str = ""  # what the package calls it

    def missing(self) -> list[str]:
        """Return what the weights lack, and what mends it."""
        return [why for identity in self._weights() if (why := manifest(identity).missing())]

    def request(self) -> dict[str, Any]:
        """Return what the other environment needs to know. Raises UserError where weights are missing or damaged."""
        paths = {role: str(manifest(identity).path(name).resolve()) for role, (identity, name) in self.files.items()}
        return {"package": self.package, "version": self.version, "files": paths, "weights_digest": self.digest()}

    def digest(self) -> str:
        """Return the sha256 over the weights, which is that of the native metric. Raises UserError as `request`."""
        digests = sorted({manifest(identity).digest() for identity in self._weights()})
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _weights(self) -> list[str]:
        return sorted({identity for identity, _ in self.files.values()})


PACKAGED: Mapping[str, Packaged] = {
    "image_reward.package": Packaged(
        native="image_reward",
        package="image-reward",
        files={
            "checkpoint": ("image-reward-v1", "ImageReward.pt"),
            "vocabulary": ("bert-base-uncased-vocab", "vocab.txt"),
        },
    ),
    "hps_v2.package": Packaged(
        native="hps_v2",
        package="hpsv2",
        version="v2.0",
        files={"checkpoint": ("hps-v2", "HPS_v2_compressed.pt")},
    ),
    "hps_v21.package": Packaged(
        native="hps_v21",
        package="hpsv2",
        version="v2.1",
        files={"checkpoint": ("hps-v2.1", "HPS_v2.1_compressed.pt")},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One packaged score on one image set. Values are None where `reason` says why there are none."""

    image_set: str
    metric: str
    n_images: int = 0
    official: float | None = None  # mean over pictures
    native: float | None = None
    largest_difference: float | None = None  # of a picture
    reason: str = ""
    failed: bool = False  # the package or its numbers; not: something was not there to begin with


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Score a run's pictures with the packages image-reward and hpsv2 themselves."""

    run: tyro.conf.Positional[Path]
    """Run directory"""
    metrics: tuple[str, ...] = ()
    """Only these: image_reward.package, hps_v2.package, hps_v21.package"""
    weights: Path | None = None
    """Folder of the metrics' weights, DIR/<id>/<file>; default: FEWSTEP_BENCH_WEIGHTS, then the hub's cache"""


def run_official(path: Path, metrics: Sequence[str] = (), command: Sequence[str] = TOX) -> list[Comparison]:
    """Score a run's pictures with the packages, keep the rows as evidence, compare them with the native metrics.

    metrics: some of PACKAGED; default all. command: what starts `benchmarks.official_packages` elsewhere.
    Raises UserError where the run is not drawn, no weights are there, or the environment cannot be started."""
    for metric in metrics:
        if metric not in PACKAGED:
            raise UserError(f"--metrics {metric}: no packaged score; {nearest(metric, PACKAGED)}")
    run, image_sets = open_run(path)
    _refuse_undrawn(run, image_sets)
    missing = {metric: "; ".join(PACKAGED[metric].missing()) for metric in metrics or PACKAGED}
    if all(missing.values()):
        raise UserError(f"no weights for {', '.join(missing)}: {'; '.join(dict.fromkeys(missing.values()))}")
    found = []
    with run.lock(FOLDER):
        for metric, why in missing.items():
            try:
                if why:
                    raise UserError(why)
                _score(run, image_sets, metric, command)
            except UserError as error:
                failed = not why
                found += [_without(image_set.name, metric, str(error), failed) for image_set in image_sets]
                continue
            found += [_compare(run, image_set, metric) for image_set in image_sets]
    return found


def show(found: Sequence[Comparison]) -> None:
    """Show comparisons as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("image set", "metric", "pictures", "package", "native", "largest difference", "status"):
        table.add_column(column, overflow="fold")
    for one in found:
        values = ["-" if value is None else f"{value:.5f}" for value in (one.official, one.native)]
        gap = "-" if one.largest_difference is None else f"{one.largest_difference:.2g}"
        table.add_row(one.image_set, one.metric, str(one.n_images or "-"), *values, gap, one.reason or "ok")
    print_table(table)


def main(arguments: Arguments) -> int:
    """Run the command; return its exit code."""
    if arguments.weights:
        use_folder(arguments.weights)
    found = run_official(arguments.run, arguments.metrics)
    show(found)
    if failed := sorted({one.metric for one in found if one.failed}):
        raise UserError(f"{', '.join(failed)}: failed as shown; what is scored is kept, the same command continues")
    return 0


def _refuse_undrawn(run: Run, image_sets: Sequence[ImageSet]) -> None:
    for image_set in image_sets:
        if undrawn := sum(run.drawn(image_set, block) is None for block in range(run.count_blocks(image_set))):
            raise UserError(f"{run.path / image_set.name}: {undrawn} blocks are not drawn; finish --stage generate")


def _without(image_set: str, metric: str, reason: str, failed: bool) -> Comparison:
    return Comparison(image_set=image_set, metric=metric, reason=reason, failed=failed)


def _score(run: Run, image_sets: Sequence[ImageSet], metric: str, command: Sequence[str]) -> None:
    """Bring one packaged score's evidence for all image sets. Raises UserError where a picture gets no number."""
    lacking = [image_set for image_set in image_sets if not run.evidence(image_set.name, metric).exists()]
    if not lacking:
        return
    request = run.path / FOLDER / f"{metric}.request.json"
    pictures = [picture for image_set in lacking for picture in _pictures(run, image_set)]
    content = {"metrics": {metric: PACKAGED[metric].request()}, "pictures": pictures}
    write_whole(request, json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
    _start([*command, str(request.resolve()), metric], metric)
    header, rows = _read(request.parent / f"{metric}.jsonl")
    identity = _identity(metric) | {
        # hpsv2 asks for half precision, which takes effect on a GPU alone.
        "precision": "float16" if header["device"] == "cuda" and PACKAGED[metric].package == "hpsv2" else "float32",
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(header["versions"].items())),
    }
    for image_set in lacking:
        scores = torch.tensor(list(_scores(run, image_set, metric, rows)), dtype=torch.float32)
        write_rows(run.evidence(image_set.name, metric), image_set.items, {"score": scores}, identity)


def _pictures(run: Run, image_set: ImageSet) -> Iterator[dict[str, Any]]:
    for item in image_set.items:
        path = str(run.image(image_set.name, item).resolve())
        key = {"set": image_set.name, "prompt_id": item.prompt.id, "seed": item.seed}
        yield {**key, "prompt": item.prompt.text, "path": path}


def _start(command: Sequence[str], metric: str) -> None:
    """Run a command in the repository's root, its words shown. Raises UserError where it fails."""
    if command[: len(TOX)] == list(TOX) and importlib.util.find_spec("tox") is None:
        raise UserError("tox is not installed here; run: tox -e official -- RUN")
    # Within tox, its own variables would turn the inner tox into the outer one; the place of environments is shared.
    outer = {name for name in os.environ if name.startswith("TOX_") or name == "VIRTUAL_ENV"} - {"TOX_WORK_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{metric}: the package stopped with exit code {done.returncode}; its message stands above")


def _read(path: Path) -> tuple[Row, dict[Key, Row]]:
    """Return the header and the rows by picture that the other environment wrote. Raises UserError for damage."""
    try:
        header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        header["device"], header["versions"]
        return header, {(row["set"], row["prompt_id"], row["seed"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete it and start again") from error


def _scores(run: Run, image_set: ImageSet, metric: str, rows: Mapping[Key, Row]) -> Iterator[float]:
    """Yield the scores of an image set in order. Raises UserError naming the first picture without one."""
    for item in image_set.items:
        row = rows.get((image_set.name, item.prompt.id, item.seed), {"error": "no line came back"})
        score = row.get("score")
        if not isinstance(score, (int, float)) or score != score:
            why = row.get("error", f"its score is {score}")
            raise UserError(f"{metric}: the package fails on {run.image(image_set.name, item)}: {why}")
        yield float(score)


def _identity(metric: str) -> Identity:
    """Return what a row of evidence depends on, versions of packages aside."""
    return {"metric": metric, "version": "1", "weights_digest": PACKAGED[metric].digest()}


def _compare(run: Run, image_set: ImageSet, metric: str) -> Comparison:
    """Compare the evidence of a packaged score with that of its native metric, picture by picture."""
    native, path = PACKAGED[metric].native, run.evidence(image_set.name, metric)
    try:
        official_N = _column(read_rows(path, image_set.items, _identity(metric)))
    except UserError as error:
        return _without(image_set.name, metric, str(error), failed=True)
    found = Comparison(
        image_set=image_set.name, metric=metric, n_images=len(official_N), official=official_N.mean().item()
    )
    beside = run.evidence(image_set.name, native)
    if not beside.exists():
        return replace(found, reason=f"no {native} in this run to compare with")
    try:
        native_N = _column(read_rows(beside, image_set.items, identify(native, Scorer([native]))))
    except UserError as error:
        return replace(found, reason=f"{native}: {error}")
    difference = (official_N - native_N).abs().max().item()
    return replace(found, native=native_N.mean().item(), largest_difference=difference)


def _column(rows: Mapping[str, Any]) -> torch.Tensor:
    return rows["score"].double()


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(parse(Arguments, prog="python -m benchmarks.official", description=__doc__))))
