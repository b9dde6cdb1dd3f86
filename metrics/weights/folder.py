"""Weight folders: what may be read from them, whether they are complete, and their digest.

Only safetensors are read. A pickle can run code when it is opened, and so can a config that names classes of its own
(`auto_map`): folders with either are refused, whoever made them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from metrics.base import UserError
from metrics.weights.files import PICKLES, READ, read_json, read_safetensors, refuse_remote_code


class Weights(Protocol):
    """What an encoder reads. Hashable, and cheap to make: nothing is read from disk before a method is called."""

    @property
    def mend(self) -> str:
        """The command that brings the weights, as the end of an error message."""
        ...

    def missing(self) -> str | None:
        """Return why the weights cannot be used and what mends it, or None where they can be."""
        ...

    def check(self) -> None:
        """Raise UserError where the weights are incomplete, not what they should be, or ask to run code."""
        ...

    def folder(self) -> Path:
        """Return the folder in which the files lie. Raises UserError where they are missing."""
        ...

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the JSON files. Raises UserError where it is not valid JSON."""
        ...

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of one file, on the CPU. Raises UserError where it is truncated or damaged."""
        ...

    def digest(self) -> str:
        """Return the sha256 over names and contents of the files. Raises UserError as `check` does."""
        ...


@dataclass(frozen=True, kw_only=True)
class WeightFolder:
    """A folder with one model's weights, config and tokenizer."""

    path: Path
    mend: str  # the command that brings the weights
    needs: tuple[str, ...] = ()  # files without which the model cannot be built

    def missing(self) -> str | None:
        """Return why the folder cannot be used and what mends it, or None where it can be."""
        if not self.path.is_dir():
            return f"no weights in {self.path}; {self.mend}"
        if not any(self.path.glob("*.safetensors")):
            pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
            if pickles:
                return f"{self.path / pickles[0]} is a pickle, which can run code, and is refused; {self.mend}"
            return f"no .safetensors in {self.path}; {self.mend}"
        absent = [name for name in self.needs if not (self.path / name).is_file()]
        return f"{self.path} lacks {', '.join(absent)}; {self.mend}" if absent else None

    def check(self) -> None:
        """Raise UserError where the folder is incomplete, holds pickles only, or asks to run code of its own."""
        if reason := self.missing():
            raise UserError(reason)
        for file in sorted(self.path.glob("*config*.json")):
            refuse_remote_code(file, self.mend)

    def folder(self) -> Path:
        """Return the folder. Raises UserError where it is incomplete."""
        self.check()
        return self.path

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the folder's JSON files. Raises UserError where it is not valid JSON."""
        return read_json(self.path / name, self.mend)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of one safetensors file. Raises UserError where it is truncated or damaged."""
        self.check()
        return read_safetensors(self.path / name, self.mend)

    def digest(self) -> str:
        """Return the sha256 over names and contents of the files a model is built from."""
        self.check()
        total = hashlib.sha256()
        for file in sorted(file for file in self.path.iterdir() if file.suffix in READ):
            with file.open("rb") as content:
                total.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()
