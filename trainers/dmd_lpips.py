"""DMD-LPIPS: distribution matching and the original DMD's regression on what the teacher makes of the same noise.

    L = L_dmd + 0.25 d(decode(x_student(z, c)), decode(x_teacher(z, c)))        d a perceptual distance

As in the original, the pairs (z, x_teacher) are drawn once (trainers/latents.py), and the regression has a batch of
its own: the student's whole rollout from the pairs' noise, with the graph of every step.

Source: DMD, arXiv:2311.18828, Sec. 3.3 and algorithm 1, with its weight for LPIPS; as one of DP-DMD's comparison
rows, for which neither code nor weight is published. Departures: pictures are reduced to 512 pixels before they are
compared; pairs come from the first prompts of the run. DP-DMD's table calls its row not image-free. In a run's record
the word is of pictures from outside, and here every picture that is compared is the teacher's or the student's: it
says image-free. What the distance's own network once learnt from is no part of that; `trained_on` names the metrics
that see by it.
Axes: B samples, then any latent axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.config import config
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Count, Networks, World, register
from trainers.dmd import Dmd, DmdConfig, X0Source
from trainers.dp_dmd import DpDmdRecipe
from trainers.latents import TeacherSamples, TeacherSamplesConfig
from trainers.perceptual import MEASURED_BY, Perceptual, load_perceptual, reduced
from trainers.rewards import RewardBank


@config
class LpipsConfig:
    """Settings of the regression."""

    weight: float = 0.25
    distance: Perceptual = "lpips_vgg"  # micro_perceptual on the micro world
    size: Count = 512  # pixels of the shorter side; larger pictures are reduced to it
    batch_size: Count = 4  # pairs per student update and process

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError("weight must be at least 0")


@config
class DmdLpipsConfig(DpDmdRecipe, DmdConfig):
    """Settings of DMD-LPIPS: DMD's with DP-DMD's values, and the regression."""

    x0_source: X0Source = "full_rollout"
    lpips: LpipsConfig = LpipsConfig()
    teacher_samples: TeacherSamplesConfig = TeacherSamplesConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x0_source != "full_rollout":
            raise ValueError('the regression compares whole rollouts: set x0_source = "full_rollout"')


@register("dmd_lpips")
class DmdLpips(Dmd):
    """The trainer of DMD-LPIPS."""

    Config = DmdLpipsConfig
    config: DmdLpipsConfig

    def __init__(self, config: DmdLpipsConfig, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self._distance = load_perceptual(config.lpips.distance, backbone.device)
        super().__init__(config, backbone, rewards, world)
        self._pairs = world.share(config.lpips.batch_size, "pairs of lpips.batch_size")
        self.samples = TeacherSamples(backbone, config.teacher_samples, config.guidance_scale, world)

    @classmethod
    def trained_on(cls, config: DmdLpipsConfig) -> tuple[str, ...]:
        """Return the metrics that see by the distance's own network."""
        return MEASURED_BY[config.lpips.distance] if config.lpips.weight else ()

    def student_losses(self, networks: Networks, x0: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return L_dmd and the regression's term."""
        c, losses = self.config, super().student_losses(networks, x0, prompts)
        pairs = self.samples.pairs(prompts, self.roles.draws, self._pairs)
        pictures = self._pictures(pairs.x0)  # first: after it an offloaded autoencoder leaves the device
        x0_pairs = self.generate(self.roles.networks(pairs.prompts, c.guidance_scale), pairs.z, grad=True)
        loss = self._distance(self._pictures(x0_pairs), pictures).mean()
        return losses | {"lpips_loss": c.lpips.weight * loss}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return super().state_dict() | {"teacher_samples": self.samples.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        super().load_state_dict(state)
        self.samples.load_state_dict(state["teacher_samples"])

    def _pictures(self, x0: Tensor) -> Tensor:
        with torch.set_grad_enabled(x0.requires_grad):
            return reduced(self.roles.backbone.decode(x0), self.config.lpips.size)
