"""Labelled captions for pictures of shapes: what the judge says of a picture and many prompts.

For each picture: its own prompt, prompts that differ from it in one word, prompts made from what is in the picture,
those with one word changed, and random ones. So true and false captions differ by little and both are frequent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from benchmarks.micro.judge import is_right
from metrics.geneval.metric import detect_shapes
from metrics.geneval.verdict import Detections
from metrics.micro.prompts import NUMBERS, OPPOSITE, Combination
from metrics.micro.world import DIRECTIONS

PER_PICTURE = 24


@dataclass(frozen=True)
class LabelledPictures:
    """uint8 pictures [N, 64, 64, 3], and per picture the numbers and truth of `PER_PICTURE` combinations [N, P]."""

    pictures: np.ndarray
    captions: Tensor
    labels: Tensor


class Captioner:
    """Draws captions among `allowed` combinations and labels them by the judge."""

    def __init__(self, allowed: Sequence[Combination]) -> None:
        self.allowed = list(allowed)
        self.number = {combination: index for index, combination in enumerate(self.allowed)}
        self.neighbours = [self._neighbours(combination) for combination in self.allowed]
        self.records = [combination.record("{}") for combination in self.allowed]

    def label(self, pictures: np.ndarray, combinations: Sequence[Combination], seed: int) -> LabelledPictures:
        """Return the pictures, each drawn for one combination, with labelled captions."""
        rng = np.random.default_rng(seed)
        captions = np.zeros((len(pictures), PER_PICTURE), np.int64)
        labels = np.zeros((len(pictures), PER_PICTURE), bool)
        for index, (found, combination) in enumerate(zip(detect_shapes(list(pictures)), combinations, strict=True)):
            captions[index] = self._captions(found, combination, rng)
            labels[index] = [is_right(found, self.records[number]) for number in captions[index]]
        return LabelledPictures(pictures, torch.from_numpy(captions), torch.from_numpy(labels))

    def _captions(self, found: Detections, combination: Combination, rng: np.random.Generator) -> list[int]:
        own = self.number[combination]
        described = [self.number[c] for c in describe(found) if c in self.number]
        chosen = [own, *_some(self.neighbours[own], 8, rng), *_some(described, 6, rng)]
        for number in _some(described, 2, rng):
            chosen += _some(self.neighbours[number], 3, rng)
        missing = max(0, PER_PICTURE - len(chosen))
        return [*chosen, *rng.integers(len(self.allowed), size=missing).tolist()][:PER_PICTURE]

    def _neighbours(self, combination: Combination) -> list[int]:
        """Return the allowed combinations of the same category that differ in one word, or only in the order."""
        mine, swapped = signature(combination), signature(_swapped(combination))
        found = []
        for index, other in enumerate(self.allowed):
            if other.tag == combination.tag and other != combination:
                theirs = signature(other)
                if sum(a != b for a, b in zip(mine, theirs, strict=True)) == 1 or theirs == swapped:
                    found.append(index)
        return found


def signature(combination: Combination) -> tuple[str | int, ...]:
    """Return what varies within a category, one entry per word."""
    if combination.tag == "counting":
        return combination.things[0][0], len(combination.things)
    return *(word for thing in combination.things for word in thing), combination.relation


def describe(found: Detections) -> list[Combination]:
    """Return combinations that the most certain object of each shape suggests; the judge has the last word."""
    first = {shape: objects[0] for shape, objects in found.items()}
    named = [(shape, str(detected.handle)) for shape, detected in first.items()]
    combinations = [Combination("single_object", ((shape, ""),)) for shape in first]
    combinations += [Combination("colors", (thing,)) for thing in named]
    for shape, objects in found.items():
        if len(objects) in NUMBERS:
            combinations.append(Combination("counting", ((shape, ""),) * len(objects)))
    for a, b in permutations(named, 2):
        combinations.append(Combination("two_object", ((a[0], ""), (b[0], ""))))
        combinations.append(Combination("color_attr", (a, b)))
        combinations += [Combination("position", ((a[0], ""), (b[0], "")), relation) for relation in DIRECTIONS]
    return combinations


def _swapped(combination: Combination) -> Combination:
    """Return the two objects' colours exchanged, or the relation turned round."""
    if combination.tag == "color_attr":
        (a, first), (b, second) = combination.things
        return Combination(combination.tag, ((a, second), (b, first)))
    relation = OPPOSITE.get(combination.relation, "")
    return Combination(combination.tag, combination.things, relation)


def _some(numbers: Sequence[int], at_most: int, rng: np.random.Generator) -> list[int]:
    """Return up to `at_most` of the numbers, drawn without replacement."""
    return [numbers[index] for index in rng.permutation(len(numbers))[:at_most]]
