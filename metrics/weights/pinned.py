"""Published weights, held to the manifest: a file of another size or digest is refused, with what it should be."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.base import UserError
from metrics.weights.entries import Entry, WeightFile, entries, find_entry, should_be
from metrics.weights.files import (
    PICKLES,
    file_digest,
    read_json,
    read_pickle,
    read_safetensors,
    refuse_remote_code,
)
from metrics.weights.places import SYNTHETIC, find_folder, hub_digest, own_folder, synthetic_allowed


@dataclass(frozen=True)
class ManifestWeights:
    """One entry of the manifest, wherever its files lie on this machine (`metrics.weights.Weights`)."""

    entry: Entry

    @property
    def mend(self) -> str:
        """The command that brings the weights."""
        return self.entry.mend

    def absent(self) -> bool:
        """Return whether none of the files is here."""
        return find_folder(self.entry) is None

    def missing(self) -> str | None:
        """Return why the weights cannot be used and what mends it, or None where they can be.

        Looks at names and sizes only; `check` reads the files' digests."""
        folder = find_folder(self.entry)
        if folder is None:
            return f"{self.entry.title}: no weights ({self.entry.size}, {self.entry.licence}); {self.mend}"
        absent = [file.name for file in self.entry.files if not (folder / file.name).is_file()]
        if absent:
            return f"{folder} lacks {', '.join(absent)}{self._refused_pickles(folder)}; {self.mend}"
        return next((why for file in self.entry.files if (why := self._wrong_size(folder, file))), None)

    def check(self) -> None:
        """Raise UserError where a file is missing or not the manifest's, or a config asks to run code."""
        folder = self.folder()
        for file in self.entry.files:
            if file.name.endswith("config.json"):
                refuse_remote_code(folder / file.name, self.mend)
            if not synthetic_allowed():
                self._check_digest(folder, file)

    def folder(self) -> Path:
        """Return the folder in which the files lie. Raises UserError where one is missing or of another size."""
        if reason := self.missing():
            raise UserError(reason)
        folder = find_folder(self.entry)
        assert folder is not None  # or else something had been missing
        return folder

    def path(self, name: str) -> Path:
        """Return the path of one file. Raises UserError where it is not listed, missing or of another size."""
        return self.folder() / self.entry.file(name).name

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the JSON files. Raises UserError where it is not valid JSON."""
        return read_json(self.path(name), self.mend)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state dict of one file: safetensors, or the pickle that the manifest lists under that name.

        Raises: UserError where it is truncated, damaged, not the manifest's, or asks to run code."""
        self.check()
        file = self.entry.file(name)
        if file.pickle:
            return read_pickle(self.path(name), file.unwrap, self.mend)
        return read_safetensors(self.path(name), self.mend)

    def digest(self) -> str:
        """Return the sha256 over names and contents of the files. Raises UserError as `check` does."""
        self.check()
        folder, total = self.folder(), hashlib.sha256()
        for name in sorted(file.name for file in self.entry.files):
            total.update(f"{name} {file_digest(folder / name)}\n".encode())
        return total.hexdigest()

    def synthetic(self) -> bool:
        """Return whether a file is not the manifest's, or the manifest does not know its digest yet: results with
        such weights are never ranked. Raises UserError where the weights are missing."""
        folder = self.folder()
        return any(file_digest(folder / file.name) != file.sha256 for file in self.entry.files)

    def _check_digest(self, folder: Path, file: WeightFile) -> None:
        path = folder / file.name
        should = file.digits or hub_digest(path)  # what the hub served is no proof, but no damage
        size = path.stat().st_size
        listed = {
            other.sha256: f"{other.name} of {entry.id}"
            for entry in entries().values()
            for other in entry.files
            if other.pinned and other.bytes == size and other.sha256 != file.sha256
        }
        if not (should or listed):
            return
        found = file_digest(path)
        if should and not found.startswith(should):
            owner = f" ({listed[found]})" if found in listed else ""
            raise UserError(f"{path}: sha256 is {found}{owner}, {should_be(should)}; {self._mend_wrong(folder)}")
        if found in listed:  # swapped: what its own digest should be is not known, but it is not that one
            raise UserError(f"{path}: this is {listed[found]}; {self._mend_wrong(folder)}")

    def _wrong_size(self, folder: Path, file: WeightFile) -> str | None:
        found = (folder / file.name).stat().st_size
        if not file.bytes or found == file.bytes or synthetic_allowed():
            return None
        kind = "truncated" if found < file.bytes else "another file"
        should = f" (sha256 {file.sha256})" if file.pinned else ""
        return (
            f"{folder / file.name}: {kind}: {found:,} bytes, should be {file.bytes:,}{should}; "
            f"{self._mend_wrong(folder)}"
        )

    def _refused_pickles(self, folder: Path) -> str:
        """Return a word on pickles that lie there instead: only those that the manifest lists are ever opened."""
        listed = {file.name for file in self.entry.files}
        found = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES and path.name not in listed]
        return f" ({', '.join(found)}: a pickle can run code and is refused)" if found else ""

    def _mend_wrong(self, folder: Path) -> str:
        if folder != own_folder(self.entry):
            return self.mend
        return f"{self.mend}, or set {SYNTHETIC}=1 to use weights of your own: results are synthetic, never ranked"


def manifest(identity: str) -> ManifestWeights:
    """Return published weights by id. Raises UserError naming the nearest id where it is unknown."""
    return ManifestWeights(find_entry(identity))
