"""The teacher's own pictures, right and wrong ones, to train and to test image-text models on.

Early checkpoints, few steps and no guidance give the mistakes: malformed shapes, wrong counts, mixed-up colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.micro.autoencoder import decode, encode
from benchmarks.micro.captions import Captioner, LabelledPictures
from benchmarks.micro.image_text import ImageTextConfig, phrasings
from benchmarks.micro.pipeline import draw, load
from benchmarks.micro.renders import EVEN_WEIGHTS, FINE_WEIGHTS, draw_combinations, render_all
from benchmarks.micro.training import Log
from metrics.micro.prompts import seen_combinations

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


Samplers = tuple[tuple[int, float, int], ...]  # steps, guidance, pictures


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How many pictures of which kind. Half of the renders pass through the autoencoder, as the teacher's do."""

    renders: int = 16_000
    early: Samplers = (  # of each early checkpoint
        (4, 1.0, 2500),
        (4, 4.0, 1500),
        (8, 4.0, 1000),
        (20, 4.0, 700),
    )
    final: Samplers = (  # of the shipped teacher, whose mistakes are the finest: mostly counts and pairs
        (4, 1.0, 2500),
        (4, 4.0, 2000),
        (20, 4.0, 2500),
    )


def labelled_pictures(
    config: PicturesConfig,
    model: ImageTextConfig,
    early: Sequence[Path],
    final: Path,
    vae: "AutoencoderKL",
    work: Path,
) -> LabelledPictures:
    """Return the training pictures of one image-text model; kept in `work`, checkpoint by checkpoint."""
    seen, cache = seen_combinations(), work / f"pictures-{model.name}.pt"
    if not cache.exists():
        parts = [_renders(config, model.seed, vae)]
        for index, checkpoint in enumerate([*early, final]):
            samplers, weights = (config.final, FINE_WEIGHTS) if checkpoint == final else (config.early, EVEN_WEIGHTS)
            parts.append(_drawn(samplers, weights, model, checkpoint, 1000 * model.seed + 10 * index, work))
        numbers = np.concatenate([numbers for _, numbers in parts])
        labelled = Captioner(seen).label(
            np.concatenate([pictures for pictures, _ in parts]), [seen[number] for number in numbers], model.seed
        )
        torch.save([torch.from_numpy(labelled.pictures), labelled.captions, labelled.labels], cache)
    pictures, captions, labels = torch.load(cache, weights_only=True)
    return LabelledPictures(pictures.numpy(), captions, labels)


def _renders(config: PicturesConfig, seed: int, vae: "AutoencoderKL") -> tuple[np.ndarray, np.ndarray]:
    """Return renders and the numbers of their combinations; every other one decoded from its latents."""
    number = {combination: index for index, combination in enumerate(seen_combinations())}
    combinations = draw_combinations(config.renders, seed, EVEN_WEIGHTS)
    pictures, _ = render_all(combinations, seed)
    for first in range(0, config.renders, 256):
        half = slice(first, first + 256, 2)
        pictures[half] = decode(vae, encode(vae, pictures[half]))
    return pictures, np.array([number[combination] for combination in combinations])


def _drawn(
    samplers: Samplers, weights: Mapping[str, float], model: ImageTextConfig, checkpoint: Path, seed: int, work: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return one checkpoint's pictures for the model's own phrasings, and the numbers of their combinations."""
    cache, log = work / "pictures" / f"{model.name}-{checkpoint.name}.npz", Log(work / "pictures.log")
    if not cache.exists():
        number = {combination: index for index, combination in enumerate(seen_combinations())}
        texts, pipeline = phrasings(seen_combinations(), model.seed), load(checkpoint)
        pictures, numbers = [], []
        for offset, (steps, guidance, count) in enumerate(samplers):
            rng = np.random.default_rng((seed, offset))
            chosen = [number[combination] for combination in draw_combinations(count, seed + offset, weights)]
            prompts = [texts[index][rng.integers(len(texts[index]))] for index in chosen]
            pictures.append(draw(pipeline, prompts, seed + offset, steps, guidance))
            numbers += chosen
            log(f"{model.name}: {count} pictures of checkpoint {checkpoint.name}, {steps} steps, guidance {guidance}")
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, pictures=np.concatenate(pictures), numbers=np.array(numbers))
    with np.load(cache) as saved:
        return saved["pictures"], saved["numbers"]
