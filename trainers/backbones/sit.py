"""SiT: class-conditional ImageNet-256 models as DiTPipeline folders whose scheduler solves flows.

diffusers has no class of its own for SiT, and needs none: the network is DiT's. Published checkpoints (SiT, REPA,
SRA) are made such folders by `python -m trainers.backbones.sit_checkpoint`, after which the network predicts
v = eps - x0 at timestep 1000 t like every other flow model here. A prompt is a class: a number such as "207", or a
label of the folder's id2label; the empty prompt is no class, which guidance is against.
Source: Ma et al. 2024, arXiv:2401.08740; the network: Peebles and Xie 2022, arXiv:2212.09748.
Axes: B images, 4 x h x w latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline
from torch import Tensor, nn

from benchmarks.checkpoints import check_pipeline
from benchmarks.config import UserError
from benchmarks.native import class_labels
from trainers.backbones.base import BackboneConfig, register
from trainers.backbones.family import Embeddings, Family, Row


@register("sit")
class Sit(Family):
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class = DiTPipeline

    def __init__(self, settings: BackboneConfig, device: torch.device) -> None:
        """Load the folder. Raises UserError where it is no DiTPipeline, or a DiT that predicts eps."""
        super().__init__(settings, device)
        if not check_pipeline(Path(settings.path)).is_flow():
            raise UserError(
                f"{settings.path}: a DiT with {type(self.pipeline.scheduler).__name__}, not a flow model; make the "
                "folder with python -m trainers.backbones.sit_checkpoint"
            )

    def latents(self) -> tuple[int, ...]:
        """Return the network's one size."""
        return self.config.in_channels, self.config.sample_size, self.config.sample_size

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return (class [],) for each prompt; the empty one is the class after the last."""
        classes = self.config.num_embeds_ada_norm
        named = iter(class_labels([p for p in prompts if p], self.pipeline.labels, classes))
        return [(torch.tensor(next(named) if p else classes, device=self.device),) for p in prompts]

    def apart(self, network: Any) -> Sequence[nn.Module]:
        """Return the first block's embedding of time and class: the network's end asks it again."""
        return (network.transformer_blocks[0].norm1.emb,)

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return the velocity; a learned variance beside it plays no part."""
        (labels,) = prompts
        return network(x_t, timestep=1000 * t, class_labels=labels).sample[:, : x_t.shape[1]]
