"""LPIPS' networks: the convolutions of AlexNet or VGG-16, tapped at five ReLUs, and a linear head for each tap.

    net     tapped layers of torchvision's `features`     channels
    alex    1, 4, 7, 9, 11   (relu1 … relu5)              64, 192, 384, 256, 256
    vgg     3, 8, 15, 22, 29 (relu1_2 … relu5_3)          64, 128, 256, 512, 512

Source: Zhang et al. 2018, arXiv:1801.03924, Sec. 3; package lpips 0.1.4, weights "0.1". The trunks are torchvision's
ImageNet classifiers, whose own last layers are not read. Pictures keep their size.
Axes: B images, C = 3 channels, H x W pixels; a tap is [B, channels, h, w].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from metrics.base import Prompt
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.images import to_tensor
from metrics.lpips import lpips_distance, mean_pairwise_lpips
from metrics.weights import Weights, manifest

Net = Literal["alex", "vgg"]
TAPS: dict[str, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in [-1, 1], inside the package's network


@dataclass(frozen=True, kw_only=True)
class NativeSize:
    """Floats in [-1, 1], shifted and scaled as the package does; pictures of a batch may differ in size."""

    def from_pil(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Return B tensors [1, 3, H, W], each of its picture's own size."""
        return [self.from_tensor(to_tensor([image])) for image in images]

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, 3, H, W] of floats in [0, 1], differentiably."""
        shift_C11 = images_BCHW.new_tensor(SHIFT)[:, None, None]
        scale_C11 = images_BCHW.new_tensor(SCALE)[:, None, None]
        return (2 * images_BCHW - 1 - shift_C11) / scale_C11


class LpipsNetwork(nn.Module):
    """Trunk and heads under the names that their files use."""

    def __init__(self, net: Net) -> None:
        from torchvision import models

        super().__init__()
        whole = models.alexnet(weights=None) if net == "alex" else models.vgg16(weights=None)
        self.features = whole.features[: TAPS[net][-1] + 1]
        self.lin = nn.ParameterList(nn.Parameter(torch.empty(channels)) for channels in CHANNELS[net])
        self.taps = TAPS[net]

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Return the five taps of what `NativeSize` gave."""
        taps = []
        for index, layer in enumerate(self.features):
            pixels_BCHW = layer(pixels_BCHW)
            if index in self.taps:
                taps.append(pixels_BCHW)
        return taps

    @property
    def heads(self) -> list[Tensor]:
        """The non-negative weight of each channel, [channels] for each tap."""
        return list(self.lin)


class LpipsFile:
    """One network in float32, loaded at first use."""

    def __init__(self, net: Net, device: torch.device, weights: Weights | None = None) -> None:
        self.net, self.device = net, device
        self.weights = weights or manifest(f"lpips-{net}")

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Return LPIPS [B] of floats in [0, 1], differentiable in both."""
        prepare = NativeSize().from_tensor
        return lpips_distance(self.network(prepare(a_BCHW)), self.network(prepare(b_BCHW)), self.network.heads)

    def diversity(self, pictures: Sequence[Tensor], prompts: Sequence[Prompt]) -> Tensor:
        """Return [B]: for every picture, the mean LPIPS over all pairs of its prompt's pictures in this batch.

        Raises: UserError where a prompt has one picture, or pictures of several sizes."""
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt.id or prompt.text, []).append(index)
        values_B = torch.empty(len(prompts), dtype=torch.float64)
        for name, members in groups.items():
            # One picture at a time: a VGG's taps of 1024 x 1024 pixels take half a gigabyte.
            taps = (self.network(pictures[index].to(self.device)) for index in members)
            values_B[members] = mean_pairwise_lpips(taps, self.network.heads, f"prompt {name!r}: ")
        return values_B.float()

    @cached_property
    def network(self) -> LpipsNetwork:
        """The loaded network. Raises UserError where its weights cannot be used."""
        trunk, heads = self.weights.tensors(TRUNKS[self.net]), self.weights.tensors(f"{self.net}.pth")
        tensors = {name: value for name, value in trunk.items() if name.startswith("features.")}
        for name, value in heads.items():  # lin0.model.1.weight [1, channels, 1, 1]
            tensors[name.removesuffix(".model.1.weight").replace("lin", "lin.")] = value.flatten()
        where = f"{self.weights.folder()}: not the weights of LPIPS ({{}}); {self.weights.mend}"
        return load_strictly(lambda: LpipsNetwork(self.net), tensors, where, self.device)


def load_lpips(net: Net, device: torch.device) -> LpipsFile:
    """Return LPIPS as a differentiable distance: `load_lpips("alex", device).distance(a, b)`."""
    return LpipsFile(net, device)


@register_encoders("lpips/alex")
def lpips_alex(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"diversity"} through AlexNet."""
    return _outputs(LpipsFile("alex", device))


@register_encoders("lpips/vgg")
def lpips_vgg(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"diversity"} through VGG-16."""
    return _outputs(LpipsFile("vgg", device))


def _outputs(file: LpipsFile) -> Mapping[str, Encoder]:
    forward, weights = file.diversity, file.weights
    return {"diversity": Encoder(reads="pair", forward=forward, preprocessing=NativeSize, weights=weights)}
