"""Z-Image and Z-Image-Turbo: any ZImagePipeline folder.

The transformer predicts x0 - eps, the opposite of v, at time 1 - t; one stream holds the image's tokens, then the
prompt's. Prompts keep their own number of tokens, so that their embeddings are a list.
The pipeline's guidance is c + s (c - u); ours, u + s (c - u), is its scale plus 1 (benchmarks/native.py).
Source: Z-Image, arXiv:2511.22699, as diffusers' pipeline holds it.
Axes: B images, C x h x w latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor, nn

from trainers.backbones.base import register
from trainers.backbones.family import Embeddings, Family, Row

PATCHES = "2-1"  # sides of the only patches that checkpoints are published with: 2 pixels, 1 frame


@register("z_image")
class ZImage(Family):
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class = ZImagePipeline

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return (embeddings [L, D],) for each prompt, L its own."""
        length = self._protocol.call_arguments.get("max_sequence_length", 512)
        rows, _ = self.pipeline.encode_prompt(
            list(prompts), self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return [(row,) for row in rows]

    def joined(self, rows: Sequence[Row]) -> Embeddings:
        """Return the embeddings as one list: lengths differ."""
        return ([row for (row,) in rows],)

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return the velocity: minus the network's output."""
        (captions,) = prompts
        frames = list(x_t.unsqueeze(2).unbind(0))
        return -torch.stack(network(frames, 1 - t, captions, return_dict=False)[0]).squeeze(2)

    def hidden(self, network: Any) -> tuple[nn.Module, bool]:
        """Return what stands after the last block."""
        return network.all_final_layer[PATCHES], True

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return the image's tokens; the prompt's, and what pads both, follow them."""
        _, height, width = self.latent_shape
        return hidden[:, : height * width // 4]
