"""Self-check: published numbers, computed again as soon as the real weights are there.

    python -m metrics.selfcheck              every check whose weights are here; the others say what they wait for
    python -m metrics.selfcheck aesthetic    those of one metric

A metric's file adds its own beside its formula. Weights are named where the check needs less than the metric does:

    @selfcheck("aesthetic", "laion-aesthetic-v2")
    def head_on_unit_vectors() -> Iterator[Golden]:
        \"\"\"The head alone, on vectors anybody can make.\"\"\"
        yield near("e_0", found, 4.54505, tolerance=1e-5)

Checks of every metric: its files hold what the manifest declares; the production loader takes them (strictly: no key
missing, none left over) and scores a grey picture within the card's range; and, where it can be a reward, how far the
reward, which resizes floats, is from the score (`metrics.gap`), a measurement without a bound. The outcome is kept in
the user's cache under the weights' digest, and the metric's page shows it. Exit codes: 0 nothing is wrong, 1 a number
is, 2 weights are refused.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metrics.base import Prompt, UserError, available, make, nearest
from metrics.commands import deferred, guarded, parsed, print_table
from metrics.weights import Entry, ManifestWeights, WeightFile, Weights, manifest
from metrics.weights.files import read_json, user_cache, write_json

if TYPE_CHECKING:
    from rich.table import Table

PROMPT = Prompt(text="a photo of a cat", metadata={"class": 281})  # ImageNet's number, for what asks for a class
LOGIT_SCALES = (10.0, 110.0)  # of a trained CLIP: it starts at 14, and training as published stops it at 100


@dataclass(frozen=True)
class Golden:
    """One number, and where it should lie."""

    what: str
    found: float
    low: float
    high: float

    @property
    def right(self) -> bool:
        """Whether it lies there; never for NaN."""
        return self.low <= self.found <= self.high


def near(what: str, found: float, expected: float, tolerance: float) -> Golden:
    """Return a number that should be `expected`, give or take `tolerance`."""
    return Golden(what, found, expected - tolerance, expected + tolerance)


Function = Callable[[], Iterable[Golden]]


@dataclass(frozen=True)
class Check:
    """A registered check: what it computes, and the weights it waits for; () = those of the metric."""

    metric: str
    name: str
    source: str
    run: Function
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of one check. `reason`: why it did not run, or what was refused."""

    check: str
    source: str
    status: Literal["right", "wrong", "refused", "not run"]
    goldens: tuple[Golden, ...] = ()
    reason: str = ""


_CHECKS: dict[str, list[Check]] = {}


def selfcheck(metric: str, *weights: str) -> Callable[[Function], Function]:
    """Function decorator: register a check of a metric; the docstring's first line says what its numbers are."""

    def add(function: Function) -> Function:
        source = (function.__doc__ or "").strip().partition("\n")[0]
        check = Check(metric, function.__name__.replace("_", " "), source, function, weights)
        _CHECKS.setdefault(metric, []).append(check)
        return function

    return add


def weights_of_own_checks(metric: str) -> set[str]:
    """Return the ids of weights that a metric's own checks name; some are not the metric's, such as test pictures."""
    return {identity for check in _CHECKS.get(metric, ()) for identity in check.weights}


def check_metric(metric: str) -> list[Outcome]:
    """Run all checks of one metric whose weights are here, and keep the outcome for its page."""
    outcomes = [_outcome(check) for check in _checks(metric)]
    statuses = {outcome.status for outcome in outcomes}
    if statuses & {"right", "wrong"} and "refused" not in statuses:
        content = {"version": make(metric).card.version, "outcomes": [asdict(outcome) for outcome in outcomes]}
        write_json(_kept(metric), content)
    return outcomes


def kept_outcomes(metric: str) -> list[Outcome]:
    """Return what `check_metric` found with the weights that are here and this version; [] where it never ran."""
    try:
        path = _kept(metric)
    except UserError:  # refused weights have no outcome
        return []
    if not path.is_file():
        return []
    kept = read_json(path, "run: python -m metrics.selfcheck")
    if kept["version"] != make(metric).card.version:
        return []
    return [
        Outcome(**{**outcome, "goldens": tuple(Golden(**golden) for golden in outcome["goldens"])})
        for outcome in kept["outcomes"]
    ]


def _kept(metric: str) -> Path:
    """Return where the outcome with the weights that are here is kept. Raises UserError where they are refused."""
    digests = ["" if weights.missing() else weights.digest() for weights in _weights_of(metric)]
    name = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return user_cache("selfcheck") / f"{metric}.{name[:16]}.json"


def _checks(metric: str) -> Iterator[Check]:
    """Yield the checks of a metric: of its files, of its loader, then its own."""
    for weights in _weights_of(metric):
        if isinstance(weights, ManifestWeights):
            entry = weights.entry
            if any(file.tensors or file.dtype for file in entry.files):
                name = f"layout of {entry.id}"
                yield Check(metric, name, "metrics/weights.toml", _of(_layout, entry), (entry.id,))
    if _weights_of(metric):
        yield Check(metric, "loads strictly", "the card's range, on a grey picture", _of(_grey_picture, metric))
        card = make(metric).card
        if card.differentiable and card.image_free and card.min_images_per_prompt == 1:
            yield Check(metric, "as a reward", "measured on two pictures of 512 x 512", _of(_reward_gap, metric))
    yield from _CHECKS.get(metric, ())


