"""OCR engines as encoders: lines of text with confidences, in the order in which the engine lists them.

    ocr/rapid    RapidOCR on ONNX Runtime, with the models that its package brings (PP-OCRv6 small)
    ocr/paddle   PaddleOCR 2 or 3, where it is installed; its own models

The models cannot be exchanged without a change of digest: RapidOCR's files are held to metrics/weights.toml, of
PaddleOCR the versions stand in the digest.
Axes: B images [H, W, 3], uint8, RGB.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.base import UserError
from metrics.features import Encoder, register_encoders
from metrics.ocr import Line
from metrics.preprocessing import Uint8
from metrics.weights import ManifestWeights, find_entry
from metrics.weights.entries import WeightFile

INSTALL_RAPID = "pip install rapidocr onnxruntime"
INSTALL_PADDLE = "pip install paddleocr==2.9.1 paddlepaddle==2.6.2 (an environment of its own may be needed)"


@dataclass(frozen=True)
class PackagedWeights(ManifestWeights):
    """Weights of the manifest whose files a Python package brings along."""

    package: str
    subfolder: str
    install: str

    @property
    def mend(self) -> str:
        """The command that brings the weights."""
        return self.install

    def missing(self) -> str | None:
        """Return why the package's files cannot be used and what mends it, or None where they can be."""
        folder = self._packaged()
        if folder is None:
            return f"{self.entry.title}: the package {self.package!r} is not installed; {self.mend}"
        absent = [file.name for file in self.entry.files if not (folder / file.name).is_file()]
        if absent:
            return f"{folder} lacks {', '.join(absent)}: another version of {self.package!r}; {self.mend}"
        return next((why for file in self.entry.files if (why := self._other_size(folder, file))), None)

    def folder(self) -> Path:
        """Return the folder of the files. Raises UserError where the package is missing or another version's."""
        if reason := self.missing():
            raise UserError(reason)
        folder = self._packaged()
        assert folder is not None  # or else it had been missing
        return folder

    def _packaged(self) -> Path | None:
        spec = find_spec(self.package)
        return Path(spec.origin).parent / self.subfolder if spec and spec.origin else None

    def _other_size(self, folder: Path, file: WeightFile) -> str | None:
        found = (folder / file.name).stat().st_size
        if found == file.bytes:
            return None
        return f"{folder / file.name}: {found:,} bytes, should be {file.bytes:,}: another version; {self.mend}"


class RapidOcr:
    """RapidOCR, made at first use. Its angle classifier is off, as PaddleOCR's is upstream."""

    def __init__(self, weights: PackagedWeights) -> None:
        self.weights = weights

    def lines(self, images: Sequence[np.ndarray]) -> list[list[Line]]:
        """Return the lines of B pictures. Raises UserError where the package is missing or its models are not."""
        return [self._read(image_HW3) for image_HW3 in images]

    def _read(self, image_HW3: np.ndarray) -> list[Line]:
        # The engine takes arrays as OpenCV reads them: blue first.
        found = self._engine(np.ascontiguousarray(image_HW3[:, :, ::-1]), use_cls=False)
        if not found.txts:
            return []
        return [(str(text), float(score)) for text, score in zip(found.txts, found.scores, strict=True)]

    @cached_property
    def _engine(self) -> Any:
        self.weights.check()
        from rapidocr import RapidOCR

        folder = self.weights.folder()
        return RapidOCR(
            params={
                "Global.log_level": "critical",
                "Det.model_path": str(folder / "PP-OCRv6_det_small.onnx"),
                "Rec.model_path": str(folder / "PP-OCRv6_rec_small.onnx"),
            }
        )


