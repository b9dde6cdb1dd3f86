"""DINO class score: how sure an ImageNet classifier is that a picture shows the class that was asked for.

    s(x, y) = log p(y | x),   p = softmax of DINOv2's linear classifier (metrics/encoders/dino_classifier.py)

As a reward it is minus the cross entropy of DMDR's ImageNet demonstration, which adds 0.05 of that to its loss. The
class y is the number under `class` in a prompt's metadata, or the prompt itself where it is one ("207").

    dino_class           DINOv2 ViT-L/14, the authors' head on four layers: DMDR's
    dino_class.base      DINOv2 ViT-B/14, transformers' head on one layer: a third of the memory

Source: the released code of DMDR, train_cc/sit; the classifiers: Oquab et al. 2023, arXiv:2304.07193. Departure:
float32, where that code runs the classifier in bfloat16.
Axes: B images, K = 1000 classes.
"""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from metrics.base import Batch, Card, Features, PerImage, Prompt, ReadsRecords, Rows, UserError, register
from metrics.clip import NO_GAP
from metrics.encoders.dino_classifier import CLASSES

CARD = Card(
    id="dino_class",
    version=1,
    title="DINO class score (DINOv2 ViT-L, 4 layers)",
    unit="log-probability",
    higher_is_better=True,
    range=(-math.inf, 0.0),
    source="log softmax of DINOv2's published linear ImageNet classifier at the class asked for; the released code "
    "of DMDR (train_cc/sit), where its mean is minus the reward loss",
    description="How sure a strong ImageNet classifier is that a picture shows the class that was asked for: 0 is "
    "certain, -6.9 is chance. For class-conditional models; a prompt must say its class.",
    differentiable=True,
    preprocessing="floats, both sides to 224 whatever the aspect ratio, antialiased bicubic; the same as a reward",
    comparable="Between pictures of the same classes, in equal shares. Never across classifiers, and not with "
    "accuracies: one very unsure picture moves the mean more than many sure ones.",
    fooled_by="Typical pictures of a class, one object in the middle, beat unusual true ones: a model that draws one "
    "good picture of each class is rated best. Trained on it, a model grows surer than photographs and less "
    "diverse; read recall beside it.",
    tensor_gap=NO_GAP,
    reported_scale="DMDR's training: minus this, times 0.05",
    citation="Oquab et al.: DINOv2: Learning Robust Visual Features without Supervision, 2023, arXiv:2304.07193",
)


def asked_class(prompt: Prompt) -> int:
    """Return the class number of a prompt. Raises UserError where it says none in 0 ... K - 1."""
    stated = prompt.metadata.get("class", prompt.text)
    number = int(stated) if str(stated).isascii() and str(stated).isdigit() else -1
    if not 0 <= number < CLASSES:
        raise UserError(
            f"dino_class: prompt {prompt.id or prompt.text!r} names no ImageNet class; write its number, 0 to "
            f'{CLASSES - 1}, as the prompt or under "class" beside it'
        )
    return number


class DinoClass(PerImage, ReadsRecords):
    """Base of the variants: a card and the key of log p."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where a prompt names no class."""
        asked_class(prompt)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": log p_B of each image's own class}. Raises UserError where a prompt names none."""
        (key,) = self.features
        log_p_BK: Tensor = features[key]
        classes_B = torch.tensor([asked_class(prompt) for prompt in batch.prompts], device=log_p_BK.device)
        return {"score": log_p_BK.gather(1, classes_B[:, None])[:, 0]}


@register
class DinoClassLarge(DinoClass):
    card = CARD
    features = ("dinov2-l/imagenet4:log_probabilities",)


@register
class DinoClassBase(DinoClass):
    card = replace(
        CARD,
        id="dino_class.base",
        title="DINO class score (DINOv2 ViT-B, 1 layer)",
        variant="base",
        source="dino_class's formula on transformers' dinov2-base-imagenet1k-1-layer",
        description="dino_class through a smaller classifier, which takes a third of the memory. Held out where a "
        "model was trained on dino_class, it shows how much of a rise is the classifier's own taste.",
        reported_scale="",
    )
    features = ("dinov2-b/imagenet1:log_probabilities",)
