"""Work ahead: while one block is in the encoders, other threads read and preprocess the next ones.

Blocks are claimed on a thread of their own, because a claim may have to wait for another process; if that wait were
on the thread that scores, two processes could wait for blocks of each other. At most AHEAD blocks wait to be scored,
so memory does not grow with the number of blocks.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Lock, Semaphore, Thread
from types import TracebackType
from typing import Generic, TypeVar

from filelock import FileLock

AHEAD = 2

T = TypeVar("T")
Entry = tuple[int, FileLock, Future[T]]


class ReadAhead(Generic[T]):
    """Iterates over claimed blocks: (block, its lock, the future of what `read` makes of the block).

    Whoever iterates releases the locks; leaving the context releases those of blocks that were never handed out."""

    def __init__(self, claims: Iterator[tuple[int, FileLock]], read: Callable[[int], T]) -> None:
        self._claims, self._read = claims, read
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="read-ahead")
        self._room = Semaphore(AHEAD + 1)  # and the block that is being scored
        self._ready: Queue[Entry[T] | None] = Queue()
        self._changing = Lock()
        self._stopped = self._complete = False
        # A daemon: waiting for another process must not keep this one alive after a fault.
        self._claimer = Thread(target=self._claim, name="claimer", daemon=True)

    def __enter__(self) -> "ReadAhead[T]":
        self._claimer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._stopped = True
        self._room.release()
        self._readers.shutdown(cancel_futures=True)
        while not self._ready.empty():
            if entry := self._ready.get():
                entry[1].release()

    def __iter__(self) -> Iterator[Entry[T]]:
        while entry := self._ready.get():
            yield entry
            self._room.release()
        if not self._complete:
            raise RuntimeError("blocks could not be claimed; the reason stands above")

    def _claim(self) -> None:
        try:
            self._room.acquire()
            for block, lock in self._claims:
                with self._changing:
                    if self._stopped:
                        lock.release()
                        return
                    self._ready.put((block, lock, self._readers.submit(self._read, block)))
                self._room.acquire()
            self._complete = True
        finally:
            self._ready.put(None)
