"""The SD3 family (SD3-M, SD3.5-M/L, and the micro world): any StableDiffusion3Pipeline folder.

The transformer predicts the flow velocity v = eps - x0 at timestep 1000 t. Latents are (z - shift) * scale of the
autoencoder's z.
Axes: B images, C x h x w latents, L tokens of D channels.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from trainers.backbones.base import register
from trainers.backbones.family import Embeddings, Family, Row


@register("sd3")
class Sd3(Family):
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class = StableDiffusion3Pipeline

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return (embeddings [L, D], pooled [D]) for each prompt."""
        known = inspect.signature(self.pipeline.encode_prompt).parameters
        extra: dict[str, Any] = {k: v for k, v in self._protocol.call_arguments.items() if k in known}
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False, **extra
        )
        return list(zip(tokens, pooled, strict=True))

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return the velocity, which is what the network predicts."""
        tokens, pooled = prompts
        return network(x_t, timestep=1000 * t, encoder_hidden_states=tokens, pooled_projections=pooled).sample
