"""SDXL: any StableDiffusionXLPipeline folder, whose UNet predicts eps, or v_prediction where its scheduler says so.

Trainers see flow: v = eps - x0 at level t. The bridge of benchmarks/vp.py shows the UNet its own path's sample and
the nearest timestep, and reads v from its answer; level 1 is the last timestep asked about pure noise.
Conditioning: the last but one hidden states of both text encoders, the pooled output of the second, and six numbers
(original size, crop, target size; here always the whole picture at its size). Guidance is against zeros where the
folder says force_zeros_for_empty_prompt, as its pipeline does, unless `backbone.unconditional` says otherwise: DMD2's
authors have zeros, DMDR's the encoded empty text.
A renoise law draws levels unless it says on = "timesteps": uniform levels are timesteps of another law.
A loss in v weighs one in eps by 1 / (1 - t)^2: `fake_score_loss = "eps"` in [trainer] trains the fake score as the
UNet itself was, and so do `refl.regulariser_loss` and `dpo.loss` the student.
Source: Podell et al. 2023, arXiv:2307.01952, Sec. 2.2.
Axes: B images, 4 x h x w latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from benchmarks.config import UserError
from benchmarks.vp import VpPath
from trainers.backbones.base import BackboneConfig, register
from trainers.backbones.family import Embeddings, Family, Row, per_image


@register("sdxl")
class Sdxl(Family):
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class = StableDiffusionXLPipeline
    denoiser = "unet"
    guided_against_zeros = True  # or against the empty text

    def __init__(self, settings: BackboneConfig, device: torch.device) -> None:
        """Load the folder. Raises UserError where it is no StableDiffusionXLPipeline, or predicts something else, and
        where it has a negative prompt and the settings another unconditional."""
        super().__init__(settings, device)
        if settings.unconditional != "model" and self._protocol.negative_prompt:
            raise UserError(
                f"{settings.path}: its protocol has a negative prompt, which backbone.unconditional = "
                f"{settings.unconditional!r} contradicts: leave one of them out"
            )
        path = VpPath.of(self.pipeline.scheduler.config)
        if path is None:
            raise UserError(f"{settings.path}: its scheduler names no table of betas, or predicts neither eps nor v")
        self._path = path
        size = (self._protocol.height, self._protocol.width)
        self._sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=device)

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return (embeddings [L, D], pooled [D]) for each prompt."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return list(zip(tokens, pooled, strict=True))

    def negative(self) -> Row:
        """Return zeros for an empty negative prompt where the settings, or else the folder, ask for them."""
        row = super().negative()
        own = not self._protocol.negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt
        zeros = {"zeros": True, "empty_prompt": False}.get(self.settings.unconditional, own)
        return tuple(torch.zeros_like(x) for x in row) if zeros else row

    def noise_scale(self, t: float) -> float:
        """Return the factor of unit noise that a sampler begins with at level t: the UNet is shown unit noise."""
        return self._path.noise_scale(t)

    def level_at(self, share: Tensor) -> Tensor:
        """Return the levels of the timesteps at these shares of the scheduler's table."""
        return self._path.level_at(share)

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return the velocity behind the UNet's eps or v_prediction."""
        tokens, pooled = prompts
        level = per_image(t, x_t)
        output = network(
            self._path.model_input(x_t, level),
            self._path.timestep(t),
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": self._sizes.expand(len(x_t), 6)},
        ).sample
        return self._path.velocity(output.to(self._dtype), x_t, level)

    def hidden(self, network: Any) -> tuple[nn.Module, bool]:
        """Return the UNet's middle block, the deepest one."""
        return network.mid_block, False

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return the middle block's pixels row by row."""
        return hidden.flatten(2).transpose(1, 2)
