import hashlib
import os
from pathlib import Path

import pytest

from metrics.weights import files
from metrics.weights.files import compute_digest, file_digest

OLD = 1_600_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was last changed long ago."""
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    os.utime(path, (OLD, OLD))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_digest_is_computed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_digest(file) == sha256(b"old")
    monkeypatch.setattr(files, "compute_digest", lambda path: pytest.fail("read again"))
    assert file_digest(file) == sha256(b"old")


def test_a_change_is_seen_even_with_the_same_size_and_time(file: Path) -> None:
    file_digest(file)
    file.write_bytes(b"new")
    os.utime(file, (OLD, OLD))
    assert file_digest(file) == sha256(b"new")


def test_a_replaced_file_is_seen(file: Path) -> None:
    file_digest(file)
    other = file.with_name("other")
    other.write_bytes(b"new")
    os.utime(other, (OLD, OLD))
    other.replace(file)
    assert file_digest(file) == sha256(b"new")


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert compute_digest(path) == sha256(b"one")
    assert not any(files.user_cache("digests").iterdir())


def test_a_damaged_or_unwritable_memory_costs_only_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_digest(file)
    (kept,) = files.user_cache("digests").iterdir()
    kept.write_text('{"stamp": ')
    assert file_digest(file) == sha256(b"old")
    kept.unlink()

    def refuse(*paths: Path) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "replace", refuse)
    assert file_digest(file) == sha256(b"old")
