"""What a reference in the making has gathered: moments, kept features and digests, saved now and then.

A build that was stopped continues where it was last saved, and the file it ends with is bit for bit that of a build
that was not: parts are cut at the same pictures and merged in the same order. The state lies beside the output,
named after it, until the output is written.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metrics.base import UserError
from metrics.frechet import Moments
from metrics.references import open_arrays

SAVE_SECONDS = 60.0
DIGEST_SIZE = 32  # bytes of a sha256


@dataclass
class State:
    """What pictures have given so far."""

    path: Path
    identity: Mapping[str, Any]  # what decides the outcome besides pictures: encoder, weights, batch size
    digest: Callable[[int], str]  # of the first pictures of the source
    totals: dict[str, Moments] = field(default_factory=dict)  # by output
    features: list[np.ndarray] = field(default_factory=list)  # [D] each, of kept pictures
    pictures: bytearray = field(default_factory=bytearray)  # a sha256 of each
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def beside(cls, output: Path, identity: Mapping[str, Any], digest: Callable[[int], str]) -> "State":
        """Return the state that was saved for an output, or an empty one where there is none of this identity and
        of these pictures."""
        path = output.with_name(f".{output.name}.state.npz")
        state = cls(path, identity, digest)
        if path.is_file():
            state._read()
        return state

    @property
    def count(self) -> int:
        """How many pictures it holds."""
        return len(self.pictures) // DIGEST_SIZE

    def add(self, arrays: Mapping[str, np.ndarray], batch: Sequence[Image.Image], kept: set[int]) -> None:
        """Take in the outputs [B, D] of the next batch, by name; `kept` are the numbers of pictures whose first
        output is kept."""
        first = self.count
        for name, array in arrays.items():
            moments = Moments.of(array)
            self.totals[name] = self.totals[name].merge(moments) if name in self.totals else moments
        main = next(iter(arrays.values()))
        self.features += [row for index, row in enumerate(main, first) if index in kept]
        for picture in batch:
            self.pictures += hashlib.sha256(picture.tobytes()).digest()

    def save_if_due(self) -> None:
        """Save, unless that was done less than a minute ago."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write it whole or not at all."""
        arrays: dict[str, Any] = {
            "identity": np.asarray(json.dumps(self.identity, sort_keys=True)),
            "source": np.asarray(self.digest(self.count)),
            "pictures": np.frombuffer(bytes(self.pictures), np.uint8),
            "features": np.stack(self.features) if self.features else np.zeros((0, 0), np.float32),
        }
        for name, total in self.totals.items():
            arrays |= {
                f"n {name}": np.asarray(total.n),
                f"mean {name}": total.mean_D,
                f"scatter {name}": total.scatter_DD,
            }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp.npz")
        np.savez(partial, **arrays)
        partial.replace(self.path)
        self._saved = time.monotonic()

    def drop(self) -> None:
        """Forget what was saved: the output holds it."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Continue from the file, unless it is damaged or of something else: then all begins again."""
        try:
            with open_arrays(self.path, "it is made again") as arrays:
                if str(arrays["identity"]) != json.dumps(self.identity, sort_keys=True):
                    return
                found = {name: arrays[name] for name in arrays.files}
        except (UserError, ValueError, KeyError, OSError, zipfile.BadZipFile):
            return
        if str(found["source"]) != self.digest(len(found["pictures"]) // DIGEST_SIZE):
            return
        self.pictures = bytearray(found["pictures"].tobytes())
        self.features = list(found["features"])
        for key in found:
            if key.startswith("n "):
                name = key[2:]
                self.totals[name] = Moments(int(found[key]), found[f"mean {name}"], found[f"scatter {name}"])
