"""What the README of the micro world claims, measured: detector, teacher, image-text models, sizes.

Nothing here was looked at while tuning: prompts come from the test suite, noise from a seed used nowhere else.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.micro.judge import accuracies, judge_all
from benchmarks.micro.pipeline import PROTOCOL, draw, load
from benchmarks.micro.renders import render_all
from metrics.micro.prompts import TAGS, combinations, prompt_sets

FRESH_SEED = 20_262
Verdicts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # of pictures: tag, unseen, correct, cosine
UNSEEN_TAGS = ("two_object", "position", "color_attr")  # with combinations that no training saw
SETTINGS = {
    "28 steps, guidance": (28, PROTOCOL.guidance_scale),
    "4 steps, guidance": (4, PROTOCOL.guidance_scale),
    "4 steps": (4, 1.0),
}


def check_detector(renders: int = 2000, seed: int = 77) -> dict[str, float]:
    """Return the share of right verdicts on renders: of their own prompt (right), and of a wrong one (wrong)."""
    rng, everything = np.random.default_rng(seed), list(combinations())
    chosen = [everything[index] for index in rng.integers(len(everything), size=renders)]
    pictures, _ = render_all(chosen, seed)
    own = judge_all(pictures, [combination.record("{}") for combination in chosen])
    wrong = []
    for combination in chosen:  # another combination of the category that this picture cannot show
        others = [c for c in everything if c.tag == combination.tag and excludes(combination, c)]
        wrong.append(others[rng.integers(len(others))].record("{}"))
    return {"own prompt": float(own.mean()), "wrong prompt": float((~judge_all(pictures, wrong)).mean())}


def excludes(drawn: Any, asked: Any) -> bool:
    """Return whether no render of the one combination can fulfil the other of the same category."""
    if drawn.tag == "position":
        return drawn.meaning != asked.meaning
    return not set(asked.things) <= set(drawn.things) or len(drawn.things) != len(asked.things)


def draw_test(
    folder: Path, records: Sequence[Mapping[str, Any]], images_per_prompt: int, work: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, per setting, the pictures of every prompt (prompt by prompt within a round) and their verdicts.

    Pictures are kept in `work`, under the digest of the transformer that drew them."""
    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    cache = work / f"check-{hashlib.sha256(weights).hexdigest()[:12]}-{images_per_prompt}.npz"
    if not cache.exists():
        pipeline, prompts = load(folder), [record["prompt"] for record in records]
        drawn = {
            name: np.concatenate(
                [draw(pipeline, prompts, FRESH_SEED + turn, *setting) for turn in range(images_per_prompt)]
            )
            for name, setting in SETTINGS.items()
        }
        work.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **drawn)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
    with np.load(cache) as saved:
        return {name: (saved[name], judge_all(saved[name], list(records) * images_per_prompt)) for name in SETTINGS}


def teacher_table(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of accuracies, with seen and unseen combinations apart."""
    lines = [f"| setting | overall | {' | '.join(TAGS)} | seen | unseen |", "| --- |" + " --- |" * (len(TAGS) + 3)]
    for name, (pictures, correct) in drawn.items():
        repeated = list(records) * (len(pictures) // len(records))
        shares = accuracies(correct, repeated)
        split = np.array([record["split"] for record in repeated])
        spread = np.isin([record["tag"] for record in repeated], UNSEEN_TAGS)
        seen, unseen = (correct[spread & (split == which)].mean() for which in ("seen", "unseen"))
        lines.append(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in (*shares.values(), seen, unseen)) + " |")
    return "\n".join(lines)


def auc_table(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of how well each image-text model tells right from wrong pictures, per category.

    No model was trained on these prompts. Where a category has combinations of things that no training saw either,
    a row apart counts only these. The pictures of the teacher's three settings are taken together and apart."""
    from metrics.base import Prompt
    from metrics.features import FeatureRunner
    from metrics.images import as_pils
    from metrics.micro import scores  # noqa: F401  (registers the encoders)

    models = ("micro/clip", "micro/clip_heldout")
    runner = FeatureRunner([f"{model}:{side}" for model in models for side in ("image", "text")])
    unseen = np.array([record["split"] == "unseen" or record["tag"] not in UNSEEN_TAGS for record in records])
    tags = np.array([record["tag"] for record in records])
    columns: dict[str, list[Verdicts]] = {model: [] for model in models}
    for pictures, correct in drawn.values():
        turns = len(pictures) // len(records)
        features = runner.run(as_pils(pictures), [Prompt(text=record["prompt"]) for record in records] * turns)
        for model in models:
            cosine = torch.cosine_similarity(features[f"{model}:image"], features[f"{model}:text"]).numpy()
            columns[model].append((np.tile(tags, turns), np.tile(unseen, turns), correct, cosine))
    lines = [f"| model, pictures | {' | '.join(TAGS)} |", "| --- |" + " --- |" * len(TAGS)]
    for model in models:
        tag, new, correct, cosine = (np.concatenate(column) for column in zip(*columns[model], strict=True))
        only = tuple(part[new] for part in (tag, new, correct, cosine))
        parts = {"all": (tag, new, correct, cosine), "all, unseen combinations only": only}
        for name, (tag, _, correct, cosine) in (parts | dict(zip(drawn, columns[model], strict=True))).items():
            values = [auc(cosine[(tag == t) & correct], cosine[(tag == t) & ~correct]) for t in TAGS]
            cells = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
            lines.append(f"| {model.removeprefix('micro/')}, {name} | {cells} |")
    return "\n".join(lines)


def auc(right: np.ndarray, wrong: np.ndarray) -> float | None:
    """Return the probability that a right picture scores above a wrong one, ties half; None below 5 of either."""
    if min(len(right), len(wrong)) < 5:
        return None
    difference = right[:, None] - wrong[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def digests(folders: Sequence[Path], root: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file below the folders, by path from `root`."""
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(root).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in files
        if file.suffix in (".safetensors", ".json", ".jsonl", ".txt")
    }


def write_prompts(folder: Path) -> None:
    """Write prompts.jsonl (the test suite) and prompts_dev.jsonl."""
    sets = prompt_sets()
    for name, file in (("test", "prompts.jsonl"), ("dev", "prompts_dev.jsonl")):
        lines = [json.dumps(record) + "\n" for record in sets[name]]
        (folder / file).write_text("".join(lines), encoding="utf-8")
