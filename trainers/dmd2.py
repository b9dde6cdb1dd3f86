"""DMD2: distribution matching with a GAN term on the fake score's features, which looks beyond the teacher.

    student      L = L_dmd + lambda_G softplus(-D(x0_student))
    fake score   L = L_fake + lambda_D [softplus(D(x0_student)) + softplus(-D(x0_real))]

Steps and order are those of `Dmd`: R updates of the fake score and D together, then one of the student, while both
are frozen. Samples come from the student's own sampler, which noises its prediction afresh for every step (backward
simulation), with the graph of the last call.

Source: DMD2, arXiv:2405.14867, Sec. 4.2-4.5; values of its authors' code for SDXL in four steps. Departures: where no
folder of pictures is given, "real" are samples of the teacher, so that a training needs prompts alone; the code draws
levels from 1000, here they are continuous; its empty text embedding is the backbone's own.
Axes: B samples, then any latent axes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.config import config
from metrics.base import Prompt
from trainers.backbones.base import Backbone
from trainers.base import Count, Guidance, Networks, SamplerConfig, World, register
from trainers.discriminator import Discriminator, GanConfig, discriminator_loss, generator_loss
from trainers.dmd import Dmd, DmdConfig
from trainers.flow import RenoiseLaw
from trainers.latents import PictureLatents, RealLatents, TeacherSamples, TeacherSamplesConfig
from trainers.learner import OptimiserConfig
from trainers.rewards import RewardBank


@config
class Dmd2Config(DmdConfig):
    """Settings of DMD2, with those of DMD."""

    sampler: SamplerConfig = SamplerConfig(sampler="renoise")
    guidance_scale: Guidance = 8.0  # of the teacher; 1 = off
    batch_size: Count = 2
    fake_score_updates: Count = 5  # R, of the fake score and D, per student update
    fake_score_renoise: RenoiseLaw = RenoiseLaw(low=0.0, high=1.0)
    student: OptimiserConfig = OptimiserConfig(lr=5e-7, max_grad_norm=10.0)
    fake_score: OptimiserConfig = OptimiserConfig(lr=5e-7, max_grad_norm=10.0)  # of the discriminator as well
    gan: GanConfig = GanConfig()
    pictures: str = ""  # folder of real pictures; "" = samples of the teacher
    teacher_samples: TeacherSamplesConfig = TeacherSamplesConfig()  # where there are no pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures and self.teacher_samples != TeacherSamplesConfig():
            raise ValueError(
                "pictures are what is real in the place of samples of the teacher: leave teacher_samples out (--set "
                "trainer.teacher_samples={} takes a file's back), or pictures"
            )


@register("dmd2")
class Dmd2(Dmd):
    """The trainer of DMD2."""

    Config = Dmd2Config
    config: Dmd2Config

    def __init__(self, config: Dmd2Config, backbone: Backbone, rewards: RewardBank, world: World) -> None:
        self.discriminator = Discriminator(backbone, config.gan, world.seed)
        extra = {"fake_score": list(self.discriminator.head.parameters())}
        super().__init__(config, backbone, rewards, world, extra=extra)
        self.image_free = not config.pictures
        self.real: RealLatents = (
            PictureLatents(backbone, Path(config.pictures))
            if config.pictures
            else TeacherSamples(backbone, config.teacher_samples, config.guidance_scale, world)
        )

    def fake_score_losses(self, networks: Networks, x0: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return L_fake and the discriminator's term."""
        draws, losses = self.roles.draws, super().fake_score_losses(networks, x0, prompts)
        real, real_prompts = self.real.take(prompts, draws)
        logits = self.discriminator(real, real_prompts, draws), self.discriminator(x0, prompts, draws)
        return losses | {"discriminator_loss": self.config.gan.discriminator_weight * discriminator_loss(*logits)}

    def student_losses(self, networks: Networks, x0: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return L_dmd and the generator's term."""
        losses = super().student_losses(networks, x0, prompts)
        loss = generator_loss(self.discriminator(x0, prompts, self.roles.draws))
        return losses | {"generator_loss": self.config.gan.generator_weight * loss}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs; the discriminator's head is a part of the fake score."""
        return super().state_dict() | {"real": self.real.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        super().load_state_dict(state)
        self.real.load_state_dict(state["real"])
