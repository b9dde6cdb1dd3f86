"""Clean latents that a student is held to: the teacher's own samples, or pictures of a user's folder.

    z ~ N(0, I),  x_teacher(z, c) = end of the teacher's guided ODE (Euler) from z at t = 1

A run needs no picture but the teacher's: pairs (z, x_teacher) of the first prompts it meets are drawn once, kept on
disk, and then taken at random. A pair's file is named after all that decides it (weights, levels, guidance, prompts,
seed), so an interrupted run finds what it has drawn, and another run may share it. Several processes draw one set
together. Passes are counted as if every run had drawn its own: budgets stay comparable, and a resumed run counts what
the uninterrupted one would have.

Source: pairs of the original DMD, arXiv:2311.18828, Sec. 3.3; as a GAN's "real" samples, DP-DMD's baselines.
Departure: the original draws its pairs before the training starts, from prompts of its own.
Axes: B samples, then any latent axes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.config import config
from leaderboards.store import write_atomically
from metrics.base import Prompt, UserError
from metrics.images import read_image, to_tensor
from trainers.backbones.base import Backbone
from trainers.backbones.prompt_store import made_folder
from trainers.base import World
from trainers.draws import Draws
from trainers.first_step import teacher_anchor
from trainers.schedules import Schedule, step_levels

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@config
class TeacherSamplesConfig:
    """How many samples of the teacher a run draws, and how."""

    count: int = 1024  # of all processes together; a sample costs `steps` passes, twice as many under guidance
    steps: int = 30
    schedule: Schedule = "diffusers_n"  # of the teacher's levels
    shift: float = 1.0  # of the teacher's levels; 3 for SD3
    seed: int = 0  # of the noise z
    folder: str = "runs/teacher-samples"  # where they are kept

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1 or self.shift <= 0:
            raise ValueError("count and steps must be at least 1, shift above 0")


@dataclass(frozen=True)
class Pairs:
    """Noise, what the teacher makes of it, and the prompts."""

    z: Tensor
    x0: Tensor
    prompts: list[Prompt]


class RealLatents(Protocol):
    """What a discriminator is shown as real."""

    def take(self, prompts: Sequence[Prompt], draws: Draws) -> tuple[Tensor, list[Prompt]]:
        """Return as many latents as there are prompts, at random, with prompts of their own."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a bit-exact resume needs besides what is on disk."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        ...


class TeacherSamples:
    """The teacher's samples for the first prompts of a run."""

    def __init__(
        self, backbone: Backbone, settings: TeacherSamplesConfig, guidance_scale: float, world: World
    ) -> None:
        """Raises UserError where the samples' folder cannot be made."""
        self._backbone, self._settings, self._guidance_scale, self._world = backbone, settings, guidance_scale, world
        self._folder = made_folder(Path(settings.folder), "trainer.teacher_samples.folder")
        self._levels = [*step_levels(settings.schedule, settings.steps, settings.shift), 0.0]
        self._identity = {
            "teacher": backbone.teacher_digest(),
            "precision": backbone.settings.precision,
            "latent_shape": list(backbone.latent_shape),
            "levels": self._levels,
            "guidance_scale": guidance_scale,
            "seed": settings.seed,
        }
        if guidance_scale > 1:
            self._identity["unconditional"] = backbone.settings.unconditional
            self._identity["negative_prompt"] = backbone.protocol().negative_prompt
        self._batches: list[list[str]] = []  # prompts, in the order they were drawn for
        self._z, self._x0 = torch.empty(2, 0, *backbone.latent_shape)

    def pairs(self, prompts: Sequence[Prompt], draws: Draws, count: int) -> Pairs:
        """Return `count` pairs at random, once `prompts` have added theirs, as long as there are too few.

        Raises UserError where a file is damaged."""
        if len(self._z) < self._settings.count:
            everyones = self._world.gather_list([prompt.text for prompt in prompts])
            self._draw(everyones[: self._settings.count - len(self._z)])
        texts = [text for batch in self._batches for text in batch]
        rows = draws.indices(count, len(texts))
        z, x0 = (kept[rows].to(self._backbone.device) for kept in (self._z, self._x0))
        return Pairs(z, x0, [Prompt(text=texts[row]) for row in rows.tolist()])

    def take(self, prompts: Sequence[Prompt], draws: Draws) -> tuple[Tensor, list[Prompt]]:
        """See `RealLatents`."""
        pairs = self.pairs(prompts, draws, len(prompts))
        return pairs.x0, pairs.prompts

    def state_dict(self) -> dict[str, Any]:
        """Return the prompts drawn for; the samples are on disk, or can be drawn again."""
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._batches, self._z, self._x0 = [], self._z[:0], self._x0[:0]
        for texts in state["batches"]:
            self._draw(texts)

    def _draw(self, texts: list[str]) -> None:
        """Add the teacher's samples of a batch of all processes' prompts, from disk where they are there."""
        number, world = len(self._batches), self._world
        shape = (len(texts), *self._backbone.latent_shape)
        z = Draws(f"{self._settings.seed}/{number}").normal(shape, torch.device("cpu"))
        own = torch.arange(len(texts)).tensor_split(world.processes)[world.rank]
        passes, cost = self._backbone.passes, len(own) * self._settings.steps * (1 + (self._guidance_scale > 1))
        key = json.dumps(self._identity | {"number": number, "prompts": texts}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        if not all(world.gather_list([path.is_file()])):  # drawing is for all of them, or for none
            x0 = torch.cat(world.gather_list([self._teacher_samples(z[own], [texts[row] for row in own.tolist()])]))
            if not path.is_file():
                _write(path, x0)
        self._backbone.passes = passes + cost
        self._batches.append(texts)
        self._z, self._x0 = torch.cat([self._z, z]), torch.cat([self._x0, _read(path)])

    def _teacher_samples(self, z: Tensor, texts: list[str]) -> Tensor:
        # Fewer prompts than processes: one that has none goes along, for a sharded teacher needs its part.
        asked = torch.cat([z, z.new_zeros(int(not texts), *z.shape[1:])]).to(self._backbone.device)
        prompts = self._backbone.encode(texts or [""])
        teacher = partial(self._backbone.velocity, "teacher", prompts=prompts, guidance_scale=self._guidance_scale)
        return teacher_anchor(teacher, asked, self._levels)[: len(texts)].cpu()


class PictureLatents:
    """The latents of a folder's pictures; the prompt of a.png is the text of a.txt beside it, or empty."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        """List the pictures. Raises UserError where there are none."""
        self._backbone = backbone
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
        if not self._paths:
            raise UserError(
                f"{folder}: no pictures; trainer.pictures must name a folder of PNG, JPEG, WebP or BMP files"
            )

    def take(self, prompts: Sequence[Prompt], draws: Draws) -> tuple[Tensor, list[Prompt]]:
        """See `RealLatents`. Pictures are cut to the model's size. Raises UserError where one cannot be read."""
        count = len(self._paths)
        rows = draws.indices(len(prompts), count)
        paths = [self._paths[row] for row in rows.tolist()]
        size = (self._backbone.protocol().width, self._backbone.protocol().height)
        fitted = [ImageOps.fit(read_image(path), size, Image.Resampling.LANCZOS) for path in paths]
        latents = self._backbone.encode_pictures(to_tensor(fitted).to(self._backbone.device))
        return latents, [Prompt(text=_caption(path)) for path in paths]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: all of it lies in the folder."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


def _caption(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _write(path: Path, x0: Tensor) -> None:
    write_atomically(path, save({"x0": x0.contiguous()}), durable=False)  # another run may be drawing the same


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)["x0"]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, it will be drawn again") from error
