"""GenEval's perceiver as encoders: per picture the detections by class, with colours where the prompt asks for one.

    geneval/mmdet    Mask2Former Swin-S, weights of mmdet's run, which GenEval uses
    geneval/meta     the same architecture, weights of Meta's own run: other scores at the same cuts

Outputs: "detections"; "detections-swapped", which sees red and blue exchanged, as Flow-GRPO's reward does.
Axes: B pictures with their prompts.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from metrics.base import Prompt
from metrics.encoders.published import clip_l14
from metrics.features import Encoder, register_encoders
from metrics.geneval.classes import CLASSES
from metrics.geneval.colour import ColourClassifier, cut_out
from metrics.geneval.mask2former import Detector, MmdetPictures, PreparedBatch, full_masks, read_out
from metrics.geneval.verdict import Constants, Detected, Detections, keep
from metrics.weights import manifest

LEAST = 0.05  # detections below are not kept as evidence; far below every cut
REAL = Constants(classes=frozenset(CLASSES))


class Perceiver:
    """A detector and the colour classifier behind it."""

    def __init__(self, detector: Detector, colours: ColourClassifier) -> None:
        self.detector, self.colours = detector, colours

    def perceive(self, batch: PreparedBatch, prompts: Sequence[Prompt]) -> list[Detections]:
        """Return the detections of B pictures; `handle` is the colour, "" where no verdict can ask for it."""
        found: list[Detections] = []
        for one, prompt, (class_logits, mask_logits) in zip(
            batch.pictures, prompts, self.detector.logits(batch), strict=True
        ):
            size = one.picture.shape[:2]
            by_class: dict[str, list[Detected]] = {}
            for entry in read_out(class_logits, mask_logits, one.resized, size, LEAST):
                if entry.score >= LEAST:
                    by_class.setdefault(CLASSES[entry.label], []).append(
                        Detected(entry.box, entry.score, entry.query)
                    )
            asked = [(name, object_) for name in coloured(prompt) for object_ in self._kept(by_class, name, prompt)]
            crops = []
            for _, object_ in asked:
                mask_HW = full_masks(mask_logits[object_.handle][None], one.resized, size)[0] > 0
                crops.append(cut_out(one.picture, mask_HW.cpu().numpy(), object_.box))
            named = self.colours.name(crops, [name for name, _ in asked])
            colour_of = {(name, id(object_)): colour for (name, object_), colour in zip(asked, named, strict=True)}
            found.append(
                {
                    name: [Detected(o.box, o.score, colour_of.get((name, id(o)), "")) for o in objects]
                    for name, objects in by_class.items()
                }
            )
        return found

    def _kept(self, by_class: Mapping[str, list[Detected]], name: str, prompt: Prompt) -> list[Detected]:
        tag = str(prompt.metadata.get("tag", prompt.category))
        return keep({name: by_class.get(name, [])}, tag, REAL).get(name, [])


def coloured(prompt: Prompt) -> list[str]:
    """Return the classes whose colour a prompt's record asks for."""
    clauses = prompt.metadata.get("include", ())
    return list(dict.fromkeys(clause["class"] for clause in clauses if "color" in clause))


@register_encoders("geneval/mmdet")
def mmdet(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders with mmdet's weights."""
    weights = manifest("mask2former-swin-s-mmdet")
    return _encoders("geneval/mmdet", Detector(weights, device, mmdet=True))


@register_encoders("geneval/meta")
def meta(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders with Meta's weights."""
    weights = manifest("mask2former-swin-s-meta")
    return _encoders("geneval/meta", Detector(weights, device, mmdet=False))


def _encoders(name: str, detector: Detector) -> Mapping[str, Encoder]:
    clip = clip_l14(detector.device)
    perceiver = Perceiver(detector, ColourClassifier(clip, detector.device))
    see = partial(Encoder, reads="pair", forward=perceiver.perceive, weights=detector.weights)
    # A head that changes nothing: by it, CLIP's weights belong to the metric's, too.
    with_clip = partial(Encoder, reads="features", forward=_same, weights=clip["text-openai"].weights)
    return {
        "seen": see(preprocessing=MmdetPictures),
        "seen-swapped": see(preprocessing=partial(MmdetPictures, swapped=True)),
        "detections": with_clip(inputs=(f"{name}:seen",)),
        "detections-swapped": with_clip(inputs=(f"{name}:seen-swapped",)),
    }


def _same(detections: list[Detections]) -> list[Detections]:
    return detections
