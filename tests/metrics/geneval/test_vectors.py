"""The official program's recorded verdicts, and an oracle written straight from the rules, against the engine."""

import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.geneval.classes import CLASSES
from metrics.geneval.detector import REAL
from metrics.geneval.verdict import GENEVAL_COLOURS, RELATIONS, Detected, judge, judge_flow_grpo, relative_position

GOLDEN = Path(__file__).parents[2] / "golden/composition"
RECORDS = Path(__file__).parents[3] / "benchmarks/prompt_sets/geneval.jsonl"
f32 = np.float32


def named(_: str, handles: list[Any]) -> list[str]:
    return handles


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


def unordered(reason: str) -> list[tuple[str, frozenset[str]]]:
    """Reasons with the relations found as a set: the official program lists them in arbitrary order."""
    parts = [line.removesuffix(" target").partition(" target, found ") for line in reason.split("\n")]
    return [(head, frozenset(found.split(" and "))) for head, _, found in parts]


def test_every_recorded_verdict_of_the_official_program_is_met() -> None:
    of_prompt = records()
    with gzip.open(GOLDEN / "verdict_vectors_2212.jsonl.gz", "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 2212
    for case in cases:
        found: dict[str, list[Detected]] = {}
        for index, x1, y1, x2, y2, score, colour in case["detections"]:
            found.setdefault(CLASSES[index], []).append(Detected((x1, y1, x2, y2), score, colour))
        record = of_prompt[case["meta_index"]]
        official = judge(found, record, named, REAL)
        assert (official.correct, official.kept) == (case["correct"], case["kept"])
        assert unordered(official.reason) == unordered(case["reason"])
        variant = judge_flow_grpo(found, record, named, REAL)
        assert (variant.strict_correct, variant.soft) == (
            case["strict_correct"],
            pytest.approx(case["soft"], abs=1e-12),
        )


# The oracle: numpy arrays [n, 5] per class and one long function, as the rules are written, not as the engine is.


def oracle_kept(boxes_n5: np.ndarray, counting: bool) -> list[int]:
    order = sorted(range(len(boxes_n5)), key=lambda i: (-boxes_n5[i, 4], -i))
    return [i for i in order if boxes_n5[i, 4] > f32(0.9 if counting else 0.3)][:16]


def oracle_relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    centre_a, centre_b = (a[:2] + a[2:4]) / f32(2), (b[:2] + b[2:4]) / f32(2)
    offset = centre_a - centre_b
    size = np.abs(a[2:4] - a[:2]) + np.abs(b[2:4] - b[:2])
    rest = [max(abs(o) - f32(0.1) * s, f32(0)) * np.sign(o) for o, s in zip(offset, size, strict=True)]
    if abs(rest[0]) < 1e-3 and abs(rest[1]) < 1e-3:
        return set()
    norm = np.linalg.norm(offset)
    dx, dy = rest[0] / norm, rest[1] / norm
    found = {"left of"} if dx < -0.5 else {"right of"} if dx > 0.5 else set()
    return found | ({"above"} if dy < -0.5 else {"below"} if dy > 0.5 else set())


def oracle(tables: dict[str, np.ndarray], colours: dict[str, list[str]], record: dict[str, Any]) -> dict[str, Any]:
    counting = record["tag"] == "counting"
    kept = {name: oracle_kept(table, counting) for name, table in tables.items()}
    correct, groups, strict, credits, strict_groups = True, [], True, [], []
    for clause in record["include"]:
        name, count = clause["class"], clause["count"]
        all_of, colour_of = kept.get(name, []), colours.get(name, [])
        first = all_of[:count]
        matched = len(first) == count
        if matched and "color" in clause:
            matched = Counter(colour_of[i] for i in first)[clause["color"]] >= count
        if matched and "position" in clause:
            relation, target = clause["position"]
            matched = groups[target] is not None and all(
                relation in oracle_relations(tables[name][i], other) for i in first for other in groups[target]
            )
        groups.append([tables[name][i] for i in first] if matched else None)
        correct = correct and matched
        credits.append(1 - abs(count - len(all_of)) / count)
        exact = len(all_of) == count
        if not exact and ("color" in clause or "position" in clause):
            credits.append(0)
        if exact and "color" in clause:
            right = [colour_of[i] for i in all_of].count(clause["color"])
            credits.append(1 - abs(count - right) / count)
            exact = right == count
        if exact and "position" in clause:
            relation, target = clause["position"]
            if strict_groups[target] is None:
                credits.append(0)
                exact = False
            else:
                exact = all(
                    relation in oracle_relations(tables[name][i], other)
                    for i in all_of
                    for other in strict_groups[target]
                )
                credits += [1] if exact else [0, 1]
        strict_groups.append([tables[name][i] for i in all_of] if exact else None)
        strict = strict and exact
    for clause in record.get("exclude", []):
        correct = correct and len(kept.get(clause["class"], [])) < clause["count"]
    return {"correct": correct, "strict": strict, "soft": sum(credits) / len(credits)}


def random_case(rng: random.Random, record: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Detections on coarse grids, so that ties of scores, thresholds and positions happen all the time."""
    edges = [0.3, 0.9, float(np.nextafter(f32(0.3), f32(1))), float(np.nextafter(f32(0.9), f32(0))), 0.31, 0.5, 0.95]
    tables, colours = {}, {}
    wanted = [clause["class"] for clause in record["include"]]
    for name in {*wanted, rng.choice(CLASSES)}:
        number = rng.choice([0, 1, 1, 1, 2, 2, 3, 4, 5, 17, 20])
        step = rng.choice([1, 10, 50])
        corners = [[rng.randrange(0, 10) * step for _ in range(2)] for _ in range(number)]
        sizes = [[rng.randrange(1, 5) * step for _ in range(2)] for _ in range(number)]
        rows = [
            [x, y, x + w, y + h, rng.choice([*edges, rng.random()])]
            for (x, y), (w, h) in zip(corners, sizes, strict=True)
        ]
        tables[name] = np.array(rows, dtype=f32).reshape(-1, 5)
        asked = [clause["color"] for clause in record["include"] if clause["class"] == name and "color" in clause]
        colours[name] = [rng.choice([*asked, *asked, rng.choice(GENEVAL_COLOURS)]) for _ in range(number)]
    return tables, colours


def test_ten_thousand_random_cases_meet_the_oracle() -> None:
    rng, of_prompt = random.Random(0), records()
    seen: Counter[tuple[str, bool]] = Counter()
    for index in range(10_000):
        record = of_prompt[index * 7 % len(of_prompt)]
        tables, colours = random_case(rng, record)
        expected = oracle(tables, colours, record)
        found = {
            name: [
                Detected(tuple(map(float, row[:4])), float(row[4]), colour)
                for row, colour in zip(table, colours[name], strict=True)
            ]
            for name, table in tables.items()
        }
        variant = judge_flow_grpo(found, record, named, REAL)
        assert judge(found, record, named, REAL).correct == expected["correct"], (record, found)
        assert (variant.strict_correct, variant.soft) == (expected["strict"], pytest.approx(expected["soft"]))
        seen[record["tag"], expected["correct"]] += 1
    # every category is right and wrong often enough for the comparison to mean something
    assert len(seen) == 12
    assert min(seen.values()) > 20


def test_relations_agree_with_float32_arithmetic_at_the_borders() -> None:
    rng = random.Random(1)
    for _ in range(5_000):
        scale = rng.choice([1, 10, 100, 512])
        boxes = []
        for _ in range(2):
            x, y = (rng.randrange(0, 12) * scale / 4 for _ in range(2))
            boxes.append((x, y, x + rng.randrange(1, 9) * scale / 4, y + rng.randrange(1, 9) * scale / 4))
        as_arrays = [np.array(box, dtype=f32) for box in boxes]
        assert relative_position(*boxes) == oracle_relations(*as_arrays), boxes


def test_the_palette_and_relations_are_the_program_s() -> None:
    used = {clause["color"] for record in records() for clause in record["include"] if "color" in clause}
    assert used <= set(GENEVAL_COLOURS)
    assert {c["position"][0] for record in records() for c in record["include"] if "position" in c} == set(RELATIONS)
    assert {c["class"] for record in records() for c in record["include"]} == set(CLASSES)
    assert math.isclose(REAL.threshold, 0.3)
