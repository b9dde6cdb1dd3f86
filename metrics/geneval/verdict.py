"""GenEval's verdict engine: from detections and a prompt's record to right or wrong, with reasons.

Follows the evaluation program of Ghosh et al. 2023 ("GenEval: An Object-Focused Framework for Evaluating
Text-to-Image Alignment"), quirks included: comparisons are strict and made in float32, extra objects are free except
in counting, colour and position look at the most confident objects only. `judge_flow_grpo` is the variant that
Flow-GRPO (Liu et al. 2025) and RTDMD use as a reward.

A record: tag, prompt, include [{class, count, color?, position? = [relation, index of the target clause]}], exclude?.
Pure functions; whatever perceives (detector, colour classifier) is the caller's. They decide in float32 as upstream
does, but compute in Python's floats wherever no rounding can change the answer: that is ten times as fast.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from metrics.base import UserError, nearest

Box = tuple[float, float, float, float]
RELATIONS = ("left of", "right of", "above", "below")
GENEVAL_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Detected:
    """One object as a detector reports it. box: x1, y1, x2, y2 in pixels, right and bottom exclusive.

    `handle` is whatever the colour oracle needs to look at this object; the engine never reads it.
    """

    box: Box
    score: float
    handle: Any = None


Detections = Mapping[str, Sequence[Detected]]  # by class, in the detector's order
ColourOracle = Callable[[str, list[Any]], list[str]]  # (class, handles) -> a colour name each


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The evaluation program's defaults. max_overlap = 1: no suppression of overlapping boxes."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1
    colours: tuple[str, ...] = GENEVAL_COLOURS  # the order in which reasons list them
    classes: frozenset[str] = frozenset()  # what the detector can find; empty = whatever a record names


GENEVAL = Constants()


@dataclass(frozen=True)
class Verdict:
    """correct: the official verdict; reason: one line per failure; kept: class -> number of objects kept."""

    correct: bool
    reason: str
    kept: dict[str, int]


@dataclass(frozen=True)
class FlowGrpoVerdict:
    """strict_correct: every clause holds exactly; soft: mean of partial credits, at most 1 and unbounded below."""

    strict_correct: bool
    soft: float


def judge(
    detections: Detections, record: Mapping[str, Any], colours: ColourOracle, constants: Constants = GENEVAL
) -> Verdict:
    """Return the official verdict. Raises UserError where the record is malformed (`check_record`)."""
    check_record(record, constants)
    kept = keep(detections, record["tag"], constants)
    reasons: list[str] = []
    groups: list[list[Detected] | None] = []
    for clause in record["include"]:
        found = kept.get(clause["class"], [])[: clause["count"]]
        reason = _clause_failure(clause, found, groups, colours, constants)
        groups.append(None if reason else found)
        reasons += [reason] if reason else []
    for clause in record.get("exclude", ()):
        number = len(kept.get(clause["class"], ()))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return Verdict(not reasons, "\n".join(reasons), {name: len(objects) for name, objects in kept.items()})


def judge_flow_grpo(
    detections: Detections, record: Mapping[str, Any], colours: ColourOracle, constants: Constants = GENEVAL
) -> FlowGrpoVerdict:
    """Return the verdict of Flow-GRPO's reward: all kept objects count, exclude clauses do not.

    A wrong position adds a credit of 0 and then, as upstream does, one of 1. Raises UserError for a malformed record.
    """
    check_record(record, constants)
    kept = keep(detections, record["tag"], constants)
    strict, credits = True, []
    groups: list[list[Detected] | None] = []
    for clause in record["include"]:
        found, count = kept.get(clause["class"], []), clause["count"]
        credits.append(1 - abs(count - len(found)) / count)
        matched = len(found) == count
        if not matched and ("color" in clause or "position" in clause):
            credits.append(0.0)
        if matched and "color" in clause:
            number = _colours_of(clause, found, colours).count(clause["color"])
            credits.append(1 - abs(count - number) / count)
            matched = number == count
        if matched and "position" in clause:
            relation, target = clause["position"]
            targets = groups[target]
            if targets is None:
                credits.append(0.0)
                matched = False
            else:
                matched = _wrong_relations(found, targets, relation, constants) is None
                credits += [1.0] if matched else [0.0, 1.0]
        strict &= matched
        groups.append(found if matched else None)
    return FlowGrpoVerdict(strict, sum(credits) / len(credits))


def check_record(record: Mapping[str, Any], constants: Constants = GENEVAL) -> None:
    """Raise UserError where a record cannot be judged: no clause, a count below 1, an unknown class or colour, a
    wrong relation or target."""
    for side in ("include", "exclude"):
        clauses = record.get(side, ())
        if not isinstance(clauses, (list, tuple)):
            raise UserError(f"{_where(record)}: {side} must be a list of clauses, found {clauses!r}")
        if side == "include" and not clauses:
            raise UserError(f"{_where(record)}: no include clause; a GenEval record names at least one object")
        for index, clause in enumerate(clauses):
            if problem := _clause_problem(side, index, clause, constants):
                raise UserError(f"{_where(record)}: {problem}")


def _where(record: Mapping[str, Any]) -> str:
    return f"prompt {record.get('prompt', '')!r}"


def _clause_problem(side: str, index: int, clause: Any, constants: Constants) -> str:
    """Return what is wrong with one clause, "" where nothing is."""
    if not isinstance(clause, dict) or "class" not in clause or "count" not in clause:
        return f"{side} clause {index} must be an object with 'class' and 'count'"
    name, count = clause["class"], clause["count"]
    if not isinstance(name, str):
        return f"{side} class {name!r} must be text"
    if constants.classes and name not in constants.classes:
        return f"the detector knows no class {name!r}; {nearest(str(name), constants.classes)}"
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return f"{side} count {count} of {name!r} must be at least 1"
    if "color" in clause and clause["color"] not in constants.colours:
        return f"colour {clause['color']!r} is none of {', '.join(constants.colours)}"
    if "position" in clause:
        match clause["position"]:
            case [relation, int(target)]:
                if relation not in RELATIONS:
                    return f"relation {relation!r} is none of {', '.join(RELATIONS)}"
                if not 0 <= target < index:
                    return f"position target {target} must be an earlier clause than {index}"
            case other:
                return f"position {other!r} must be [relation, index of an earlier clause]"
    return ""


def keep(detections: Detections, tag: str, constants: Constants = GENEVAL) -> dict[str, list[Detected]]:
    """Return the objects that count, by class, most confident first; classes without any are left out."""
    cut = _largest_not_above(constants.counting_threshold if tag == "counting" else constants.threshold)
    kept = {}
    for name, objects in detections.items():
        chosen = [detected for detected in objects if detected.score > cut]
        if not chosen:
            continue
        if len(chosen) > 1:
            # Upstream reverses an ascending argsort: of equal scores, the later comes first.
            chosen.reverse()
            chosen.sort(key=_float32_score, reverse=True)
            chosen = chosen[: constants.max_objects]
            if constants.max_overlap != 1:
                chosen = _without_overlaps(chosen, constants.max_overlap)
        kept[name] = chosen
    return kept


@cache
def _largest_not_above(threshold: float) -> float:
    """Return the largest float that, rounded to float32, is not above float32(threshold)."""
    single = np.float32(threshold)
    middle = (float(single) + float(np.nextafter(single, np.float32(np.inf)))) / 2
    return middle if np.float32(middle) == single else math.nextafter(middle, -math.inf)


_SINGLE = struct.Struct("f")


def _float32_score(detected: Detected) -> float:
    return _SINGLE.unpack(_SINGLE.pack(detected.score))[0]


def relative_position(subject: Box, target: Box, position_threshold: float = 0.1) -> set[str]:
    """Return the relations in which the subject's box stands to the target's: none, one or two.

    o = centre_A - centre_B;  r = max(|o| - threshold (size_A + size_B), 0) sign(o);  (dx, dy) = r / ||o||
    """
    ax1, ay1, ax2, ay2 = subject
    bx1, by1, bx2, by2 = target
    ox, oy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
    rx = abs(ox) - position_threshold * (abs(ax2 - ax1) + abs(bx2 - bx1))
    ry = abs(oy) - position_threshold * (abs(ay2 - ay1) + abs(by2 - by1))
    half = math.hypot(ox, oy) / 2
    # Far more than float32 can be off: nearer to a border than this, upstream's own arithmetic decides.
    slack = 1e-5 * max(abs(ax1), abs(ay1), abs(ax2), abs(ay2), abs(bx1), abs(by1), abs(bx2), abs(by2))
    if min(abs(rx - half), abs(ry - half), abs(rx - 1e-3), abs(ry - 1e-3)) <= slack:
        return _relative_position_float32(subject, target, position_threshold)
    found = set()
    if rx > half:
        found.add("left of" if ox < 0 else "right of")
    if ry > half:
        found.add("above" if oy < 0 else "below")
    return found


def _relative_position_float32(subject: Box, target: Box, position_threshold: float) -> set[str]:
    """Return the same by upstream's arithmetic: float32 at every step, numpy's norm."""
    boxes = np.array([subject, target], dtype=np.float32).reshape(2, 2, 2)
    centre_A, centre_B = boxes.mean(axis=1)
    size_A, size_B = np.abs(np.diff(boxes, axis=1))[:, 0]
    offset = centre_A - centre_B
    slack = np.float32(position_threshold) * (size_A + size_B)
    rest = np.maximum(np.abs(offset) - slack, np.float32(0)) * np.sign(offset)
    if np.all(np.abs(rest) < 1e-3):
        return set()
    dx, dy = rest / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}


def _clause_failure(
    clause: Mapping[str, Any],
    found: list[Detected],
    groups: Sequence[list[Detected] | None],
    colours: ColourOracle,
    constants: Constants,
) -> str:
    """Return why one include clause fails on its most confident objects, or ""."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in clause:
        seen = _colours_of(clause, found, colours)
        if seen.count(clause["color"]) < count:
            listed = ", ".join(f"{seen.count(c)} {c}" for c in constants.colours if c in seen)
            number = seen.count(clause["color"])
            return f"expected {clause['color']} {name}>={count}, found {number} {clause['color']}; and {listed}"
    if "position" in clause:
        relation, target = clause["position"]
        targets = groups[target]
        if targets is None:
            return f"no target for {name} to be {relation}"
        wrong = _wrong_relations(found, targets, relation, constants)
        if wrong is not None:
            return f"expected {name} {relation} target, found {' and '.join(sorted(wrong))} target"
    return ""


