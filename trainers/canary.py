"""The canary: a small fixed prompt set, sampled now and then as the student will be benchmarked, with fixed noise.

Scored with the rewards and with metrics that are not trained on: where the two part, the reward is being hacked, and
a run may end the stage there (`stop`).
It draws from generators of its own, so a run with a canary trains exactly like one without.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.prompts import read_prompts
from metrics.base import Batch, Card, NotHere, Prompt, UserError
from metrics.images import as_pils
from metrics.loaded import Scorer
from trainers.base import Trainer
from trainers.config import CanaryConfig
from trainers.draws import seeded
from trainers.rollout import rollout


def has_fallen(values: Sequence[float], drop: float, patience: int) -> bool:
    """Return whether each of the last `patience` values lies by more than `drop` below the best one before it."""
    bests = list(accumulate(values, max))
    fallen = [value < best - drop for value, best in zip(values, bests, strict=True)]
    return len(fallen) >= patience and all(fallen[-patience:])


def unfit(card: Card, settings: CanaryConfig) -> str:
    """Return why a canary has no values of a metric, "" where it has."""
    if card.aggregate == "set":
        return "a statistic of a whole set, and a canary has a value for each image; leave it to the benchmark"
    if settings.images_per_prompt < card.min_images_per_prompt:
        return f"needs canary.images_per_prompt = {card.min_images_per_prompt} or more"
    return ""


class Canary:
    """Prompts, metrics and noise of a run's canary."""

    def __init__(self, settings: CanaryConfig, rewards: Sequence[str], device: torch.device) -> None:
        """Raises UserError where the prompt file or a metric is unknown, or a metric has no values here;
        NotHere where one lacks weights."""
        self.settings = settings
        chosen = (
            read_prompts(Path(settings.prompts)).spread(settings.limit or None).prompts if settings.prompts else ()
        )
        self.prompts = [prompt for prompt in chosen for _ in range(settings.images_per_prompt)]
        self._scorer: Scorer | None = None
        if self.prompts:
            self._scorer = Scorer(dict.fromkeys([*rewards, *settings.metrics]), device)
            for identity, metric in self._scorer.metrics.items():
                if reason := unfit(metric.card, settings):
                    raise UserError(f"{identity}: {reason}")
            for identity in self._scorer.metrics:
                if reason := self._scorer.missing(identity) or "":
                    raise NotHere(f"{identity}: {reason}")

    @torch.no_grad()
    def measure(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """Return mean and spread (standard deviation) of each metric over the canary's images; empty without one."""
        if self._scorer is None:
            return {}, {}
        size, total = self.settings.batch_size, len(self.prompts)
        chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
        pictures = [picture for rows in chunks for picture in as_pils(self._sample(trainer, rows))]
        means, spreads = dict[str, float](), dict[str, float]()
        batch = Batch(prompts=self.prompts, seeds=list(range(total)))
        for identity, rows in self._scorer.score(pictures, batch).items():
            try:
                per_image_N = self._scorer.metrics[identity].summarise(rows, self.prompts).per_image_N
            except UserError as error:  # pictures of which no metric can say anything must not end a training
                print(f"canary: no value of {identity}: {error}", file=sys.stderr)
                continue
            assert per_image_N is not None  # see `unfit`
            with_value = per_image_N[~np.isnan(per_image_N)]
            if len(with_value):
                means[identity], spreads[identity] = float(with_value.mean()), float(with_value.std())
        return means, spreads

    def stopped_by(self, curve: Sequence[Mapping[str, Any]]) -> str:
        """Return the metric whose fall over a stage's measurements ends the stage, "" where it goes on."""
        stop = self.settings.stop
        if not stop.metric or self._scorer is None:
            return ""
        sign = 1 if self._scorer.metrics[stop.metric].card.higher_is_better else -1
        values = [sign * point[stop.metric] for point in curve if stop.metric in point]
        return stop.metric if has_fallen(values, stop.drop, stop.patience) else ""

    def _sample(self, trainer: Trainer, rows: range) -> Tensor:
        """Return images [B, 3, H, W] of some prompts; each has its own noise, whatever the batch."""
        backbone, generators = trainer.roles.backbone, [seeded("canary", row) for row in rows]

        def noise(_: int) -> Tensor:
            drawn = [torch.randn(backbone.latent_shape, generator=generator) for generator in generators]
            return torch.stack(drawn).to(backbone.device)

        members: list[Prompt] = [self.prompts[row] for row in rows]
        student = trainer.roles.networks(members, guidance_scale=1.0).student
        x = trainer.roles.noise_scale(trainer.protocol()) * noise(0)
        return backbone.decode(rollout(student, x, trainer.protocol(), noise)[-1].x_next)
