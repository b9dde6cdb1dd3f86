from collections import Counter

from metrics.micro.prompts import (
    TAGS,
    Combination,
    combinations,
    held_out_meanings,
    prompt_sets,
    seen_combinations,
    training_prompts,
)


def test_the_test_suite_is_large_and_covers_every_category_and_split() -> None:
    suite = prompt_sets()["test"]
    assert len({record["prompt"] for record in suite}) == len({record["id"] for record in suite}) == len(suite) >= 500
    counts = Counter((record["tag"], record["split"]) for record in suite)
    assert {tag for tag, _ in counts} == set(TAGS)
    assert all(counts[tag, "unseen"] >= 25 for tag in ("two_object", "position", "color_attr"))


def test_no_prompt_is_in_two_sets_and_training_sees_no_held_out_combination() -> None:
    sets = prompt_sets()
    prompts = [record["prompt"] for records in sets.values() for record in records]
    assert len(prompts) == len(set(prompts))
    meaning = {text: c.meaning for c in combinations() for text in c.phrasings}
    held_out = held_out_meanings()
    for records in sets.values():
        for record in records:
            assert (meaning[record["prompt"]] in held_out) == (record["split"] == "unseen")
    assert all(record["split"] == "seen" for record in sets["train"])


def test_held_out_combinations_are_held_out_in_every_order() -> None:
    seen = set(seen_combinations())
    for combination in combinations():
        if combination.tag in ("two_object", "color_attr"):
            assert (combination in seen) == (Combination(combination.tag, combination.things[::-1]) in seen)
    shares = Counter(c.tag for c in combinations() if c not in seen)
    everything = Counter(c.tag for c in combinations())
    assert all(0.15 <= shares[tag] / everything[tag] <= 0.2 for tag in ("two_object", "position", "color_attr"))


def test_every_seen_combination_has_a_training_prompt() -> None:
    known = {record["prompt"] for record in training_prompts()}
    assert all(known.intersection(combination.phrasings) for combination in seen_combinations())


def test_records_have_the_form_of_geneval() -> None:
    counting = Combination("counting", (("cross", ""),) * 3).record("a photo of {}")
    assert counting == {
        "tag": "counting",
        "prompt": "a photo of three crosses",
        "include": [{"class": "cross", "count": 3}],
        "exclude": [{"class": "cross", "count": 4}],
    }
    position = Combination("position", (("ring", ""), ("circle", "")), "left of").record("{}")
    assert position["prompt"] == "a circle left of a ring"
    assert position["include"][1] == {"class": "circle", "count": 1, "position": ["left of", 0]}
    attribute = Combination("color_attr", (("ring", "orange"), ("cross", "red"))).record("{}")
    assert attribute["prompt"] == "an orange ring and a red cross"
    assert [clause["color"] for clause in attribute["include"]] == ["orange", "red"]