def _colours_of(clause: Mapping[str, Any], found: Sequence[Detected], colours: ColourOracle) -> list[str]:
    return list(colours(clause["class"], [detected.handle for detected in found]))


def _wrong_relations(
    found: Sequence[Detected], targets: Sequence[Detected], relation: str, constants: Constants
) -> set[str] | None:
    """Return the relations of the first pair that does not stand in `relation`, or None where all do."""
    for subject in found:
        for target in targets:
            relations = relative_position(subject.box, target.box, constants.position_threshold)
            if relation not in relations:
                return relations
    return None


def _without_overlaps(objects: Sequence[Detected], max_overlap: float) -> list[Detected]:
    """Return the objects that overlap no more confident one by an IoU of `max_overlap` or more."""
    chosen: list[Detected] = []
    for candidate in objects:
        if all(_iou(candidate.box, other.box) < max_overlap for other in chosen):
            chosen.append(candidate)
    return chosen


def _iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes, counting pixels inclusively, as upstream does."""
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = (np.float32(value) for value in (*a, *b))

    def area(x1: Any, y1: Any, x2: Any, y2: Any) -> float:
        return max(float(x2 - x1 + 1), 0.0) * max(float(y2 - y1 + 1), 0.0)

    common = area(max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2))
    union = area(ax1, ay1, ax2, ay2) + area(bx1, by1, bx2, by2) - common
    return common / union if union else 0.0
