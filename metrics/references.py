"""Reference statistics: what a set of real pictures looks like to an encoder, in one npz file.

    mu, sigma        mean [D] and covariance [D, D] of the encoder's main output, float64
    mu_s, sigma_s    the same of Inception's spatial output
    features         features [M, D], float32, of at most 10,000 pictures (KID, precision, recall, CMMD)
    about            JSON: format, encoder, weights_digest, n, images (sha256 over the pictures), source

The names are those of ADM's reference batches. Made by `python -m metrics.reference build`; files of others are
converted by the same command. Nothing is unpickled. A metric looks for its reference in
FEWSTEP_BENCH_WEIGHTS/references/<name>.npz, then in the user's cache.
Axes: N pictures, M of them kept, D features.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metrics.base import UserError
from metrics.features import Encoder
from metrics.weights import Weights
from metrics.weights.files import file_digest, read_safetensors, user_cache
from metrics.weights.places import FOLDER

FORMAT = 1
MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s"), "image": ("mu", "sigma")}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One set of reference statistics, wherever its file lies (`metrics.weights.Weights`)."""

    name: str
    title: str
    encoder: str  # by which it must have been made: "inception/tf1"
    encoder_weights: Weights
    how: str = "IMAGES"  # what the command that makes it takes

    @property
    def path(self) -> Path:
        """Where the file lies, or should lie."""
        root = os.environ.get(FOLDER, "")
        own = Path(root) / "references" if root else None
        if own and (own / self.file).is_file():
            return own / self.file
        return user_cache("references") / self.file

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}.npz"

    @property
    def mend(self) -> str:
        """The command that makes the file."""
        return f"run: python -m metrics.reference build {self.how} --encoder {self.encoder} -o {self.path}"

    def missing(self) -> str | None:
        """Return why there is no reference and what mends it, or None where there is one."""
        return None if self.path.is_file() else f"{self.title}: no reference statistics in {self.path}; {self.mend}"

    def check(self) -> None:
        """Raise UserError where the file is missing, damaged, or was made by another encoder or other weights."""
        about = self.about()
        if about.get("encoder") != self.encoder:
            raise UserError(f"{self.path}: made with {about.get('encoder')!r}, needed: {self.encoder!r}; {self.mend}")
        made_with = about.get("weights_digest")
        if made_with and made_with != self.encoder_weights.digest():
            raise UserError(f"{self.path}: made with other weights of {self.encoder!r}; {self.mend}")

    def folder(self) -> Path:
        """Return the folder of the file. Raises UserError as `check`."""
        self.check()
        return self.path.parent

    def json(self, name: str) -> dict[str, Any]:
        """Return what the file says about itself, whatever `name`. Raises UserError as `about`."""
        return self.about()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a safetensors file beside it. Raises UserError where there is none."""
        return read_safetensors(self.path.parent / name, self.mend)

    def digest(self) -> str:
        """Return the sha256 of the file. Raises UserError as `check`."""
        self.check()
        return file_digest(self.path)

    def about(self) -> dict[str, Any]:
        """Return what the file says about itself. Raises UserError where it is missing or not one of ours."""
        text = str(self._array("about"))
        try:
            about = json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.path}: 'about' is not JSON; {self.mend}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UserError(f"{self.path}: not a reference of format {FORMAT}; {self.mend}")
        return about

    def moments(self, output: str) -> tuple[np.ndarray, np.ndarray]:
        """Return mean [D] and covariance [D, D] of an output. Raises UserError as `check`."""
        self.check()
        mean, covariance = (self._finite(name).astype(np.float64) for name in MOMENTS[output])
        return mean, covariance

    def features(self) -> np.ndarray:
        """Return features [M, D]. Raises UserError as `check`, and where the file holds moments only."""
        self.check()
        return self._finite("features")

    def _finite(self, name: str) -> np.ndarray:
        array = self._array(name)
        if not np.isfinite(array).all():
            raise UserError(f"{self.path}: {name!r} holds a NaN or an infinity; {self.mend}")
        return array

    def _array(self, name: str) -> np.ndarray:
        with open_arrays(self.path, self.mend) as arrays:
            if name not in arrays:
                raise UserError(f"{self.path}: holds no {name!r}, which this metric reads; {self.mend}")
            try:
                return arrays[name]
            except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise UserError(f"{self.path}: {name!r} is damaged or a pickle ({error}); {self.mend}") from error


def open_arrays(path: Path, mend: str) -> Any:
    """Return the arrays of an npz file, read when they are asked for; pickled ones are refused.

    Raises: UserError where the file is missing or none."""
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {mend}") from error
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: no npz file that can be read without running code ({error}); {mend}") from error


def write_reference(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """Write a reference whole or not at all; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    contents: dict[str, Any] = {**arrays, "about": np.asarray(text)}
    # A name of its own: two machines may write into one folder.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        np.savez_compressed(file, **contents)
    partial = Path(file.name)
    partial.chmod(0o644)
    partial.replace(path)
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def against(reference: Reference, key: str) -> Encoder:
    """Return an encoder that passes a feature on and says that it is held against a reference: without the file its
    metrics are missing weights, and its digest is part of theirs."""
    return Encoder(reads="features", forward=lambda features: features, inputs=(key,), weights=reference)
