"""The micro world's prompts: six GenEval-like categories, held-out combinations, and the prompt sets made of them.

Records have GenEval's form: tag, prompt, include clauses (class, count, colour, position) and, for counting, an
exclude clause. A *combination* is what a prompt says whatever its phrasing; some combinations of two objects, of
positions and of attributes never occur in training ("unseen"), with all that says the same in another order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics.micro.world import COLOURS, DIRECTIONS, SHAPES, Request

TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a painting of {}",
    "a sketch of {}",
    "a poster of {}",
    "a print of {}",
    "a sticker of {}",
    "a card with {}",
    "here is {}",
    "{}",
)
NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HELD_OUT = {"two_object": 2, "position": 7, "color_attr": 50}  # classes of equivalent combinations
TEST_SIZES = {
    "single_object": (22, 0),  # prompts of (seen, unseen) combinations in the test suite
    "two_object": (54, 30),
    "counting": (60, 0),
    "colors": (96, 0),
    "position": (80, 46),
    "color_attr": (80, 54),
}
DEV_SIZES = {
    "single_object": (8, 0),
    "two_object": (16, 6),
    "counting": (20, 0),
    "colors": (22, 0),
    "position": (16, 6),
    "color_attr": (16, 6),
}
SPLIT_SEED = 20261121


@dataclass(frozen=True)
class Combination:
    """What a prompt asks for: its tag, objects as (shape, colour or ""), and the relation of object 1 to object 0."""

    tag: str
    things: tuple[tuple[str, str], ...]
    relation: str = ""

    @property
    def words(self) -> str:
        """The phrase, without a template; a position names the subject (object 1) first."""
        first = self.things[0]
        if self.tag == "counting":
            return f"{NUMBERS[len(self.things)]} {plural(first[0])}"
        if self.tag == "position":
            return f"{noun(*self.things[1])} {self.relation} {noun(*first)}"
        return " and ".join(noun(*thing) for thing in self.things)

    @property
    def meaning(self) -> tuple[str, object]:
        """Equal for combinations that ask for the same pictures."""
        if self.tag == "position":
            mirrored = Combination(self.tag, self.things[::-1], OPPOSITE[self.relation])
            return self.tag, min((self.things, self.relation), (mirrored.things, mirrored.relation))
        return self.tag, tuple(sorted(self.things))

    @property
    def request(self) -> Request:
        """What the renderer needs."""
        return Request(self.things, self.relation)

    @property
    def phrasings(self) -> list[str]:
        """Every prompt that asks for this combination."""
        return [template.format(self.words) for template in TEMPLATES]

    def record(self, template: str) -> dict[str, Any]:
        """Return the prompt's record in GenEval's form."""
        clauses: list[dict[str, Any]] = []
        if self.tag == "counting":
            shape, count = self.things[0][0], len(self.things)
            clauses.append({"class": shape, "count": count})
            return {
                "tag": self.tag,
                "prompt": template.format(self.words),
                "include": clauses,
                "exclude": [{"class": shape, "count": count + 1}],
            }
        for shape, colour in self.things:
            clauses.append({"class": shape, "count": 1} | ({"color": colour} if colour else {}))
        if self.relation:
            clauses[1]["position"] = [self.relation, 0]
        return {"tag": self.tag, "prompt": template.format(self.words), "include": clauses}


def noun(shape: str, colour: str) -> str:
    """Return "a circle", "a red circle" or "an orange circle"."""
    words = f"{colour} {shape}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """Return "circles", "crosses"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def combinations() -> Iterator[Combination]:
    """Yield all 750 combinations, in a fixed order."""
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b]
    for shape in SHAPES:
        yield Combination("single_object", ((shape, ""),))
    for a, b in pairs:
        yield Combination("two_object", ((a, ""), (b, "")))
    for shape in SHAPES:
        for count in NUMBERS:
            yield Combination("counting", ((shape, ""),) * count)
    for shape in SHAPES:
        for colour in COLOURS:
            yield Combination("colors", ((shape, colour),))
    for a, b in pairs:
        for relation in DIRECTIONS:
            yield Combination("position", ((a, ""), (b, "")), relation)
    for a, b in pairs:
        for first in COLOURS:
            for second in COLOURS:
                if first != second:
                    yield Combination("color_attr", ((a, first), (b, second)))


def held_out_meanings() -> set[tuple[str, object]]:
    """Return the meanings that training never sees, drawn once from `SPLIT_SEED`."""
    rng = np.random.default_rng(SPLIT_SEED)
    held_out: set[tuple[str, object]] = set()
    for tag, number in HELD_OUT.items():
        meanings = sorted({c.meaning for c in combinations() if c.tag == tag}, key=repr)
        held_out |= {meanings[index] for index in rng.permutation(len(meanings))[:number]}
    return held_out


def seen_combinations() -> list[Combination]:
    """Return the combinations that training may see, in a fixed order."""
    held_out = held_out_meanings()
    return [combination for combination in combinations() if combination.meaning not in held_out]


def prompt_sets() -> dict[str, list[dict[str, Any]]]:
    """Return the records of the sets "test", "dev" and "train": disjoint prompts, each with id and split.

    "train" holds the prompts of seen combinations that are in neither of the others."""
    held_out, rng = held_out_meanings(), np.random.default_rng(SPLIT_SEED + 1)
    sets: dict[str, list[dict[str, Any]]] = {"test": [], "dev": [], "train": []}
    everything = list(combinations())
    for tag in TAGS:
        for split, unseen in (("seen", False), ("unseen", True)):
            records = [
                combination.record(template) | {"split": split}
                for combination in everything
                if combination.tag == tag and (combination.meaning in held_out) == unseen
                for template in TEMPLATES
            ]
            records = [records[index] for index in rng.permutation(len(records))]
            n_test, n_dev = TEST_SIZES[tag][unseen], DEV_SIZES[tag][unseen]
            sets["test"] += records[:n_test]
            sets["dev"] += records[n_test : n_test + n_dev]
            if not unseen:
                sets["train"] += records[n_test + n_dev :]
    return {name: _numbered(records, "" if name == "test" else f"{name}-") for name, records in sets.items()}


def _numbered(records: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """Return the records with ids such as "position-017", counted within their category."""
    counts = dict.fromkeys(TAGS, 0)
    numbered = []
    for record in records:
        numbered.append({"id": f"{prefix}{record['tag']}-{counts[record['tag']]:03d}", **record})
        counts[record["tag"]] += 1
    return numbered


def training_prompts() -> list[dict[str, Any]]:
    """Return what trainers may use: seen combinations, phrased as in neither the test suite nor the dev set."""
    return prompt_sets()["train"]
