"""Run functions in several processes of one gloo group. Whatever hangs is ended after a while."""

from __future__ import annotations

import contextlib
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
_CONTEXT.set_forkserver_preload(
    ["torch.distributed", "eplb_plugin.runtime.rebalancer", "eplb_plugin.migration.shuffle", "pytest", "hypothesis"]
)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
    """`[function(*args) on rank 0, … on rank world_size - 1]`; the default group is theirs, over gloo on loopback.

    `function` is a module's own function and must return what can be pickled. Raises AssertionError with the traceback
    of the first rank that fails, and TimeoutError if a rank does not answer in time.
    """
    with Ranks(world_size, timeout) as ranks:
        return ranks.run(function, *args)


class Ranks:
    """Processes that run one function after another; a context manager, after which none of them is left.

    timeout: seconds for one function, and of every collective of the default group.
    """

    def __init__(self, world_size: int, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._folder = tempfile.TemporaryDirectory()
        store = f"{self._folder.name}/store"
        pipes = [_CONTEXT.Pipe() for _ in range(world_size)]
        self._ends = [end for end, _ in pipes]
        self.processes = [
            _CONTEXT.Process(target=_serve, args=(rank, world_size, store, timeout, end))
            for rank, (_, end) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        for _, end in pipes:
            end.close()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def close(self) -> None:
        for end in self._ends:
            end.close()  # a rank that waits for its next function ends
        for process in self.processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
            process.join()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The value of every rank; see `run_ranks`."""
        self.start(function, *args)
        values = []
        for rank, (ok, value) in enumerate(self.answers()):
            if ok is None:
                raise AssertionError(f"rank {rank} died")
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            values.append(value)
        return values

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        for end in self._ends:
            end.send((function, args))

    def answered(self, rank: int) -> bool:
        """Whether a rank has answered, or ended, since `start`."""
        return self._ends[rank].poll()

    def answers(self, expected: set[int] | None = None) -> list[tuple[bool | None, Any]]:
        """Of every rank (or of those expected): (True, value), (False, traceback) or (None, exit code).

        A failure ends the waiting, because the other ranks may wait for the one that failed. Raises TimeoutError.
        """
        deadline = time.monotonic() + self.timeout
        found: dict[int, tuple[bool | None, Any]] = {}
        waiting = set(range(len(self._ends))) if expected is None else set(expected)
        while waiting - set(found):
            left = {rank: self._ends[rank] for rank in waiting - set(found)}
            ready = wait(left.values(), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(left)} did not answer")
            for rank, end in left.items():
                if end in ready:
                    found[rank] = self._receive(rank, end)
                    if expected is None and not found[rank][0]:
                        return [found.get(rank, (True, None)) for rank in range(len(self._ends))]
        return [found[rank] for rank in sorted(found)]

    def _receive(self, rank: int, end: Connection) -> tuple[bool | None, Any]:
        try:
            return end.recv()
        except (EOFError, ConnectionResetError):
            self.processes[rank].join()
            return None, self.processes[rank].exitcode


def _serve(rank: int, size: int, store: str, timeout: float, end: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        while True:
            try:
                function, args = end.recv()
            except EOFError:
                break
            end.send((True, function(*args)))
    except BaseException:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            end.send((False, traceback.format_exc()))
    end.close()
    with contextlib.suppress(Exception):  # ranks may have died
        dist.barrier()  # no rank leaves while another still talks to it
        dist.destroy_process_group()