def _of(function: Callable[[Any], Iterable[Golden]], argument: Any) -> Function:
    return lambda: function(argument)


def _outcome(check: Check) -> Outcome:
    needed: list[Weights] = [manifest(identity) for identity in check.weights] or _weights_of(check.metric)
    absent = [one.mend.removeprefix("run: ") for one in needed if _is_absent(one)]
    if absent:
        return Outcome(check.name, check.source, "not run", reason=f"weights missing ({'; '.join(absent)})")
    try:
        for weights in needed:
            weights.check()
        goldens = tuple(check.run())
    except UserError as error:
        return Outcome(check.name, check.source, "refused", reason=str(error))
    right = all(golden.right for golden in goldens)
    return Outcome(check.name, check.source, "right" if right else "wrong", goldens)


def _is_absent(weights: Weights) -> bool:
    """Return whether there is nothing of the weights; what is there and cannot be used is refused instead."""
    return isinstance(weights, ManifestWeights) and weights.absent()


def _layout(entry: Entry) -> Iterator[Golden]:
    """Yield what can be told of every file without a model: number of tensors, their format, the logits' scale."""
    for file in entry.files:
        if file.tensors or file.dtype:
            yield from _file_layout(file, ManifestWeights(entry))


def _file_layout(file: WeightFile, weights: Weights) -> Iterator[Golden]:
    tensors = weights.tensors(file.name)
    if file.tensors:
        yield near(f"{file.name}: tensors", len(tensors), file.tensors, tolerance=0)
    if file.dtype:
        others = [t for t in tensors.values() if t.is_floating_point() and str(t.dtype) != f"torch.{file.dtype}"]
        yield near(f"{file.name}: tensors that are not {file.dtype}", len(others), 0, tolerance=0)
    if "logit_scale" in tensors:
        scale = tensors["logit_scale"].double().exp().item()
        published = near("exp(logit_scale)", scale, file.logit_scale, tolerance=0.1)
        yield published if file.logit_scale else Golden("exp(logit_scale)", scale, *LOGIT_SCALES)


def _grey_picture(metric: str) -> Iterator[Golden]:
    """Yield the score of one grey picture; the production loader takes every key or none."""
    from PIL import Image

    from metrics.loaded import LoadedMetric

    card = make(metric).card
    count = card.min_images_per_prompt
    picture = Image.new("RGB", (256, 256), (128, 128, 128))
    scores_N = LoadedMetric(metric)([picture] * count, [PROMPT] * count)
    yield Golden("a grey picture", float(scores_N[0]), *card.range)


def _reward_gap(metric: str) -> Iterator[Golden]:
    """Yield how far the reward of a smooth picture and of one of noise is from the score."""
    from metrics.gap import score_gap, seeded_pictures

    smooth, noise = score_gap(metric, list(seeded_pictures([(512, 512)]))).tolist()
    yield Golden("|reward - score|, a smooth picture", smooth, 0, float("inf"))
    yield Golden("|reward - score|, noise", noise, 0, float("inf"))


def _weights_of(metric: str) -> list[Any]:
    from metrics.loaded import Scorer

    return Scorer([metric]).weights(metric)


def outcome_table(found: Sequence[tuple[str, Outcome]]) -> "Table":
    """Return a table of (metric, outcome), a line for every number."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("metric", "check", "number", "found", "should be", "outcome"):
        table.add_column(column, overflow="fold")
    for metric, outcome in found:
        if not outcome.goldens:
            table.add_row(metric, outcome.check, "", "", "", f"{outcome.status}: {outcome.reason}")
        for golden in outcome.goldens:
            verdict = "right" if golden.right else "WRONG"
            table.add_row(metric, outcome.check, golden.what, f"{golden.found:.6g}", interval(golden), verdict)
    return table


def interval(golden: Golden) -> str:
    """Return where a number should lie, as people read it."""
    middle, half = (golden.low + golden.high) / 2, (golden.high - golden.low) / 2
    if half == 0:
        return f"{middle:.6g}"
    if golden.high == float("inf") and golden.low == 0:
        return "measured"
    return f"{middle:.6g} ± {half:.1g}" if half < abs(middle) / 10 else f"{golden.low:.6g} to {golden.high:.6g}"


def run(metrics: Sequence[str] = ()) -> int:
    """Check some metrics (default: all that have weights), print the outcome, return the exit code."""
    known = available()
    for metric in metrics:
        if metric not in known:
            raise UserError(f"unknown metric {metric!r}; {nearest(metric, known)}")
    found = [(metric, outcome) for metric in metrics or known for outcome in check_metric(metric)]
    print_table(outcome_table(found))
    statuses = [outcome.status for _, outcome in found]
    counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in ("right", "wrong", "refused", "not run"))
    print(f"{len(found)} checks: {counts}")
    return 1 if "wrong" in statuses else 2 if "refused" in statuses else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from typing import Annotated

    import tyro

    @deferred
    def command(metrics: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> int:
        return run(metrics)

    cli = partial(tyro.cli, command)
    return guarded(lambda: parsed(cli, arguments, prog="python -m metrics.selfcheck", description=__doc__))


if __name__ == "__main__":
    from metrics import selfcheck as module  # the module that metrics register with, which is not this one

    sys.exit(module.main())
