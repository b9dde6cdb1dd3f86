import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from benchmarks.ahead import AHEAD, ReadAhead


def claims(folder: Path, count: int, taken: list[int]) -> Iterator[tuple[int, FileLock]]:
    for block in range(count):
        lock = FileLock(folder / f"{block}.lock", thread_local=False)
        lock.acquire()
        taken.append(block)
        yield block, lock


def is_free(path: Path) -> bool:
    try:
        with FileLock(path, thread_local=False, timeout=0):
            return True
    except Timeout:
        return False


def wait_until(ready) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_blocks_come_in_the_order_of_their_claims(tmp_path: Path) -> None:
    seen = []
    with ReadAhead(claims(tmp_path, 7, []), lambda block: block**2) as ahead:
        for block, lock, square in ahead:
            seen.append((block, square.result()))
            lock.release()
    assert seen == [(n, n**2) for n in range(7)]


def test_no_more_blocks_are_claimed_than_are_kept_ready(tmp_path: Path) -> None:
    taken: list[int] = []
    with ReadAhead(claims(tmp_path, 20, taken), lambda block: block) as ahead:
        for block, lock, _ in ahead:
            wait_until(lambda: len(taken) >= min(20, block + 1 + AHEAD))  # noqa: B023
            time.sleep(0.01)
            assert len(taken) == min(20, block + 1 + AHEAD)
            lock.release()


def test_blocks_are_read_on_other_threads(tmp_path: Path) -> None:
    with ReadAhead(claims(tmp_path, 3, []), lambda block: threading.get_ident()) as ahead:
        for _, lock, thread in ahead:
            assert thread.result() != threading.get_ident()
            lock.release()


def test_a_fault_of_the_reader_is_raised_where_the_block_is_used(tmp_path: Path) -> None:
    def read(block: int) -> int:
        if block == 1:
            raise ValueError("damaged")
        return block

    with ReadAhead(claims(tmp_path, 3, []), read) as ahead:
        results = []
        for _, lock, future in ahead:
            lock.release()
            results.append(str(future.exception()))
    assert results == ["None", "damaged", "None"]


def test_leaving_early_gives_every_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with ReadAhead(claims(tmp_path, 9, []), lambda block: block) as ahead:
            for block, lock, _ in ahead:
                lock.release()
                if block == 2:
                    raise KeyboardInterrupt
    wait_until(lambda: all(is_free(path) for path in tmp_path.glob("*.lock")))


def test_claims_that_wait_for_another_process_do_not_stop_the_work(tmp_path: Path) -> None:
    """Two processes that each hold a block and want the other's next: neither may wait for the other's claim."""
    other = FileLock(tmp_path / "1.lock", thread_local=False)
    other.acquire()
    with ReadAhead(claims(tmp_path, 2, []), lambda block: block) as ahead:
        blocks = iter(ahead)
        first, lock, future = next(blocks)
        assert (first, future.result()) == (0, 0)  # while the claim of block 1 waits
        lock.release()
        other.release()
        second, lock, _ = next(blocks)
        assert second == 1
        lock.release()
        assert next(blocks, None) is None


def test_a_fault_of_the_claims_is_not_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[tuple[int, FileLock]]:
        yield from claims(tmp_path, 1, [])
        raise OSError("disk")

    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with pytest.raises(RuntimeError, match="could not be claimed"):  # noqa: SIM117
        with ReadAhead(failing(), lambda block: block) as ahead:
            for _, lock, _ in ahead:
                lock.release()
