"""Process groups for tests that refuse what NCCL leaves undefined or does slowly, over gloo between real processes.

Two backends, once `install` was called in a process. `nccl_rules` takes the place of NCCL: tensors of the simulated
device only (tests/simulated_device.py), messages that come in the order of the stream. `gloo_rules` takes that of a
group on the CPU. Either raises `RuleBroken` for
- a message between two ranks before something that all ranks enter: as a group's first operation it hangs in NCCL;
- the first message of a pair once `serving` was called: transports are made for it, in memory that is taken by then;
- an operation from one thread while one from another is under way: in which order they come depends on the rank;
- a barrier without a device: NCCL takes the one that the rank's number says, whoever it belongs to.
And `nccl_rules` for a wait with a time limit: NCCL's asks every millisecond, on the host.

A message that does not arrive within the `patience` stops the device, as it would a GPU's
stream: nothing after it is done, no event that is recorded is ever reached, until the group is aborted.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import simulated_device as sim

_patience = timedelta(seconds=60)
_serving = False


class RuleBroken(AssertionError):
    """What would be undefined, or slow, on GPUs. (No RuntimeError: whoever expects transports to fail lets it pass.)"""


class _Work:
    """Of `Rules`: waited for by whoever began it."""

    def __init__(self, group: Rules, work: Any, arrives: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._group, self._work, self._arrives, self._thread = group, work, arrives, threading.get_ident()
        group.under_way.append(self)

    @property
    def thread(self) -> int:
        return self._thread

    def wait(self, timeout: timedelta | None = None) -> bool:
        if timeout is not None and self._group.of_device:
            raise RuleBroken("a wait with a time limit")
        if self in self._group.under_way:
            self._group.under_way.remove(self)
        if not self._group.of_device:
            self._work.wait(timeout) if timeout is not None else self._work.wait()
        elif not sim.has_stopped():
            try:
                self._work.wait(_patience)
            except RuntimeError:
                sim.stop()
                return True
            for target, value in self._arrives:
                sim.host_view(target).copy_(value)
        return True


class Rules(dist.ProcessGroup):
    of_device = False

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._known: set[int] = set()  # peers that a message was exchanged with
        self._entered = False
        self.under_way: list[_Work] = []
        self._aborted = False

    def getBackendName(self) -> str:
        return "nccl_rules" if self.of_device else "gloo_rules"

    def abort(self) -> None:
        self._aborted = True
        sim.stop(False)

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> _Work:
        return self._collective("allreduce", tensors, opts)

    def reduce(self, tensors: list[torch.Tensor], opts: Any) -> _Work:
        return self._collective("reduce", tensors, opts)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> _Work:
        return self._collective("broadcast", tensors, opts)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> _Work:
        self._begin()
        self._entered = True
        here = [[self._host(one) for one in parts] for parts in outputs]
        work = self._gloo.allgather(here, [self._host(one) for one in inputs])
        pairs = [pair for parts in zip(outputs, here, strict=True) for pair in zip(*parts, strict=True)]
        return _Work(self, work, pairs)

    def barrier(self, opts: Any) -> _Work:
        if not opts.device_ids:
            raise RuleBroken("a barrier without a device")
        self._begin()
        self._entered = True
        return _Work(self, self._gloo.barrier(), [])

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> _Work:
        self._message(peer)
        here = [self._host(one) for one in tensors]
        return _Work(self, None if sim.has_stopped() else self._gloo.send(here, peer, tag), [])

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> _Work:
        self._message(peer)
        here = [self._host(one) for one in tensors]
        work = None if sim.has_stopped() else self._gloo.recv(here, peer, tag)
        return _Work(self, work, list(zip(tensors, here, strict=True)))

    def _collective(self, name: str, tensors: list[torch.Tensor], opts: Any) -> _Work:
        self._begin()
        self._entered = True
        here = [self._host(one) for one in tensors]
        return _Work(self, getattr(self._gloo, name)(here, opts), list(zip(tensors, here, strict=True)))

    def _message(self, peer: int) -> None:
        self._begin()
        if not self._entered:
            raise RuleBroken(f"a message with rank {peer} before anything that all ranks enter")
        if _serving and peer not in self._known:
            raise RuleBroken(f"the first message with rank {peer} while serving")
        self._known.add(peer)

    def _begin(self) -> None:
        if self._aborted:
            raise RuntimeError("the group was aborted")
        if any(one.thread != threading.get_ident() for one in self.under_way):
            raise RuleBroken(f"thread {threading.current_thread().name} begins while another's operation is under way")

    def _host(self, tensor: torch.Tensor) -> torch.Tensor:
        if (tensor.device.type == sim.NAME) != self.of_device:
            raise RuleBroken(f"a tensor on {tensor.device} in a group of backend {self.getBackendName()}")
        return sim.host_view(tensor).clone() if self.of_device else tensor


class DeviceRules(Rules):
    of_device = True


def install() -> torch.device:
    """In this process, for good. Returns the simulated device, of which all is begun anew."""
    patience(60.0)
    device = sim.install()
    if "NCCL_RULES" not in dist.Backend._plugins:
        dist.Backend.register_backend("nccl_rules", DeviceRules, devices=[sim.NAME, "cpu"])
        dist.Backend.register_backend("gloo_rules", Rules, devices=["cpu"])
    serving(False)
    return device


def patience(seconds: float) -> None:
    """How long a message may take, from now on, before it stops the device."""
    global _patience
    _patience = timedelta(seconds=seconds)


def serving(on: bool = True) -> None:
    """From now on no pair of ranks has its first message."""
    global _serving
    _serving = on
