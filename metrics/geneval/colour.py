"""GenEval's colour of an object: zero-shot CLIP ViT-L/14 on the object alone, painted on grey, cut to its box.

    weight of colour k = normalise(mean of normalise(g(t)) for t in the three texts below)
    colour = argmax over k of 100 f(crop) . weight_k, the first one on ties

"a photo of a {k} {class}", "a photo of a {k}-colored {class}", "a photo of a {k} object": always "a", and the class
by GenEval's name. CLIP must be built with quick GELU, as OpenAI trained it; its crop keeps the middle of a long one.
Source: GenEval's program (Ghosh et al. 2023) on clip_benchmark 1.4. Departure: float32, where upstream runs in half
precision on a GPU, so that near ties may fall otherwise. Axes: B crops, K colours, D embedding size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.features import Encoder
from metrics.geneval.verdict import GENEVAL_COLOURS, Box

GREY = (153, 153, 153)
BATCH = 16


class ColourClassifier:
    """Names the colours of objects; a class's text weights are computed once."""

    def __init__(self, clip: Mapping[str, Encoder], device: torch.device) -> None:
        """clip: the encoders of CLIP ViT-L/14, of which OpenAI's tokens and crop are used."""
        self.image, self.text, self.device = clip["image-openai"], clip["text-openai"], device
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def name(self, crops: Sequence[Image.Image], classes: Sequence[str]) -> list[str]:
        """Return a colour for each crop of an object of a class."""
        named: list[str] = []
        for start in range(0, len(crops), BATCH):
            some = slice(start, start + BATCH)
            seen_BD = F.normalize(self._embed(crops[some]), dim=-1)
            weights_BKD = torch.stack([self.weights(one) for one in classes[some]])
            logits_BK = 100 * (weights_BKD @ seen_BD[:, :, None])[..., 0]
            named += [GENEVAL_COLOURS[index] for index in logits_BK.argmax(dim=1).tolist()]
        return named

    def weights(self, name: str) -> Tensor:
        """Return the text weights [K, D] of a class."""
        if name not in self._weights:
            texts = [text for colour in GENEVAL_COLOURS for text in texts_of(colour, name)]
            embedded = F.normalize(_picked(self.text)(texts), dim=-1)
            means_KD = embedded.unflatten(0, (len(GENEVAL_COLOURS), -1)).mean(dim=1)
            self._weights[name] = F.normalize(means_KD, dim=-1)
        return self._weights[name]

    def _embed(self, crops: Sequence[Image.Image]) -> Tensor:
        assert self.image.preprocessing is not None  # it reads pictures
        return _picked(self.image)(self.image.preprocessing().from_pil(crops).to(self.device))


def _picked(encoder: Encoder) -> Callable[..., Tensor]:
    return lambda inputs: encoder.pick(encoder.forward(inputs)) if encoder.pick else encoder.forward(inputs)


def texts_of(colour: str, name: str) -> tuple[str, str, str]:
    """Return the three texts of one colour and class."""
    return f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}", f"a photo of a {colour} object"


def cut_out(picture_HW3: np.ndarray, mask_HW: np.ndarray, box: Box) -> Image.Image:
    """Return the object alone on grey, cut to its box (right and bottom exclusive)."""
    painted = np.where(mask_HW[..., None], picture_HW3, np.array(GREY, np.uint8))
    x1, y1, x2, y2 = (int(value) for value in box)
    return Image.fromarray(painted[y1:y2, x1:x2])
