"""GenEval of real pictures: the published metrics, each a logic, a perceiver and an average.

    geneval                    official verdict; mean of the six categories' means ("Overall")
    geneval.images             the same verdicts; share of right pictures
    geneval.prompts            the same verdicts; share of prompts with at least one right picture
    geneval.flow_grpo          Flow-GRPO's soft reward, red and blue swapped before the detector as there
    geneval.flow_grpo_accuracy its accuracy: the official verdict on those detections
    geneval.flow_grpo_strict   its strict accuracy
    geneval.meta               official verdict on Meta's detector weights
    geneval.recorded           official verdict on detections recorded elsewhere (metrics/recorded.py)

Axes: B images of one batch, N of a set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metrics.base import Batch, Card, Features, Prompt, Rows, Summary, register
from metrics.geneval.detector import REAL
from metrics.geneval.metric import FlowGrpoGenEval, GenEval
from metrics.geneval.verdict import Detections

CARD = Card(
    id="geneval",
    version=1,
    title="GenEval",
    unit="fraction correct",
    higher_is_better=True,
    range=(0.0, 1.0),
    source="Ghosh et al. 2023, arXiv:2310.11513: evaluate_images.py and summary_scores.py (Overall)",
    description="Share of pictures that show what their prompt asks for: one object, two, a number of them, a "
    "colour, a position, two colours. A detector finds the objects and CLIP names their colours.",
    perceiver="mask2former-swin-s/hf-mmdet-weights",
    aggregate="categories",
    preprocessing="longer side at most 1333, shorter at most 800, OpenCV bilinear; colours: PIL bicubic, 224, crop",
    comparable="With GenEval tables made by the authors' program: the verdict is bit for bit the same, detector and "
    "colours run in float32 here and in mixed precision there. Not with geneval.meta, whose detector is less sure at "
    "the same cuts, nor with RTDMD's column, which averages another way.",
    fooled_by="Extra objects are free except in counting; colour and position look at the most confident object "
    "only. Bare, frontal objects on plain ground score best.",
    reported_scale="GenEval and most papers: as here",
    citation="Ghosh, Hajishirzi, Schmidt: GenEval: An Object-Focused Framework for Evaluating Text-to-Image "
    "Alignment, 2023, arXiv:2310.11513. Detector: Cheng et al. 2022, arXiv:2112.01527, trained by mmdetection",
)
DETECTIONS = ("geneval/mmdet:detections",)
FLOW_GRPO: Mapping[str, Any] = {
    "variant": "flow_grpo",
    "citation": "Liu et al.: Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv:2505.05470",
    "aggregate": "prompts",
}


@register
class GenEvalOverall(GenEval):
    card = CARD
    features = DETECTIONS
    constants = REAL


@register
class GenEvalImages(GenEval):
    card = replace(
        CARD,
        id="geneval.images",
        title="GenEval (images)",
        source="Ghosh et al. 2023, arXiv:2310.11513: summary_scores.py, % correct images",
        description="GenEval's verdicts averaged over pictures: categories weigh by their number of prompts.",
        aggregate="prompts",
    )
    features = DETECTIONS
    constants = REAL


@register
class GenEvalPrompts(GenEval):
    card = replace(
        CARD,
        id="geneval.prompts",
        title="GenEval (prompts)",
        source="Ghosh et al. 2023, arXiv:2310.11513: summary_scores.py, % correct prompts",
        description="Share of prompts of which at least one picture is right; it rises with the number of pictures.",
        aggregate="prompts",
    )
    features = DETECTIONS
    constants = REAL

    def summarise(self, rows: Rows, prompts: Sequence[Prompt]) -> Summary:
        """Return, for every picture, whether any picture of its prompt is right."""
        score_N = rows["score"]
        assert isinstance(score_N, torch.Tensor)
        best: dict[str, float] = {}
        for score, prompt in zip(score_N.tolist(), prompts, strict=True):
            best[prompt.id] = max(score, best.get(prompt.id, 0.0))
        return Summary(per_image_N=np.array([best[prompt.id] for prompt in prompts], np.float32))


@register
class GenEvalMeta(GenEval):
    card = replace(
        CARD,
        id="geneval.meta",
        title="GenEval (Meta's detector)",
        perceiver="mask2former-swin-s/hf-meta",
        description="GenEval's verdict on Mask2Former with Meta's weights, which the hub serves. Its scores are "
        "calibrated otherwise, and so the cuts at 0.3 and 0.9 cut elsewhere.",
        comparable="With geneval.meta only.",
        reported_scale="",
    )
    features = ("geneval/meta:detections",)
    constants = REAL


@register
class GenEvalFlowGrpo(FlowGrpoGenEval):
    card = replace(
        CARD,
        id="geneval.flow_grpo",
        title="GenEval (Flow-GRPO, soft)",
        unit="credit",
        range=(-14.0, 1.0),
        source="Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO): GenEval reward of the authors' code",
        description="Mean of partial credits for objects, counts, colours and positions. A wrong position keeps half "
        "of its credit, 16 objects instead of 1 cost 15. Its detector sees red and blue exchanged, as there.",
        comparable="With Flow-GRPO's reward curves, but for the JPEG its trainer sends to the detector. RTDMD "
        "reports soft, strict and official values and does not say which one is its GenEval column.",
        fooled_by="Partial credit: the right objects in the wrong places keep half of it.",
        reported_scale="Flow-GRPO: as here",
        **FLOW_GRPO,
    )
    features = ("geneval/mmdet:detections-swapped",)
    constants = REAL


@register
class GenEvalFlowGrpoAccuracy(GenEval):
    card = replace(
        CARD,
        id="geneval.flow_grpo_accuracy",
        title="GenEval (Flow-GRPO, accuracy)",
        source="Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO): accuracy of the authors' code",
        description="Share of pictures that GenEval's official verdict calls right, as Flow-GRPO's evaluation writes "
        "it: its detector sees red and blue exchanged, and pictures are averaged, not categories.",
        comparable="With the accuracy of Flow-GRPO's and RTDMD's evaluation. Not with geneval, whose detector sees "
        "the right colours and which averages over categories.",
        **FLOW_GRPO,
    )
    features = ("geneval/mmdet:detections-swapped",)
    constants = REAL


@register
class GenEvalFlowGrpoStrict(FlowGrpoGenEval):
    card = replace(
        CARD,
        id="geneval.flow_grpo_strict",
        title="GenEval (Flow-GRPO, strict)",
        source="Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO): strict accuracy of the authors' code",
        description="Share of pictures with exactly the objects, colours and positions asked for; extra objects of a "
        "named class count as a failure. Its detector sees red and blue exchanged, as there.",
        comparable="With the strict accuracy of Flow-GRPO's and RTDMD's evaluation.",
        **FLOW_GRPO,
    )
    features = ("geneval/mmdet:detections-swapped",)
    constants = REAL
    column = "strict"


@register
class GenEvalRecorded(GenEval):
    card = replace(
        CARD,
        id="geneval.recorded",
        title="GenEval (recorded detections)",
        perceiver="recorded",
        description="GenEval's verdict on detections that another program recorded, such as mmdet itself.",
        comparable="With tables made from the same detector. Nothing here can check what made the file.",
    )
    features = ("recorded:detections",)
    constants = REAL

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return the rows of recorded detections, found by prompt id and seed; errors as of `GenEval.measure`."""
        tables = features[self.features[0]]
        found: list[Mapping[str, Detections]] = [
            table.of(prompt, seed) for table, prompt, seed in zip(tables, batch.prompts, batch.seeds, strict=True)
        ]
        return super().measure({self.features[0]: found}, batch)
