"""The discriminator of the GAN terms: a small head on what the fake score sees in latents that are noised again.

    D(x0) = head(h_fake(x_t, t)),  x_t = (1 - t) x0 + t eps         t of its own for every sample, real or generated
    generator      L_G = E softplus(-D(x0_student))
    discriminator  L_D = E softplus(D(x0_student)) + E softplus(-D(x0_real))

Source: DMD2, arXiv:2405.14867, Sec. 4.3, and its authors' code; noise before a discriminator: diffusion GAN,
arXiv:2206.02262. The code reads a UNet's middle block by convolutions ("conv"). Departure: for transformers, on which
nothing is published, the tokens after the last block are normalised, averaged and judged by two layers ("tokens").
Axes: B samples, then any latent axes; L tokens of D channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.config import config
from metrics.base import Prompt, UserError
from trainers.backbones.base import Backbone
from trainers.draws import Draws, seeded
from trainers.flow import RenoiseLaw, interpolate


@config
class GanConfig:
    """Settings of the GAN terms."""

    generator_weight: float = 5e-3  # λ_G, in the student's loss
    discriminator_weight: float = 1e-2  # λ_D, in the fake score's loss
    renoise: RenoiseLaw = RenoiseLaw(low=0.0, high=1.0)  # before the discriminator
    head: Literal["tokens", "conv"] = "tokens"  # conv needs a square of 4 · 2^n tokens a side

    def __post_init__(self) -> None:
        if self.generator_weight < 0 or self.discriminator_weight < 0:
            raise ValueError("generator_weight and discriminator_weight must be at least 0")


def generator_loss(generated_B: Tensor) -> Tensor:
    """Return L_G of the logits of the student's samples; ln 2 where the discriminator is undecided."""
    return F.softplus(-generated_B).mean()


def discriminator_loss(real_B: Tensor, generated_B: Tensor) -> Tensor:
    """Return L_D of both kinds' logits; 2 ln 2 where the discriminator is undecided."""
    return F.softplus(generated_B).mean() + F.softplus(-real_B).mean()


class Discriminator:
    """Logits of clean latents. Its head is a part of the fake score: trained with it, frozen with it."""

    def __init__(self, backbone: Backbone, settings: GanConfig, seed: int | str) -> None:
        """Build the head for the features that the backbone gives. Raises UserError where they do not fit it."""
        self._backbone, self._renoise = backbone, settings.renoise
        passes = backbone.passes
        with torch.no_grad():
            x = torch.zeros(1, *backbone.latent_shape, device=backbone.device)
            features = backbone.features("fake_score", x, 0.5, backbone.encode([""]))
        _, tokens, width = features.shape
        backbone.passes = passes  # a look at a shape, no work of the training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(seed, "discriminator").initial_seed())
            self.head = HEADS[settings.head](tokens, width).to(features)

    def __call__(self, x0: Tensor, prompts: Sequence[Prompt], draws: Draws) -> Tensor:
        """Return logits [B], high = real, of clean latents [B, ...], noised afresh; counts as a pass of B images."""
        t, eps = self._renoise.draw(x0, draws, self._backbone.level_at)
        encoded = self._backbone.encode([prompt.text for prompt in prompts])
        features_BLD = self._backbone.features("fake_score", interpolate(x0, eps, t), t, encoded)
        return self.head(features_BLD)[:, 0]


def token_head(tokens: int, width: int) -> nn.Sequential:
    """Return the head of a transformer's features [B, L, D] -> [B, 1]."""
    return nn.Sequential(
        nn.LayerNorm(width), _MeanOverTokens(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
    )


def conv_head(tokens: int, width: int) -> nn.Sequential:
    """Return DMD2's head of a UNet's middle block, [B, L, D] row by row -> [B, 1]: halved to 4 x 4, then to 1 x 1.

    GroupNorm has 32 groups as in the code, fewer where the block is so narrow that a group would have fewer than four
    channels: at 1 x 1 a channel by itself is always normalised to 0.
    Raises UserError where the tokens are no square of 4 · 2^n a side."""
    side = math.isqrt(tokens)
    halvings = int(math.log2(max(side, 4) / 4))
    if side**2 != tokens or side != 4 * 2**halvings:
        raise UserError(
            f'trainer.gan.head = "conv" needs a square of 4, 8, 16, ... tokens a side, this backbone gives {tokens} '
            'in all; set it to "tokens"'
        )
    groups = max(n for n in (1, 2, 4, 8, 16, 32) if width % n == 0 and n <= max(1, width // 4))
    shapes = [(2, 1)] * halvings + [(4, 0)]  # stride, padding
    blocks = [
        layer
        for stride, padding in shapes
        for layer in (
            nn.Conv2d(width, width, 4, stride, padding),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
        )
    ]
    return nn.Sequential(_Square(side), *blocks, nn.Conv2d(width, 1, 1), nn.Flatten())


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"tokens": token_head, "conv": conv_head}


class _MeanOverTokens(nn.Module):
    def forward(self, features_BLD: Tensor) -> Tensor:
        return features_BLD.mean(dim=1)


class _Square(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def forward(self, features_BLD: Tensor) -> Tensor:
        return features_BLD.transpose(1, 2).unflatten(2, (self._side, self._side))
