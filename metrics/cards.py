"""Cards as pages: all that a reader must know before quoting a metric's number, in Markdown.

python -m metrics card clip_score
"""

from collections.abc import Iterator, Sequence

from metrics.base import Card, make
from metrics.loaded import Scorer
from metrics.selfcheck import interval, kept_outcomes
from metrics.weights import ManifestWeights, Weights

AGGREGATES = {
    "prompts": "mean over the images of a prompt, then over prompts",
    "categories": "unweighted mean over the prompts' categories",
    "set": "one statistic of the whole set of images",
}
SAME = "Compare numbers of the same id, version, weights and precision only, on the same prompts."


def page(identity: str) -> str:
    """Return a metric's page. Raises UserError where the id is unknown, naming the nearest one."""
    card = make(identity).card
    scorer = Scorer([identity])
    sections = [
        f"# {card.title} (`{card.id}`)",
        card.description,
        _facts(card, scorer.precision(identity)),
        _section("When two numbers may be compared", f"{SAME} {card.comparable}"),
        _section("What fools it", card.fooled_by),
        _section("Preprocessing", "\n\n".join(filter(None, (card.preprocessing, card.tensor_gap)))),
        _section("Long prompts", card.long_prompts),
        _section("What papers print", card.reported_scale),
        _section("Weights", "\n".join(_weights(scorer.weights(identity)))),
        _section("Self-check", "\n".join(_selfcheck(identity)) if scorer.weights(identity) else ""),
        _section("Source", "\n\n".join(filter(None, (card.source, card.citation)))),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text.strip()}" if text.strip() else ""


def _facts(card: Card, precision: str) -> str:
    better = "higher" if card.higher_is_better else "lower"
    low, high = card.range
    rows = {
        "version, variant": f"{card.version}, {card.variant}",
        "unit": f"{card.unit}; {better} is better; one image: {low:g} to {high:g}",
        "value": AGGREGATES[card.aggregate],
        "perceiver": card.perceiver,
        "images per prompt": f"at least {card.min_images_per_prompt}" if card.min_images_per_prompt > 1 else "",
        "as a reward": _as_reward(card),
        "precision": precision,
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items() if text)])


def _as_reward(card: Card) -> str:
    gradient = "differentiable" if card.differentiable else "without gradient"
    divisor = f"; papers divide it by {card.reward_divisor:g}" if card.reward_divisor != 1 else ""
    return gradient + divisor + ("" if card.image_free else "; needs real pictures")


def _weights(several: Sequence[Weights]) -> Iterator[str]:
    """Yield the lines of the weights' table."""
    if not several:
        yield "Nothing is learned."
        return
    yield "| weights | file | size | sha256 | licence |"
    yield "| --- | --- | --- | --- | --- |"
    for weights in several:
        if not isinstance(weights, ManifestWeights):
            state = weights.missing() or f"over all files: `{weights.digest()}`"
            yield f"| made by this project | | | {state} | Apache-2.0 |"
            continue
        entry = weights.entry
        for file in entry.files:
            digest = f"`{file.sha256}`" if file.pinned else "not known yet: results are `synthetic`"
            yield f"| [{entry.title}]({entry.page}) | `{file.name}` | {file.size} | {digest} | {entry.licence} |"
    commands = [weights.mend.removeprefix("run: ") for weights in several if isinstance(weights, ManifestWeights)]
    if commands:
        yield ""
        yield "Fetch them: " + ", ".join(f"`{command}`" for command in commands)


def _selfcheck(identity: str) -> Iterator[str]:
    """Yield the lines of the kept outcome, or how to come by one."""
    outcomes = kept_outcomes(identity)
    if not outcomes:
        yield f"Not run with the weights of this machine: `python -m metrics.selfcheck {identity}`"
        return
    yield "| check | number | found | should be | outcome |"
    yield "| --- | --- | --- | --- | --- |"
    for outcome in outcomes:
        if not outcome.goldens:
            yield f"| {outcome.check} | | | | {outcome.status}: {outcome.reason} |"
        for golden in outcome.goldens:
            verdict = "right" if golden.right else "**wrong**"
            cells = (outcome.check, golden.what, f"{golden.found:.6g}", interval(golden), verdict)
            yield f"| {' | '.join(cells)} |"
