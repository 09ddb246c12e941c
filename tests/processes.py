"""Run a function in several processes of one gloo group. Whatever hangs is ended after a while."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# A rank finds the function by its module's name, which pytest counts from the root.
ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

# The server process imports torch once, on one thread; every rank is a fork of it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "eplb_plugin.controller"])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
    """`[function(*args) on rank 0, … on rank world_size - 1]`; the default group is theirs, over gloo on loopback.

    `function` is a module's own function and must return what can be pickled. Raises AssertionError with the traceback
    of the first rank that fails, and TimeoutError if a rank does not answer in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
        ranks = [
            _CONTEXT.Process(target=_rank, args=(rank, world_size, f"{folder}/store", timeout, pipe[1], function, args))
            for rank, pipe in enumerate(pipes)
        ]
        try:
            for rank in ranks:
                rank.start()
            for _, sender in pipes:
                sender.close()
            return _collect([receiver for receiver, _ in pipes], time.monotonic() + timeout)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.join(1.0)
                if rank.is_alive():
                    rank.kill()
                rank.join()
            for receiver, _ in pipes:
                receiver.close()


def _collect(receivers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = [one for rank, one in enumerate(receivers) if rank not in results]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(receivers)) if rank not in results]
            raise TimeoutError(f"ranks {missing} did not answer")
        for one in ready:
            assert isinstance(one, Connection)
            rank = receivers.index(one)
            try:
                ok, value = one.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


def _rank(
    rank: int, size: int, store: str, timeout: float, answer: Connection, function: Callable[..., Any], args: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        result = (True, function(*args))
        dist.barrier()  # no rank leaves while another still talks to it
        dist.destroy_process_group()
    except BaseException:
        result = (False, traceback.format_exc())
    answer.send(result)
    answer.close()
