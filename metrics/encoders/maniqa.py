"""MANIQA's network: a vision transformer's inner states, rated token by token.

    states    the tokens after blocks 6 to 9 of a ViT-B/8, side by side                              [B, 4 D, H, W]
    stage     two transposed attentions, a 1 x 1 convolution, two Swin layers; twice, D and D / 2 wide
    layer     x + scale * relu(conv(blocks(x)))
    score     sum_n w_n s_n / sum_n w_n,   s_n = relu(...), w_n = sigmoid(...) of each token n

A transposed attention mixes channels: its queries, keys and values are rows over all tokens. Its result [B, C, N] is
transposed and then read as [B, C, N] again, which is not the transposed tensor; the weights were trained so.
`scale` is no weight: 0.13 in the training on PIPAL, 0.8 in those on KonIQ-10k and KADID-10k.

Modules: timm's VisionTransformer and SwinTransformerBlock, under the keys of the published files.
Source: Yang et al. 2022, arXiv:2204.08958, Sec. 3 and the authors' code (models/maniqa.py, models/swin.py).
Axes: B crops, C channels (D and D / 2), H x W tokens, N = H W.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metrics.base import UserError
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.weights import Weights, manifest

CROP = 224
TAPS = (6, 7, 8, 9)  # blocks of the transformer, from 0; those after the last are in the file and not read
UNREAD = ("vit.norm.", "vit.head.", "vit.blocks.10.", "vit.blocks.11.")
BUFFERS = (".relative_position_index", ".attn_mask")  # follow from the window's size
Rule = Literal["grid", "dp_dmd", "official"]
SEED = 20  # of the authors' and of DP-DMD's crops


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the published networks have; tests shrink them."""

    patch: int = 8
    width: int = 768
    heads: int = 12
    mlp: int = 768  # of the Swin blocks
    swin_heads: int = 4
    window: int = 4


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Squares of 224 pixels at a picture's own resolution.

    grid      20: four rows and five columns from edge to edge; a smaller picture is enlarged first (PIL bicubic)
    dp_dmd    10 at random places, the last one possible; as in DP-DMD's evaluation script
    official  20 at random places, without the last row and column; as in the authors' script for one picture

    Random places follow from the seed and the picture's size alone: pictures of one size have the same ones.
    """

    rule: Rule

    def from_pil(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Return B tensors [crops, 3, 224, 224], uint8. Raises UserError where a picture is too small for a rule."""
        return [self._cut(image) for image in images]

    def from_tensor(self, images_BCHW: Tensor) -> list[Tensor]:
        """Raises UserError: MANIQA is no reward here."""
        raise UserError("MANIQA's crops have no differentiable form here; call the metric on pictures")

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return top and left of each crop. Raises UserError where the picture is too small for the rule."""
        rows, columns = height - CROP, width - CROP  # the last top and left
        if self.rule == "grid":
            return [(round(i * rows / 3), round(j * columns / 4)) for i in range(4) for j in range(5)]
        count, beyond = (10, 1) if self.rule == "dp_dmd" else (20, 0)
        least = CROP + 1 - beyond
        if min(height, width) < least:
            raise UserError(
                f"a picture of {width}x{height} pixels; these crops need {least} each way: take `maniqa`, whose grid "
                "fits every picture"
            )
        generator = np.random.RandomState(SEED)
        # Top is drawn before left, crop by crop: the order decides the places.
        return [(generator.randint(0, rows + beyond), generator.randint(0, columns + beyond)) for _ in range(count)]

    def _cut(self, image: Image.Image) -> Tensor:
        if self.rule == "grid" and min(image.size) < CROP:
            scale = CROP / min(image.size)
            width, height = (max(CROP, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        corners = self.corners(image.height, image.width)
        return torch.stack([pixels_CHW[:, top : top + CROP, left : left + CROP] for top, left in corners])


class TransposedAttention(nn.Module):
    """Attention between channels: each is a vector over the tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(tokens, tokens) for _ in range(3))

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Return [B, C, N]."""
        similarity_BCC = self.c_q(x_BCN) @ self.c_k(x_BCN).transpose(1, 2) * x_BCN.shape[2] ** -0.5
        mixed_BCN = similarity_BCC.softmax(dim=-1) @ self.c_v(x_BCN)
        return x_BCN + mixed_BCN.transpose(1, 2).reshape(x_BCN.shape)


class SwinLayer(nn.Module):
    """Two Swin blocks, the second with shifted windows, and a convolution."""

    def __init__(self, width: int, grid: tuple[int, int], sizes: Sizes) -> None:
        from timm.models.swin_transformer import SwinTransformerBlock

        super().__init__()
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    width,
                    grid,
                    num_heads=sizes.swin_heads,
                    window_size=sizes.window,
                    shift_size=shift,
                    mlp_ratio=sizes.mlp / width,
                    dynamic_mask=True,  # or else it is made with the weights, which load later
                )
                for shift in (0, sizes.window // 2)
            )
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, C, H, W], not negative."""
        return self.conv(self.blocks(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).relu()


class SwinStage(nn.Module):
    """Two layers, each added to what it was given; `downsample` is in the files and was never used."""

    def __init__(self, width: int, grid: tuple[int, int], sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SwinLayer(width, grid, sizes) for _ in range(2))
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x_BCHW: Tensor, scale: float) -> Tensor:
        """Return [B, C, H, W]."""
        for layer in self.layers:
            x_BCHW = x_BCHW + scale * layer(x_BCHW)
        return x_BCHW