@dataclass(frozen=True)
class InstalledPackage:
    """What identifies an engine whose models are its own affair: the versions of its packages."""

    packages: tuple[str, ...]
    mend: str

    def missing(self) -> str | None:
        """Return which package is missing and how to install it, None where all are there."""
        absent = [
            package for package in self.packages if find_spec(package.replace("paddlepaddle", "paddle")) is None
        ]
        return f"the package {absent[0]!r} is not installed; {self.mend}" if absent else None

    def check(self) -> None:
        """Raise UserError where a package is missing."""
        if reason := self.missing():
            raise UserError(reason)

    def folder(self) -> Path:
        """Raise UserError: the engine keeps its models where it likes."""
        raise UserError(f"{self.packages[0]}: has no folder of weights")

    def json(self, name: str) -> dict[str, Any]:
        """Raise UserError, as `folder` does."""
        raise UserError(f"{self.packages[0]}: has no {name}")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Raise UserError, as `folder` does."""
        raise UserError(f"{self.packages[0]}: has no {name}")

    def digest(self) -> str:
        """Return the sha256 over names and versions. Raises UserError where a package is missing."""
        self.check()
        return hashlib.sha256(" ".join(f"{name}=={_version(name)}" for name in self.packages).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"  # importable, but not installed as a distribution


class PaddleOcr:
    """PaddleOCR as Flow-GRPO calls it, made at first use: English, no angle classifier, on the CPU.

    Upstream hands it RGB arrays although it expects blue first; so does this.
    """

    def __init__(self, package: InstalledPackage) -> None:
        self.package = package

    def lines(self, images: Sequence[np.ndarray]) -> list[list[Line]]:
        """Return the lines of B pictures. Raises UserError where the package is missing or answers something else."""
        return [self._read(image_HW3) for image_HW3 in images]

    def _read(self, image_HW3: np.ndarray) -> list[Line]:
        if hasattr(self._engine, "predict") and self._major >= 3:
            return lines_of_version_3(self._engine.predict(image_HW3))
        return lines_of_version_2(self._engine.ocr(image_HW3, cls=False))

    @property
    def _major(self) -> int:
        major = _version("paddleocr").partition(".")[0]
        return int(major) if major.isdigit() else 2

    @cached_property
    def _engine(self) -> Any:
        self.package.check()
        from paddleocr import PaddleOCR

        if self._major >= 3:
            off = {
                "use_doc_orientation_classify": False,
                "use_doc_unwarping": False,
                "use_textline_orientation": False,
            }
            return PaddleOCR(lang="en", device="cpu", **off)  # it would take a GPU where there is one
        return PaddleOCR(use_angle_cls=False, lang="en", use_gpu=False, show_log=False)


def lines_of_version_2(found: Any) -> list[Line]:
    """Return the lines of PaddleOCR 2: [[[box, (text, confidence)], ...]], or [None] where nothing was found."""
    match found:
        case [None] | [[]]:
            return []
        case [[*entries]]:
            return [(str(text), float(confidence)) for _box, (text, confidence) in entries]
    raise UserError(f"PaddleOCR answered {type(found).__name__}, not the list of version 2; {INSTALL_PADDLE}")


def lines_of_version_3(found: Any) -> list[Line]:
    """Return the lines of PaddleOCR 3: one mapping with rec_texts and rec_scores."""
    match found:
        case [{"rec_texts": texts, "rec_scores": scores}]:
            return [(str(text), float(score)) for text, score in zip(texts, scores, strict=True)]
    raise UserError(f"PaddleOCR answered {type(found).__name__}, not the result of version 3; {INSTALL_PADDLE}")


@register_encoders("ocr/rapid")
def rapid(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"lines"} of RapidOCR; it runs on the CPU whatever the device."""
    weights = PackagedWeights(find_entry("rapidocr-pp-ocrv6-small"), "rapidocr", "models", INSTALL_RAPID)
    engine = RapidOcr(weights)
    return {"lines": Encoder(reads="image", forward=engine.lines, preprocessing=Uint8, weights=weights)}


@register_encoders("ocr/paddle")
def paddle(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"lines"} of PaddleOCR; it runs on the CPU whatever the device."""
    package = InstalledPackage(("paddleocr", "paddlepaddle"), INSTALL_PADDLE)
    engine = PaddleOcr(package)
    return {"lines": Encoder(reads="image", forward=engine.lines, preprocessing=Uint8, weights=package)}
