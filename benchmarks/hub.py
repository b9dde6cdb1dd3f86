"""Model files of the hub: a folder of models beside it, then its local cache, then a download.

FEWSTEP_BENCH_MODELS names a folder that holds copies as <org>/<name>; what lies there is taken as it is.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.checkpoints import LORA_FILES
from benchmarks.config import UserError

MODELS = "FEWSTEP_BENCH_MODELS"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Of the weights only those of components, and a LoRA's: many repositories hold the same network once more, tens of
# GB, as one file for other programs or in half precision.
FILES = ("*.json", "*/*.safetensors", *LORA_FILES, "*.txt", "*.model", "*.jinja")
NOT_THESE = ("*.fp16.safetensors", "*.fp16-*.safetensors", "*.non_ema.safetensors")


def hub_folder(spec: str, offline: bool) -> Path:
    """Return the local folder of a hub id, org/name or org/name@revision, downloading what is missing of it.

    Raises UserError where it is not here and cannot be had."""
    repo, revision = _parsed(spec)
    if (local := _local(repo)) is not None:
        return local
    from huggingface_hub import snapshot_download

    with _one_line_errors(spec, f"hf download {repo}" + (f" --revision {revision}" if revision else "")):
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(FILES),
                ignore_patterns=list(NOT_THESE),
                local_files_only=offline,
            )
        )


def hub_file(spec: str, name: str, offline: bool) -> Path:
    """Return the local copy of one file of a hub id. Raises UserError where it is not here and cannot be had."""
    repo, revision = _parsed(spec)
    if (local := _local(repo)) is not None:
        if not (local / name).is_file():
            raise UserError(f"{local / name}: missing; copy it there from {repo}")
        return local / name
    from huggingface_hub import hf_hub_download

    fetch = f"hf download {repo} {name}" + (f" --revision {revision}" if revision else "")
    with _one_line_errors(f"{spec}: {name}", fetch):
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))


def _parsed(spec: str) -> tuple[str, str | None]:
    match = HUB_ID.fullmatch(spec)
    if not match or spec.startswith("."):
        raise UserError(f"{spec}: no such folder, and not a hub id (org/name or org/name@revision)")
    return match["repo"], match["revision"]


def _local(repo: str) -> Path | None:
    folder = os.environ.get(MODELS)
    found = Path(folder) / repo if folder else None
    return found if found and found.is_dir() else None


@contextmanager
def _one_line_errors(what: str, fetch: str) -> Iterator[None]:
    """Turn the hub's errors into one line with the command that mends it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{what}: no such folder here and not in the local hub cache; where there is a network, run: {fetch}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: the hub refused it ({reason}); check id and access, then run: {fetch}") from error