class Maniqa(nn.Module):
    """The whole network under the keys of the published files, without the layers that are not read."""

    def __init__(self, sizes: Sizes) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        side = CROP // sizes.patch
        self.grid = side, side
        half = sizes.width // 2
        self.vit = VisionTransformer(
            img_size=CROP,
            patch_size=sizes.patch,
            embed_dim=sizes.width,
            depth=TAPS[-1] + 1,
            num_heads=sizes.heads,
            num_classes=0,
            final_norm=False,
        )
        self.tablock1 = nn.Sequential(*(TransposedAttention(side * side) for _ in range(2)))
        self.conv1 = nn.Conv2d(4 * sizes.width, sizes.width, 1)
        self.swintransformer1 = SwinStage(sizes.width, self.grid, sizes)
        self.tablock2 = nn.Sequential(*(TransposedAttention(side * side) for _ in range(2)))
        self.conv2 = nn.Conv2d(sizes.width, half, 1)
        self.swintransformer2 = SwinStage(half, self.grid, sizes)
        self.fc_score, self.fc_weight = (
            nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Dropout(), nn.Linear(half, 1), last)
            for last in (nn.ReLU(), nn.Sigmoid())
        )

    def forward(self, crops_BCHW: Tensor, scale: float) -> Tensor:
        """Return the scores [B] of crops in [-1, 1]: not negative, unbounded above."""
        states: Any = self.vit.forward_intermediates(
            crops_BCHW, indices=list(TAPS), norm=False, output_fmt="NLC", intermediates_only=True
        )
        x_BCN = torch.cat(states, dim=2).transpose(1, 2)
        stages: Any = (
            (self.tablock1, self.conv1, self.swintransformer1),
            (self.tablock2, self.conv2, self.swintransformer2),
        )
        for attention, conv, swin in stages:
            x_BCN = swin(conv(attention(x_BCN).unflatten(2, self.grid)), scale).flatten(2)
        x_BNC = x_BCN.transpose(1, 2)
        return weighted_mean(self.fc_score(x_BNC)[..., 0], self.fc_weight(x_BNC)[..., 0])


def weighted_mean(score_BN: Tensor, weight_BN: Tensor) -> Tensor:
    """Return the mean score [B] of the tokens, each with its own weight."""
    return (score_BN * weight_BN).sum(dim=1) / weight_BN.sum(dim=1)


class ManiqaFile:
    """One published network in float32, loaded at first use."""

    def __init__(self, weights: Weights, file: str, device: torch.device) -> None:
        self.weights, self.file, self.device = weights, file, device

    def score(self, pictures: Sequence[Tensor], *, scale: float) -> Tensor:
        """Return [B]: the mean over each picture's crops, which are one batch, so that no other picture matters."""
        scores = []
        for crops in pictures:
            crops_BCHW = crops.to(self.device).float().div(255).sub(0.5).div(0.5)
            scores.append(self.network(crops_BCHW, scale).double().mean())
        return torch.stack(scores).float()

    @cached_property
    def network(self) -> Maniqa:
        """The loaded network. Raises UserError where its weights cannot be used."""
        kept = {
            name: value
            for name, value in self.weights.tensors(self.file).items()
            if not name.startswith(UNREAD) and not name.endswith(BUFFERS)
        }
        where = f"{self.weights.folder() / self.file}: not the weights of MANIQA ({{}}); {self.weights.mend}"
        return load_strictly(lambda: Maniqa(SIZES), kept, where, self.device)


SIZES = Sizes()


def _output(file: ManiqaFile, rule: Rule, scale: float) -> Encoder:
    crops = Crops(rule=rule)
    return Encoder(
        reads="image",
        forward=partial(file.score, scale=scale),
        preprocessing=lambda: crops,
        weights=file.weights,
    )


@register_encoders("maniqa/pipal")
def pipal(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"grid": at the scale it was trained with, "dp_dmd": at the one that DP-DMD's script sets}."""
    file = ManiqaFile(manifest("maniqa-pipal"), "MANIQA_PIPAL-ae6d356b.pth", device)
    return {"grid": _output(file, "grid", 0.13), "dp_dmd": _output(file, "dp_dmd", 0.8)}


@register_encoders("maniqa/koniq")
def koniq(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"grid", "official"}: two ways to cut the crops."""
    file = ManiqaFile(manifest("maniqa-koniq10k"), "ckpt_koniq10k.pt", device)
    return {"grid": _output(file, "grid", 0.8), "official": _output(file, "official", 0.8)}
