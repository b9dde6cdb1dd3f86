"""Bringing published weights to this machine: huggingface_hub downloads (and resumes), the manifest decides.

Files go to FEWSTEP_BENCH_WEIGHTS/<id>/ where that is set, else into the local hub cache at the pinned revision.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

from metrics.base import UserError
from metrics.weights.entries import Entry, WeightFile, should_be
from metrics.weights.files import compute_digest, file_digest
from metrics.weights.places import find_folder, hub_digest, own_folder, url_folder


def fetch(entry: Entry) -> Iterator[str]:
    """Download what is missing or damaged of some weights; yield a line for each file, and what the manifest lacks.

    Raises: UserError where the network, the hub or the disk refuses, or a file is not the manifest's."""
    for file in entry.files:
        path = _here(entry, file)
        should = file.digits or (hub_digest(path) if path else "")
        if path and (not should or file_digest(path).startswith(should)):
            yield f"{path}: here"
        else:
            path = _download(entry, file, again=path is not None)
            _check(file, path, compute_digest(path))
            yield f"{path}: downloaded"
        if not file.pinned:
            yield f"  not pinned yet; for weights.toml: bytes = {path.stat().st_size}, sha256 = {file_digest(path)!r}"
    if entry.repo and not entry.revision:
        yield f"  not pinned yet; for weights.toml: revision = {_commit(entry)!r}"


def _here(entry: Entry, file: WeightFile) -> Path | None:
    folder = find_folder(entry)
    path = folder / file.name if folder else None
    return path if path and path.is_file() else None


def _check(file: WeightFile, path: Path, found: str) -> None:
    if not found.startswith(file.digits):
        raise UserError(
            f"{path}: sha256 is {found}, {should_be(file.digits)}: the source serves another file; it is not used"
        )


def _download(entry: Entry, file: WeightFile, *, again: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        if file.url:
            return _download_url(entry, file)
        path = hf_hub_download(
            entry.repo,
            file.name,
            revision=entry.revision or "main",
            local_dir=own_folder(entry),
            force_download=again,
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, URLError) as error:
        raise UserError(
            f"{entry.id}: {file.name} cannot be downloaded: its source cannot be reached, or HF_HUB_OFFLINE is set; "
            f"bring it from {entry.page} by other means, as DIR/{entry.id}/{file.name}, and pass --weights DIR"
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(f"{entry.id}: {file.name} from {entry.page}: {_first_line(error)}") from error
    return Path(path)


def _download_url(entry: Entry, file: WeightFile) -> Path:
    """Download a file from outside the hub, with progress, whole or not at all; such files are small."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from torch.hub import download_url_to_file

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled(file.url)
    folder = own_folder(entry) or url_folder(entry)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(file.url, str(folder / file.name), hash_prefix=file.digits or None)
    except RuntimeError as error:  # the digest is not the one it should have
        raise UserError(f"{entry.id}: {file.url}: {_first_line(error)}; it is not used") from error
    return folder / file.name


def _commit(entry: Entry) -> str:
    """Return the commit behind the files of an entry without a pinned revision, "" where it cannot be told."""
    folder = find_folder(entry)
    return folder.name if folder and folder.parent.name == "snapshots" else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
