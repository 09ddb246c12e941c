"""EPLB's streams and events: on a CPU, an accelerator with one stream on which everything has already happened.

EPLB orders its transfers with `torch.Event`, `torch.Stream` and `torch.accelerator`, which raise without a GPU. The
modules of EPLB get a `torch` of their own in which these exist and do nothing; the thread that waits for another one
does so by a `threading.Event` of vLLM's, which stays. Everything else is the real torch.
"""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from vllm.distributed.eplb import async_worker, eplb_communicator, eplb_state, eplb_utils
from vllm.distributed.eplb.eplb_state import EplbState

from ..patching import replace, require

_MODULES = (eplb_utils, eplb_state, eplb_communicator, async_worker)


class _Event:
    """What `record` precedes is over when it returns, so nobody ever waits."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._time = 0.0

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "_Event") -> float:
        return (end._time - self._time) * 1e3


class _Stream:
    def __init__(self, device: Any = None) -> None: ...

    def synchronize(self) -> None: ...


class _Accelerator:
    @staticmethod
    def current_accelerator() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def set_device_index(index: int) -> None: ...

    @staticmethod
    def current_stream() -> _Stream:
        return _Stream()

    @staticmethod
    def set_stream(stream: _Stream) -> None: ...


class _TorchWithAccelerator:
    Event = _Event
    Stream = _Stream
    accelerator = _Accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def install() -> None:
    for module in _MODULES:
        require(f"{module.__name__}.torch is torch", f"{module.__name__}.torch is {_name(module)}")
        module.torch = _TorchWithAccelerator()
    replace(EplbState, "__init__", "self, parallel_config, device", _with_a_number)


def _with_a_number(original: Callable) -> Callable:
    def __init__(self: EplbState, parallel_config: Any, device: torch.device) -> None:
        original(self, parallel_config, device)
        self.device_index = 0  # EPLB's thread asks for one

    return __init__


def _name(module: ModuleType) -> str:
    return getattr(getattr(module, "torch", None), "__name__", "something else")
