"""Mask2Former of transformers, prepared and read as mmdet does: GenEval's detector in this environment.

Pictures: longer side at most 1333, shorter at most 800, the aspect kept, OpenCV's bilinear; padded right and below by
grey 128 to a multiple of 32; normalised. Read-out of one picture, from class logits C [Q, 81] and mask logits M:

    p = softmax(C) without "no object"; the top 100 of all Q x 80 (one query may appear under several labels)
    M resized to the padded size, cropped, resized to the picture's own size (bilinear)
    B = M > 0;  m = sum(sigmoid(M) B) / (sum(B) + 1e-6);  score = p m
    box = [min x, min y, max x + 1, max y + 1] of B; of an empty mask [0, 0, 0, 0]

transformers' own post-processing differs (384 x 384 masks, nearest, rounded scores) and is not used.
Source: GenEval's program (Ghosh et al. 2023) and mmdet 2.28.2, mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.
Axes: B pictures, Q queries, H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.base import UserError
from metrics.encoders.towers import load_strictly
from metrics.geneval.classes import CLASSES
from metrics.geneval.mmdet_keys import from_mmdet, without_counterpart
from metrics.geneval.verdict import Box
from metrics.weights import Weights

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

LONGER, SHORTER, MULTIPLE, GREY = 1333, 800, 32, 128
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TOP = 100
AT_ONCE = 8  # masks that are resized together: all of them at 1024 px are half a gigabyte
SWIN_S: Mapping[str, Any] = {
    "embed_dim": 96,
    "depths": [2, 2, 18, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "image_size": 224,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
HEAD: Mapping[str, Any] = {  # Mask2FormerConfig's defaults, said aloud
    "feature_size": 256,
    "mask_feature_size": 256,
    "hidden_dim": 256,
    "encoder_feedforward_dim": 1024,
    "encoder_layers": 6,
    "dim_feedforward": 2048,
    "decoder_layers": 10,
    "num_attention_heads": 8,
    "num_queries": 100,
}


@dataclass(frozen=True)
class Prepared:
    """One picture as the detector reads it, and as it was."""

    pixels_3HW: Tensor  # padded, normalised
    resized: tuple[int, int]  # height and width before padding
    picture: np.ndarray  # uint8 RGB [H, W, 3]


@dataclass(frozen=True)
class PreparedBatch:
    """B prepared pictures of any sizes."""

    pictures: tuple[Prepared, ...]

    def to(self, device: torch.device) -> "PreparedBatch":
        """Return the same on a device."""
        return PreparedBatch(tuple(replace(one, pixels_3HW=one.pixels_3HW.to(device)) for one in self.pictures))


@dataclass(frozen=True, kw_only=True)
class MmdetPictures:
    """mmdet's test pipeline. swapped: red and blue change places, as where Flow-GRPO hands over RGB for BGR."""

    swapped: bool = False

    def from_pil(self, images: Sequence[Image.Image]) -> PreparedBatch:
        """Return B prepared pictures."""
        return PreparedBatch(tuple(self._prepare(np.asarray(image)) for image in images))

    def from_tensor(self, images_BCHW: Tensor) -> PreparedBatch:
        """Raises UserError: a detector's verdict has no gradient."""
        raise UserError("GenEval reads 8-bit pictures, which have no gradient; call the metric instead of its reward")

    def _prepare(self, picture_HW3: np.ndarray) -> Prepared:
        import cv2

        height, width = target_size(*picture_HW3.shape[:2])
        seen = np.ascontiguousarray(picture_HW3[:, :, ::-1]) if self.swapped else picture_HW3
        resized = cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)
        padded = np.full((-(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE, 3), GREY, np.uint8)
        padded[:height, :width] = resized
        normal = (torch.from_numpy(padded).float() - torch.tensor(MEAN)) / torch.tensor(STD)
        return Prepared(normal.permute(2, 0, 1).contiguous(), (height, width), picture_HW3)


def target_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width after mmdet's resize into (1333, 800)."""
    scale = min(LONGER / max(height, width), SHORTER / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


@dataclass(frozen=True)
class Found:
    """One entry of the top 100: its class index, query, score and box in the picture's pixels."""

    label: int
    query: int
    score: float
    box: Box


class Detector:
    """Mask2Former with 80 labels, loaded at first use; pictures of one padded size run as one batch."""

    def __init__(self, weights: Weights, device: torch.device, *, mmdet: bool) -> None:
        """mmdet: whether the file has mmdet's layout, or transformers'."""
        self.weights, self.device, self.mmdet = weights, device, mmdet
        self._model: Mask2FormerForUniversalSegmentation | None = None

    def logits(self, batch: PreparedBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield class logits [Q, 81] and mask logits [Q, h, w] of each picture, in order."""
        by_size: dict[torch.Size, list[int]] = {}
        for index, one in enumerate(batch.pictures):
            by_size.setdefault(one.pixels_3HW.shape, []).append(index)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for indices in by_size.values():
            seen = self.model(pixel_values=torch.stack([batch.pictures[i].pixels_3HW for i in indices]))
            found |= zip(indices, zip(seen.class_queries_logits, seen.masks_queries_logits, strict=True), strict=True)
        return (found[index] for index in range(len(batch.pictures)))

    @property
    def model(self) -> "Mask2FormerForUniversalSegmentation":
        """The loaded model. Raises UserError where the file is another model's."""
        if self._model is None:
            self._model = (
                load_mmdet(self.weights, self.device) if self.mmdet else load_meta(self.weights, self.device)
            )
        return self._model


def config() -> Any:
    """Return the architecture as transformers' config."""
    from transformers import Mask2FormerConfig, SwinConfig

    labels = dict(enumerate(CLASSES))
    return Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN_S), id2label=labels, label2id={v: k for k, v in labels.items()}, **HEAD
    )


def load_mmdet(weights: Weights, device: torch.device) -> "Mask2FormerForUniversalSegmentation":
    """Return the model from mmdet's checkpoint, every key and shape checked."""
    from transformers import Mask2FormerForUniversalSegmentation

    file = next(name for name in _names(weights) if name.endswith((".pth", ".safetensors")))
    where = f"{weights.folder() / file}: not mmdet's Mask2Former with Swin-S ({{}}); {weights.mend}"
    tensors = from_mmdet(weights.tensors(file))
    if "class_predictor.bias" not in tensors:
        raise UserError(where.format("no panoptic_head.cls_embed"))
    tensors |= without_counterpart(tensors)
    return load_strictly(lambda: Mask2FormerForUniversalSegmentation(config()), tensors, where, device)


def load_meta(weights: Weights, device: torch.device) -> "Mask2FormerForUniversalSegmentation":
    """Return the model from the hub's folder; transformers knows the names that its older versions wrote."""
    from transformers import Mask2FormerForUniversalSegmentation

    weights.check()
    model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
        weights.folder(), config=config(), local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    wrong = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    wrong = [
        key for key in wrong if not key.startswith(("criterion.", "model.pixel_level_module.encoder.swin.layernorm"))
    ]
    if wrong:
        raise UserError(f"{weights.folder()}: {len(wrong)} weights missing or of another shape, first {wrong[0]}")
    return model.float().to(device).eval().requires_grad_(False)


def _names(weights: Weights) -> list[str]:
    return sorted(path.name for path in weights.folder().iterdir())


def read_out(
    class_logits_QC: Tensor,
    mask_logits_Qhw: Tensor,
    resized: tuple[int, int],
    picture: tuple[int, int],
    least: float = 0.0,
) -> list[Found]:
    """Return the top entries of one picture in the order of top-k, without those whose score cannot reach `least`
    (it is at most p): their masks are never made. resized, picture: height and width."""
    p_QC = class_logits_QC.float().softmax(dim=-1)[:, :-1]
    scores_K, places_K = p_QC.flatten().topk(min(TOP, p_QC.numel()), sorted=False)
    scores_K, places_K = scores_K[scores_K >= least], places_K[scores_K >= least]
    queries_K, labels_K = places_K // p_QC.shape[1], places_K % p_QC.shape[1]
    of_query: dict[int, tuple[float, Box]] = {}
    queries = queries_K.unique()
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        scores_and_boxes = _mask_scores_and_boxes(full_masks(mask_logits_Qhw[some], resized, picture))
        of_query |= zip(some.tolist(), scores_and_boxes, strict=True)
    found = []
    for p, query, label in zip(scores_K.tolist(), queries_K.tolist(), labels_K.tolist(), strict=True):
        mask_score, box = of_query[query]
        found.append(Found(label, query, float(np.float32(p) * np.float32(mask_score)), box))
    return found


def full_masks(mask_logits_Qhw: Tensor, resized: tuple[int, int], picture: tuple[int, int]) -> Tensor:
    """Return masks' logits [Q, H, W] at the picture's own size."""
    padded = tuple(-(-side // MULTIPLE) * MULTIPLE for side in resized)
    mask_1QHW = F.interpolate(mask_logits_Qhw[None].float(), padded, mode="bilinear", align_corners=False)
    mask_1QHW = mask_1QHW[..., : resized[0], : resized[1]]
    return F.interpolate(mask_1QHW, picture, mode="bilinear", align_corners=False)[0]


def _mask_scores_and_boxes(mask_QHW: Tensor) -> list[tuple[float, Box]]:
    """Return for each mask the mean probability inside it and the box around it; an empty one has score 0."""
    inside_QHW = mask_QHW > 0
    scores_Q = (mask_QHW.sigmoid() * inside_QHW).sum(dim=(1, 2)) / (inside_QHW.sum(dim=(1, 2)) + 1e-6)
    x_Q2, y_Q2 = _ends(inside_QHW.any(dim=1)), _ends(inside_QHW.any(dim=2))
    return [
        (score, (float(x1), float(y1), float(x2), float(y2)))
        for score, (x1, x2), (y1, y2) in zip(scores_Q.tolist(), x_Q2.tolist(), y_Q2.tolist(), strict=True)
    ]


def _ends(inside_QN: Tensor) -> Tensor:
    """Return the first place inside and the one after the last, [Q, 2]; 0 and 0 where nothing is."""
    n, places_QN = inside_QN.shape[1], inside_QN.byte()  # argmax takes the first of equal ones
    ends_Q2 = torch.stack([places_QN.argmax(dim=1), n - places_QN.flip(1).argmax(dim=1)], dim=1)
    return ends_Q2 * inside_QN.any(dim=1, keepdim=True)
