"""Verdicts on pictures of the micro world, by the very functions that `shapes_geneval` is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.geneval.metric import SHAPES, detect_shapes, named_colours
from metrics.geneval.verdict import Detections, judge
from metrics.micro.prompts import TAGS


def is_right(detections: Detections, record: Mapping[str, Any]) -> bool:
    """Return whether a picture with these objects fulfils a prompt's record."""
    return judge(detections, record, named_colours, SHAPES).correct


def judge_all(pictures_NHW3: np.ndarray, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return bool [N], one verdict per uint8 picture and record."""
    found = detect_shapes(list(pictures_NHW3))
    return np.array([is_right(detections, record) for detections, record in zip(found, records, strict=True)])


def accuracies(correct: np.ndarray, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of right pictures per category, and "overall": the unweighted mean of the six."""
    tags = np.array([record["tag"] for record in records])
    shares = {tag: float(correct[tags == tag].mean()) for tag in TAGS}
    return {"overall": float(np.mean(list(shares.values())))} | shares
