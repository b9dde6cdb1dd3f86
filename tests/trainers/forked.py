"""Processes that train together, forked from the test's own: as by a launcher, without loading everything anew."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState, PartialState


def forked(processes: int, work: Callable[[int], None]) -> list[int | None]:
    """Call work(rank) in each of so many processes that can find each other (gloo); return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def begin(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        AcceleratorState._reset_state(reset_partial_state=True)  # of the test process that was forked
        PartialState._reset_state()
        work(rank)

    started = [multiprocessing.get_context("fork").Process(target=begin, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]
