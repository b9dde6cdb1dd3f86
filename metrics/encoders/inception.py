"""The Inception network behind FID: TensorFlow's of 2015-12-05, on torchvision's blocks.

    pool      [B, 2048]   mean over the last map
    logits    [B, 1008]   pool W^T without the bias, as the Inception Score takes them
    spatial   [B, 2023]   the first 7 channels of Mixed_6d's 1x1 branch, 17 x 17, in the order H, W, C (sFID)

Three settings tell it from torchvision's: averages leave out the padding, the last block pools by the maximum, and
there are 1008 classes. Keys of the published file are torchvision's own names.

Pictures reach it by one of two roads, which differ more than most models do:

    clean   every channel as floats, PIL bicubic to 299 x 299, clipped, not rounded      (Parmar et al. 2022)
    tf1     TensorFlow 1's bilinear: corner to corner, no antialias                      (ADM, EDM, torch-fidelity)

Both end in (x - 128) / 128. Source: Heusel et al. 2017, arXiv:1706.08500; clean-fid 0.1.35; torch-fidelity 0.4.0.
Axes: B images, C channels, H x W pixels, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception as blocks

from metrics.base import UserError
from metrics.encoders.towers import load_strictly
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Preprocessing
from metrics.weights import Weights, manifest

SIDE, CLASSES, SPATIAL_CHANNELS = 299, 1008, 7
FILE = "weights-inception-2015-12-05-6726825d.pth"
LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


def average_without_padding(x_BCHW: Tensor) -> Tensor:
    """Return 3 x 3 means over what lies inside the map."""
    return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class _OwnPool(nn.Module):
    """The last branch of a torchvision block, behind another pooling."""

    pool: Callable[[Tensor], Tensor] = staticmethod(average_without_padding)
    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        branches: list[Tensor] = super()._forward(x)  # type: ignore[misc]
        branches[-1] = self.branch_pool(type(self).pool(x))
        return branches


class BlockA(_OwnPool, blocks.InceptionA):
    """Mixed_5b to 5d."""


class BlockC(_OwnPool, blocks.InceptionC):
    """Mixed_6b to 6e."""


class BlockE(_OwnPool, blocks.InceptionE):
    """Mixed_7b."""


class LastBlock(_OwnPool, blocks.InceptionE):
    """Mixed_7c."""

    pool = staticmethod(lambda x: F.max_pool2d(x, 3, stride=1, padding=1))


class FidInception(blocks.Inception3):
    """The network; `forward` takes [B, 3, 299, 299] in [-1, 1]."""

    def __init__(self) -> None:
        kinds: list[Callable[..., nn.Module]] = [
            *(blocks.BasicConv2d, BlockA, blocks.InceptionB, BlockC, blocks.InceptionD, BlockE),
            blocks.InceptionAux,
        ]
        super().__init__(CLASSES, aux_logits=False, inception_blocks=kinds, init_weights=False)
        self.Mixed_7c = LastBlock(2048)

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Return {"pool", "logits", "spatial"}."""
        x, spatial = pixels_BCHW, pixels_BCHW
        for name in LAYERS:
            if name == "Mixed_6d":
                spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
            x = getattr(self, name)(x)
        pool = x.mean(dim=(2, 3))
        return {
            "pool": pool,
            "logits": pool @ self.fc.weight.T,
            "spatial": spatial.permute(0, 2, 3, 1).flatten(start_dim=1),
        }


@dataclass(frozen=True, kw_only=True)
class CleanResize:
    """clean-fid's: floats, PIL bicubic (antialiased), clipped, not rounded."""

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [B, 3, 299, 299] in [-1, 1]."""
        return _normalised([self._resized(image) for image in images])

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Raises UserError: PIL's resizing has no gradient."""
        raise UserError("a distance between sets has no gradient here; call the metric on pictures")

    def _resized(self, image: Image.Image) -> np.ndarray:
        channels = [Image.fromarray(channel) for channel in np.asarray(image, np.float32).transpose(2, 0, 1)]
        resized = [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
        return np.stack(resized).clip(0, 255)


@dataclass(frozen=True, kw_only=True)
class Tf1Resize:
    """TensorFlow 1's bilinear resizing: pixel i comes from i in / out, between its two neighbours."""

    def from_pil(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [B, 3, 299, 299] in [-1, 1]."""
        return _normalised([self._resized(np.asarray(image)) for image in images])

    def from_tensor(self, images_BCHW: Tensor) -> Tensor:
        """Raises UserError: this road is for 8-bit pictures."""
        raise UserError("a distance between sets has no gradient here; call the metric on pictures")

    def _resized(self, pixels_HWC: np.ndarray) -> np.ndarray:
        top, bottom, down = self._neighbours(pixels_HWC.shape[0])
        left, right, across = self._neighbours(pixels_HWC.shape[1])
        rows, places = np.unique(np.concatenate((top, bottom)), return_inverse=True)  # each row across once
        wanted = pixels_HWC[rows]
        wide = _between(wanted.take(left, axis=1), wanted.take(right, axis=1), across[:, None])
        return _between(wide[places[:SIDE]], wide[places[SIDE:]], down[:, None, None]).transpose(2, 0, 1)

    @staticmethod
    def _neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both neighbours of every target pixel, and how far it lies from the first one."""
        source = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        first = np.floor(source).astype(int)
        return first, np.minimum(first + 1, size - 1), source - first.astype(np.float32)


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return first + (second - first) * share in float32."""
    between = second.astype(np.float32)
    between -= first
    between *= share
    between += first
    return between


def _normalised(pictures: Sequence[np.ndarray]) -> Tensor:
    pixels_BCHW = np.ascontiguousarray(np.stack(pictures), np.float32)
    pixels_BCHW -= 128  # in this thread alone: the network's are busy with the batch before
    pixels_BCHW /= 128
    return torch.from_numpy(pixels_BCHW)


class InceptionFile:
    """The network in float32, loaded at first use."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights, self.device = weights, device

    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Return {"pool", "logits", "spatial"} of normalised pictures."""
        return self.network(pixels_BCHW)

    @cached_property
    def network(self) -> FidInception:
        """The loaded network. Raises UserError where its weights cannot be used."""
        tensors = self.weights.tensors(FILE)
        counters = {name: torch.tensor(0) for name in _batch_counters(tensors)}  # of training, in some files only
        where = f"{self.weights.folder() / FILE}: not the weights of this network ({{}}); {self.weights.mend}"
        return load_strictly(FidInception, counters | tensors, where, self.device)


def _batch_counters(tensors: Mapping[str, Tensor]) -> list[str]:
    ending = "running_mean"
    return [f"{name.removesuffix(ending)}num_batches_tracked" for name in tensors if name.endswith(ending)]


def _outputs(resize: Preprocessing, device: torch.device) -> Mapping[str, Encoder]:
    weights = manifest("inception-2015-12-05")
    file = InceptionFile(weights, device)
    return {
        output: Encoder(
            reads="image",
            forward=file.__call__,
            preprocessing=lambda: resize,
            pick=itemgetter(output),
            weights=weights,
        )
        for output in ("pool", "logits", "spatial")
    }


@register_encoders("inception/clean")
def inception_clean(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"pool", "logits", "spatial"} of pictures resized as clean-fid does."""
    return _outputs(CleanResize(), device)


@register_encoders("inception/tf1")
def inception_tf1(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"pool", "logits", "spatial"} of pictures resized as TensorFlow 1 does."""
    return _outputs(Tf1Resize(), device)
