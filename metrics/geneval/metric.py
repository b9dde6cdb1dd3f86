"""GenEval as a metric: a perceiver's detections, judged by the verdict engine, one row per image.

Features are, per image, the engine's input: detections by class, each with the name of its colour as `handle`. So
this file knows neither pictures nor detectors, and a variant is a card, a perceiver's key and the engine's constants.
`shapes_geneval` is fed by the exact shape detector of the micro world.

Value: unweighted mean over the categories (Ghosh et al. 2023, "Overall"). Axes: B images.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from metrics.base import Batch, Card, Features, PerImage, Prompt, ReadsRecords, Rows, register
from metrics.features import Encoder, register_encoders
from metrics.geneval.verdict import Constants, Detected, Detections, check_record, judge, judge_flow_grpo
from metrics.micro.shapes import detect
from metrics.micro.world import COLOURS
from metrics.preprocessing import Uint8

SHAPES = Constants(colours=tuple(COLOURS))


class GenEval(PerImage, ReadsRecords):
    """Base of GenEval variants: the official verdict, 1 where the picture shows what the prompt asks for."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str]]
    constants: ClassVar[Constants]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise UserError where a prompt has no GenEval record or a malformed one."""
        check_record(record_of(prompt), self.constants)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": 0 or 1, "reason": one line per failure, "detections": JSON}, B of each.

        Raises: UserError where a prompt has no GenEval record or a malformed one.
        """
        detections: Sequence[Detections] = features[self.features[0]]
        verdicts = [
            judge(found, record_of(prompt), named_colours, self.constants)
            for found, prompt in zip(detections, batch.prompts, strict=True)
        ]
        return {
            "score": torch.tensor([float(verdict.correct) for verdict in verdicts]),
            "reason": [verdict.reason for verdict in verdicts],
            "detections": [detections_json(found) for found in detections],
        }


class FlowGrpoGenEval(GenEval):
    """Base of soft variants: Flow-GRPO's reward, a mean of partial credits."""

    column: ClassVar[Literal["soft", "strict"]] = "soft"  # what the score is

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": soft credit, at most 1 (or "strict"), "strict": 0 or 1, "detections": JSON}, B of each;
        errors alike."""
        detections: Sequence[Detections] = features[self.features[0]]
        verdicts = [
            judge_flow_grpo(found, record_of(prompt), named_colours, self.constants)
            for found, prompt in zip(detections, batch.prompts, strict=True)
        ]
        soft_B = torch.tensor([float(verdict.soft) for verdict in verdicts])
        strict_B = torch.tensor([float(verdict.strict_correct) for verdict in verdicts])
        return {
            "score": soft_B if self.column == "soft" else strict_B,
            "strict": strict_B,
            "detections": [detections_json(found) for found in detections],
        }


def record_of(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt's GenEval record; its tag is the prompt's category unless the metadata names one."""
    return {"tag": prompt.category, **prompt.metadata, "prompt": prompt.text}


def named_colours(name: str, handles: list[Any]) -> list[str]:
    """The colour oracle of perceivers that already named the colours: handles are the names."""
    return handles


def detections_json(detections: Detections) -> str:
    """Return detections as JSON, {class: [[x1, y1, x2, y2, score, colour], ...]}: enough to judge again."""
    return json.dumps(
        {
            name: [[*found.box, found.score, found.handle] for found in objects]
            for name, objects in detections.items()
        },
        sort_keys=True,
    )


@register_encoders("shapes")
def shape_detector(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"detections"} of the micro world's exact detector: numpy on the CPU, nothing learned."""
    return {"detections": Encoder(reads="image", forward=detect_shapes, preprocessing=Uint8)}


def detect_shapes(images: Sequence[np.ndarray]) -> list[Detections]:
    """Return the detections of B uint8 pictures [H, W, 3] by shape, most certain first, with colours as handles."""
    found: list[Detections] = []
    for image_HW3 in images:
        by_shape: dict[str, list[Detected]] = {}
        for detection in detect(image_HW3):
            by_shape.setdefault(detection.shape, []).append(
                Detected(box=detection.box, score=detection.score, handle=detection.colour)
            )
        found.append(by_shape)
    return found


@register
class ShapesGeneval(GenEval):
    card = Card(
        id="shapes_geneval",
        version=1,
        title="micro GenEval",
        unit="fraction correct",
        higher_is_better=True,
        range=(0.0, 1.0),
        source="Ghosh et al. 2023, arXiv:2310.11513: verdict engine of the evaluation program, overall score",
        description="Share of pictures of shapes that show what their prompt asks for: objects, count, colours, "
        "positions. The micro world's judge: its detector is exact on clean shapes and drops malformed ones. Extra "
        "objects are free except in counting, as in GenEval.",
        perceiver="shapes",
        aggregate="categories",
        preprocessing="8-bit RGB at its own size",
        micro=True,
        comparable="Between pictures of the micro world, on the same prompts. Never with GenEval of real pictures: "
        "the verdict is the same, the detector and the objects are not.",
        fooled_by="Objects that nobody asked for are free except in counting. Shapes of one colour that touch are "
        "seen as one malformed blob and dropped, so a crowded right picture is judged wrong.",
        citation="Ghosh, Hajishirzi, Schmidt: GenEval: An Object-Focused Framework for Evaluating Text-to-Image "
        "Alignment, 2023, arXiv:2310.11513",
    )
    features = ("shapes:detections",)
    constants = SHAPES


@register
class ShapesGenevalSoft(FlowGrpoGenEval):
    card = Card(
        id="shapes_geneval_soft",
        version=1,
        title="micro GenEval (soft)",
        unit="credit",
        higher_is_better=True,
        range=(-14.0, 1.0),
        source="Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO): GenEval reward of the authors' code",
        description="Mean of partial credits for objects, counts, colours and positions. Made as a reward: denser "
        "than the verdict, but a wrong position keeps half of its credit and 16 objects instead of 1 cost 15.",
        variant="flow_grpo",
        perceiver="shapes",
        preprocessing="8-bit RGB at its own size",
        micro=True,
        comparable="With itself, as a reward's curve. Not with shapes_geneval: partial credit is not a share of "
        "right pictures, and it can be negative.",
        fooled_by="Partial credit: the right objects in the wrong places keep half of it, so a model can stop at "
        "half.",
        citation="Liu et al.: Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv:2505.05470",
    )
    features = ("shapes:detections",)
    constants = SHAPES
