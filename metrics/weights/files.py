"""Reading files that strangers made: digests, JSON, safetensors, and the pickles that authors published.

What cannot be read is one clear line (UserError) that names the file and, as `mend`, the command that helps.
"""

import hashlib
import json
import pickle
import re
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.base import UserError

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
READ = frozenset({".safetensors", ".json", ".txt"})  # weights, configs, tokenizers: all that decides a feature
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # the zip that torch.save writes, and the pickle it wrote before
SETTLED = 2.0  # seconds; a file changed later than that may change again within one tick of its clock


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """Return a JSON object. Raises UserError where the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {mend}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, found a {type(content).__name__}")
    return content


def refuse_remote_code(path: Path, mend: str) -> None:
    """Raise UserError where a config asks to run classes of its own folder (`auto_map`)."""
    if "auto_map" in read_json(path, mend):
        raise UserError(f"{path}: 'auto_map' asks to run code from the folder; remote code is never run")


def read_safetensors(path: Path, mend: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises UserError where it is missing, truncated or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {mend}") from error
    except SafetensorError as error:
        with path.open("rb") as content:
            if content.read(4).startswith(PICKLE_STARTS):
                raise UserError(f"{path} is a pickle, which can run code, and is refused; {mend}") from error
        raise UserError(f"{path}: truncated or damaged ({error}); {mend}") from error


def read_pickle(path: Path, unwrap: str, mend: str) -> dict[str, Tensor]:
    """Return the state dict of a pickle, without running code; `unwrap`: the key under which it lies, "" = none.

    Raises: UserError where it is missing, damaged, asks to run code or holds anything else than tensors by name.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {mend}") from error
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it all the same
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else "it is no pickle of tensors"
        raise UserError(f"{path}: damaged, or asks to run code, which is refused ({reason}); {mend}") from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OSError,
        struct.error,
    ) as error:
        # Whatever the restricted unpickler trips over in damaged bytes.
        raise UserError(f"{path}: truncated or damaged ({str(error).partition(chr(10))[0]}); {mend}") from error
    if unwrap:
        content = content.get(unwrap) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        where = f" under {unwrap!r}" if unwrap else ""
        raise UserError(f"{path}: no state dict{where}; {mend}")
    return {str(name): value for name, value in content.items()}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content.

    It is kept in the user's cache beside the file's size, times and inode: 4 GB take seconds. A change that leaves
    all of these alone would go unseen; it takes a damaged disk, and `python -m metrics.weights verify` reads anew.
    """
    kept = _kept_digest(path)
    stamp = _stamp(path)
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["stamp"] == stamp:
            return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or unreadable: compute it
    return compute_digest(path)


def compute_digest(path: Path) -> str:
    """Return the sha256 of a file's content, read now, and keep it for `file_digest`."""
    before = _stamp(path)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    # Written while it was read, or so recently that the clock may not tell the next change: not kept.
    if _stamp(path) == before and time.time() - path.stat().st_mtime > SETTLED:
        write_json(_kept_digest(path), {"path": str(path.resolve()), "stamp": before, "sha256": digest})
    return digest


def user_cache(folder: str) -> Path:
    """Return a folder of this project in the user's cache (HF_ASSETS_CACHE), made at need."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path("fewstep-bench", folder, assets_dir=constants.HF_ASSETS_CACHE)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file into the user's cache, whole or not at all; not where the cache cannot be written."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        Path(file.name).replace(path)  # several processes may write it: the last one wins, and all are right
    except OSError:
        return


def _kept_digest(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return user_cache("digests") / f"{name}.json"


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file does: size, times of content and inode, and the inode itself."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
