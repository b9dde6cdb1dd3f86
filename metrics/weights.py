"""Weight folders: what may be read from them, whether they are complete, and their digest.

Only safetensors are read. A pickle can run code when it is opened, and so can a config that names classes of its own
(`auto_map`): folders with either are refused, whoever made them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.base import UserError

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
READ = frozenset({".safetensors", ".json", ".txt"})  # weights, configs, tokenizers: all that decides a feature


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
            if "auto_map" in self.json(file.name):
                raise UserError(f"{file}: 'auto_map' asks to run code from the folder; remote code is never run")

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the folder's JSON files. Raises UserError where it is not valid JSON."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path / name}: not valid JSON ({error}); {self.mend}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.path / name}: expected an object, found a {type(content).__name__}")
        return content

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of one safetensors file. Raises UserError where it is truncated or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.check()
        try:
            return load_file(self.path / name)
        except SafetensorError as error:
            raise UserError(f"{self.path / name}: truncated or damaged ({error}); {self.mend}") from error

    def digest(self) -> str:
        """Return the sha256 over names and contents of the files a model is built from."""
        self.check()
        total = hashlib.sha256()
        for file in sorted(file for file in self.path.iterdir() if file.suffix in READ):
            with file.open("rb") as content:
                total.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()
