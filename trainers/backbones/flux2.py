"""FLUX.2 klein (4B, 9B): any Flux2KleinPipeline folder.

The transformer predicts v at timestep t of tokens that are 2 x 2 patches of the autoencoder's latents, normalised by
the running statistics of its batch norm. Trainers see these patches as pixels, [4 C, H / 16, W / 16]; the order of
tokens is theirs row by row.
Klein's own schedule shifts n even steps by exp(mu), mu empirical in the number of tokens and n; `empirical_shift`
gives that factor for `sampler.shift`. Source: Black Forest Labs' code, as diffusers' compute_empirical_mu holds it.
Axes: B images, L text tokens of D channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from trainers.backbones.base import register
from trainers.backbones.family import Embeddings, Family, Row


def empirical_shift(image_tokens: int, num_inference_steps: int) -> float:
    """Return the k = exp(mu) of k t / (1 + (k - 1) t) that klein's pipeline lays over its even steps."""
    return math.exp(compute_empirical_mu(image_tokens, num_inference_steps))


@register("flux2")
class Flux2Klein(Family):
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class = Flux2KleinPipeline

    def latents(self) -> tuple[int, ...]:
        """Return (channels of a patch, rows, columns): a patch stands for 2 x 2 of the autoencoder's latents."""
        side = 2 * self.pipeline.vae_scale_factor
        return self.config.in_channels, self._protocol.height // side, self._protocol.width // side

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return (embeddings [L, D],) for each prompt: three hidden layers of the language model, side by side."""
        length = self._protocol.call_arguments.get("max_sequence_length", 512)
        tokens, _ = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=length)
        return [(row,) for row in tokens]

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return the velocity of the packed tokens, as patches."""
        (tokens,) = prompts
        v = network(
            hidden_states=x_t.flatten(2).transpose(1, 2),
            timestep=t,
            encoder_hidden_states=tokens,
            img_ids=self.pipeline._prepare_latent_ids(x_t[:1]).to(self.device),
            txt_ids=self.pipeline._prepare_text_ids(tokens[:1]).to(self.device),
        ).sample
        return v.transpose(1, 2).unflatten(2, x_t.shape[2:])

    def raw_latents(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's z [B, C, h, w] of normalised patches."""
        mean, std = self._statistics()
        return self.pipeline._unpatchify_latents(latents * std + mean)

    def trained_latents(self, z: Tensor) -> Tensor:
        """Return the normalised patches of the autoencoder's z."""
        mean, std = self._statistics()
        return (self.pipeline._patchify_latents(z) - mean) / std

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        return vae.bn.running_mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
