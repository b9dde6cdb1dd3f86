"""A training step without a network: a backbone that answers at once and remembers what it was asked for.

    teacher        a call of the bare base, without graph          decode         the decoder, without graph
    adapted        a call of the student, without graph            decode_graph   the decoder, with graph
    graph          a call of the student, with graph
    fake_adapted   a call of the fake score, without graph, or of a teacher that leans on it
    fake_graph     the same, with graph

Every image of a call counts once, of a guided one twice. Graphs are alive from the call to their backward; how many
of both kinds were alive at once decides the memory.
Axes: B images; latents are small, whatever the model's are: nothing that is counted depends on their size.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from metrics.base import Prompt, make
from trainers.backbones.base import BackboneConfig, Role
from trainers.base import Trainer, World
from trainers.latents import TeacherSamplesConfig
from trainers.rewards import RewardBank, RewardConfig

PIXELS, TOKENS, WIDTH = 64, 16, 8  # of what stands in for pictures and features


class Rehearsal:
    """See `trainers.backbones.base.Backbone`."""

    latent_shape: tuple[int, ...] = (4, 4, 4)
    device = torch.device("cpu")

    def __init__(self, settings: BackboneConfig, protocol: Protocol) -> None:
        self.settings, self._protocol, self.passes = settings, protocol, 0
        self.asked = Counter[str]()
        self.alive = Counter[str]()
        self.peaks = set[tuple[int, int]]()  # images whose graphs of network and decoder were alive together
        self.has_reference = False
        self._scales = {role: nn.Parameter(torch.full((1,), 0.5)) for role in ("student", "fake_score")}

    def encode(self, prompts: Sequence[str]) -> int:
        """Return how many they are."""
        return len(prompts)

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: Any,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        """Return something [B, ...] that depends on the role's parameter and on x_t."""
        count = len(x_t) * (2 if guidance_scale > 1 else 1)
        self.passes += count * (2 if torch.is_grad_enabled() else 1)
        v = x_t * self._scales.get(role, torch.full((1,), 0.4))
        bare = role == "teacher" and not fake_scale
        of = "" if role in ("student", "reference") else "fake_"
        return self._remember(v, count, "teacher" if bare else f"{of}adapted", f"{of}graph")

    def noise_scale(self, t: float) -> float:
        """Return 1: no number here is that of a model."""
        return 1.0

    def level_at(self, share: Tensor) -> Tensor:
        """Return the shares."""
        return share

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: Any) -> Tensor:
        """Return hidden tokens [B, L, D]."""
        hidden = self.velocity(role, x_t, t, prompts)
        return hidden.flatten(1)[:, :1, None].expand(-1, TOKENS, WIDTH)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images of one colour each."""
        images = torch.sigmoid(latents[:, :3, :1, :1]).expand(-1, -1, PIXELS, PIXELS)
        return self._remember(images, len(images), "decode", "decode_graph")

    def encode_pictures(self, images: Tensor) -> Tensor:
        """Return noise: what real latents are does not matter here."""
        return torch.randn(len(images), *self.latent_shape)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return the role's one number."""
        return [self._scales[role]] if role in self._scales else []

    def keep_reference(self) -> None:
        """Remember that there is one."""
        self.has_reference = True

    def reset(self) -> None:
        """Do nothing: a rehearsal is of one stage."""

    def protocol(self) -> Protocol:
        """Return how the base model is meant to be sampled."""
        return self._protocol

    def teacher_digest(self) -> str:
        """Return what no teacher has."""
        return "rehearsal"

    def export(self, folder: Path | None, weights: str, dtype: str) -> None:
        """Raise: there is nothing to write."""
        raise NotImplementedError("a rehearsal has no student")

    def _remember(self, result: Tensor, count: int, plain: str, with_graph: str) -> Tensor:
        if not result.requires_grad:
            self.asked[plain] += count
            return result
        self.asked[with_graph] += count
        self.alive[with_graph] += count
        self.peaks.add((self.alive["graph"] + self.alive["fake_graph"], self.alive["decode_graph"]))
        waiting = [count]

        def release(_: Tensor) -> None:
            if waiting:  # a gradient may come in several parts
                self.alive[with_graph] -= waiting.pop()

        result.register_hook(release)
        return result


class RehearsedReward:
    """A metric's card with a score in closed form: the brightness of the image."""

    def __init__(self, identity: str) -> None:
        self.card = make(identity).card

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the score [B], with gradient."""
        return images.mean(dim=(1, 2, 3))

    def rewards(self, images: Tensor, several: Sequence[Sequence[Prompt]]) -> list[Tensor]:
        """Return the score [B], with gradient, for each of several lists of prompts."""
        return [self.reward(images, prompts) for prompts in several]

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the score [B]."""
        return self.reward(images, prompts)


@contextmanager
def rehearsed(
    kind: type[Trainer], settings: Any, backbone: Rehearsal, rewards: RewardBank, world: World
) -> Iterator[Trainer]:
    """Give a stage's trainer on a rehearsal; the samples of the teacher that it draws go nowhere.

    Raises UserError as the trainer does that a run makes of the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        if samples := samples_of(settings):
            settings = replace(settings, teacher_samples=replace(samples, folder=folder))
        with torch.random.fork_rng(devices=[]):  # what a run draws does not depend on its having been rehearsed
            trainer = kind(settings, backbone, rewards, world)
        yield trainer


def samples_of(settings: Any) -> TeacherSamplesConfig | None:
    """Return how a method of these settings draws samples of the teacher, None where it draws none."""
    return None if getattr(settings, "pictures", "") else getattr(settings, "teacher_samples", None)


def rehearsed_rewards(settings: Sequence[RewardConfig]) -> RewardBank:
    """Return a bank that needs no weights. Raises UserError where an id is unknown."""
    return RewardBank(settings, {one.id: RehearsedReward(one.id) for one in settings})  # type: ignore[misc]
