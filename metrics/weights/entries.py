"""The manifest: metrics/weights.toml, one table per set of published weights.

    ["pick-score-v1"]
    title = "PickScore v1"
    repo = "yuvalkirstain/PickScore_v1"        a model repository of the hub; "" where files have a url each
    revision = "a4e4367c…"                     the commit; "" = not pinned: `fetch` prints the commit it found
    licence = "MIT (code); none stated for the weights"
    page = "https://…"

    [["pick-score-v1".files]]
    name = "model.safetensors"
    bytes = 0                                  0 = not known exactly
    about = "3.9 GB"                           for people, where `bytes` is not known
    sha256 = ""                                "" = not known: `fetch` prints it, results are `synthetic` until then;
                                               a name such as vgg16-397923af.pth tells its first eight digits

A size or a digest stands here only where the file itself was read, or where public manifests state it.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metrics.base import UserError, nearest

MANIFEST = Path(__file__).parent.parent / "weights.toml"


SHA256_DIGITS = 64


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One file, as it was published."""

    name: str
    bytes: int = 0  # 0: not known exactly
    about: str = ""  # the size as people read it, where `bytes` is not known
    sha256: str = ""  # "": not known
    url: str = ""  # of files that lie outside the hub
    pickle: bool = False  # published as a pickle; read with torch.load(weights_only=True)
    unwrap: str = ""  # key under which a pickle holds the state dict; "" = it is the state dict
    tensors: int = 0  # how many; 0 where not known, or no weights
    dtype: str = ""  # of all floating-point tensors: "float32"; "" where not known
    logit_scale: float = 0.0  # exp of the tensor of that name, where it was published; 0 where not known

    @property
    def size(self) -> str:
        """The size, as people read it."""
        return readable(self.bytes) if self.bytes else f"about {self.about}" if self.about else "not known"

    @property
    def pinned(self) -> bool:
        """Whether the digest is known."""
        return bool(self.sha256)

    @property
    def digits(self) -> str:
        """What is known of the digest: all of it, or the first digits, which torchvision, mmdet and pyiqa write into
        the names of their files; "" where nothing is."""
        named = re.search(r"-([0-9a-f]{8})\.pth$", self.name)
        return self.sha256 or (named[1] if named else "")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Published weights: where they come from and what they consist of."""

    id: str
    title: str
    licence: str
    page: str
    files: tuple[WeightFile, ...]
    repo: str = ""
    revision: str = ""
    note: str = ""

    @property
    def size(self) -> str:
        """The size of all files, as people read it."""
        if all(file.bytes for file in self.files):
            return readable(sum(file.bytes for file in self.files))
        about = [file.about for file in self.files if file.about]
        return f"about {' + '.join(about)}" if about else "size not known"

    @property
    def pinned(self) -> bool:
        """Whether revision and digests are known, so that results can be ranked."""
        return not self.unknown

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the manifest does not know of revision and digests, for people."""
        revision = ("revision",) if self.repo and not self.revision else ()
        return revision if all(file.pinned for file in self.files) else (*revision, "digest")

    def file(self, name: str) -> WeightFile:
        """Return one file by name. Raises UserError naming the nearest one where it is not listed."""
        for file in self.files:
            if file.name == name:
                return file
        names = [file.name for file in self.files]
        raise UserError(f"weights {self.id!r} have no file {name!r}; {nearest(name, names)}")

    @property
    def mend(self) -> str:
        """The command that brings the weights."""
        return f"run: python -m metrics.weights fetch {self.id}"


@cache
def entries(path: Path = MANIFEST) -> Mapping[str, Entry]:
    """Return all entries of a manifest by id, in its order."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        identity: Entry(id=identity, **{**table, "files": tuple(WeightFile(**file) for file in table["files"])})
        for identity, table in tables.items()
    }


def readable(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def find_entry(identity: str) -> Entry:
    """Return one entry by id. Raises UserError naming the nearest one where it is unknown."""
    known = entries()
    if identity not in known:
        raise UserError(f"unknown weights {identity!r}; {nearest(identity, known)}")
    return known[identity]


def should_be(digits: str) -> str:
    """Return how a fault tells a digest of which all digits are known, or only the first."""
    return f"should {'be' if len(digits) == SHA256_DIGITS else 'begin with'} {digits}"
