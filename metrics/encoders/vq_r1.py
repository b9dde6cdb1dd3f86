"""VisualQuality-R1 on transformers' Qwen2.5-VL: what it answers when it is asked to rate a picture.

Greedy decoding, 32 new tokens, and once more with 128 where no rating can be read of them. The folder's own
repetition penalty stays, as in the authors' script. One picture at a time: padding would move bfloat16
logits, and with them the
answer, by what other pictures happen to stand in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Uint8
from metrics.vq_r1 import QUESTION, read_rating
from metrics.vqa.qwen import VisionLanguageModel
from metrics.weights import Weights, manifest

NEW_TOKENS, RETRY_TOKENS = 32, 128
Say = Callable[[np.ndarray, str, int], str]  # picture, question, most new tokens


def rate(say: Say, images: Sequence[np.ndarray]) -> list[str]:
    """Return what is said of each picture [H, W, 3]; where that holds no rating, what is said in more words."""
    answers = []
    for image in images:
        answer = say(image, QUESTION, NEW_TOKENS)
        answers.append(answer if read_rating(answer) is not None else say(image, QUESTION, RETRY_TOKENS))
    return answers


class Rater:
    """The model, loaded at first use."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights, self.device = weights, device

    def answers(self, images: Sequence[np.ndarray]) -> list[str]:
        """Return B answers to B pictures [H, W, 3], uint8. Raises UserError where the weights cannot be used."""
        return rate(self._model.say, images)

    @cached_property
    def _model(self) -> VisionLanguageModel:
        return VisionLanguageModel(self.weights, self.device)


@register_encoders("vq-r1/7b")
def encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"answer"}: a text for each picture."""
    weights = manifest("visualquality-r1-7b")
    rater = Rater(weights, device)
    return {
        "answer": Encoder(
            reads="image", forward=rater.answers, preprocessing=Uint8, weights=weights, precision="bfloat16"
        )
    }
