"""An accelerator for tests, with real values: tensors of the device `sim` obey a GPU's rules on a machine without one.

A CPU forgives what a GPU does not. Here an operation between devices fails, and what makes the host wait is counted:
reads of values (`item`, `tolist`, `nonzero`), copies from memory that is not pinned, waits for events and streams.
Allocations are counted too. A copy to pinned memory arrives no sooner than somebody has waited for its event: until
then the memory holds rubbish. A pinned source that is written before its copy is over is a fault.

torch has one backend for others to fill, PrivateUse1, and one per process: once it is installed, torch believes that
the process has an accelerator. So `install` works in child processes only (`processes.run_ranks`).

Within `capturing()` everything that a CUDA graph does not allow raises `CaptureError`.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from simulated_counts import CaptureError as CaptureError
from simulated_counts import capturing as capturing
from simulated_counts import check_thread, counts, host_copy, read, stop, thread
from simulated_counts import has_stopped as has_stopped
from simulated_memory import NAME, empty_strided, host_view, is_pinned, on_device, pin, pinning
from simulated_streams import LAG as LAG
from simulated_streams import Event, Stream, current_stream

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_BY_VALUE = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal", "_local_scalar_dense")
_MOVES_INDEX = (
    "index",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "index_put",
)  # on a GPU too: by a blocking copy


# Operations: views share the storage as they do anywhere; all else is computed by the CPU in the same memory.
def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    name = op._schema.name.removeprefix("aten::")
    if name in ("empty", "empty_strided", "_copy_from", "resize_"):
        return _SPECIAL[name](*args, **kwargs)
    if any(one.alias_info is not None and not one.alias_info.is_write for one in op._schema.returns):
        return op.redispatch(_CPU, *args, **kwargs)
    ours: dict[int, torch.Tensor] = {}

    def seen(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.device.type == NAME:
            alias = host_view(value)
            ours[id(alias)] = value
            return alias
        if value.device.type == "cpu" and value.dim() and name not in _MOVES_INDEX:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {NAME} and cpu")
        if value.dim():
            host_copy(value, pinned_host=False, why=name)
        return value

    here = tree_map(seen, _with_tensors(op, args)), tree_map(seen, kwargs)
    if name in _BY_VALUE:
        read(name)
    counts.launches[name] += 1
    counts.addresses.append((name, tuple(one.data_ptr() for one in ours.values())))
    check_thread(name)
    found = op(*here[0], **here[1])

    def given(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in ours:
            return on_device(value)
        if value.size() != ours[id(value)].size():  # an empty out= tensor that grew
            made = on_device(value)
            layout = made.untyped_storage(), made.storage_offset(), made.size(), made.stride()
            torch.ops.aten.set_.source_Storage_storage_offset.redispatch(_CPU, ours[id(value)], *layout)
        return ours[id(value)]

    return tree_map(given, found)


def _with_tensors(op: Any, args: tuple[Any, ...]) -> list[Any]:
    """torch hands a Python number that stands for a tensor over as the number; the operation wants the tensor."""
    first = next((one.dtype for one in args if isinstance(one, torch.Tensor)), torch.int64)
    made = []
    for value, expected in zip(args, op._schema.arguments, strict=False):
        if isinstance(value, (int, float)) and isinstance(expected.type, torch.TensorType):
            fits = first.is_floating_point or (isinstance(value, int) and first != torch.bool)
            value = torch.tensor(value, dtype=first if fits else None)
        made.append(value)
    return made


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    stride, extent = [], 1
    for one in reversed(size):
        stride.insert(0, extent)
        extent *= max(one, 1)
    return empty_strided(size, stride, dtype)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if source.device == target.device:
        counts.launches["copy_"] += 1
        counts.addresses.append(("copy_", (source.data_ptr(), target.data_ptr())))
        check_thread("copy_")
        host_view(target).copy_(host_view(source))
        return target
    host = source if source.device.type == "cpu" else target
    free = non_blocking and is_pinned(host)
    host_copy(host, pinned_host=free, why="copy_")
    if source.device.type == "cpu":
        host_view(target).copy_(source)
        if free:
            current_stream().sources.append((source, source.clone()))
    elif not free:
        if non_blocking:  # into memory that is not pinned: torch returns before it is there, or waits; both are wrong
            counts.faults.append("a copy to the host that does not wait, into memory that is not pinned")
        target.copy_(host_view(source))
    else:
        current_stream().ahead.append((target, host_view(source).clone()))
        target.view(torch.uint8).fill_(0xA5) if target.is_contiguous() else target.zero_()
    return target


def _resize(tensor: torch.Tensor, size: Any, **_: Any) -> torch.Tensor:
    if list(tensor.size()) != list(size):
        raise RuntimeError(f"an out= tensor of {list(tensor.size())} was given for a result of {list(size)}")
    return tensor


_SPECIAL: dict[str, Any] = {
    "empty": _empty,
    "empty_strided": lambda size, stride, *, dtype=None, **_: empty_strided(size, stride, dtype),
    "_copy_from": _copy_from,
    "resize_": _resize,
}


def _set_device(device: Any) -> None:
    thread.has_device = True


_library: list[torch.library.Library] = []


def install() -> torch.device:
    """In this process, for good: torch has the device `sim`. Returns it."""
    if multiprocessing.parent_process() is None:
        raise RuntimeError("found pytest's own process, expected a child: call it in a function for `run_ranks`")
    if not _library:
        _setup_privateuseone_for_python_backend(NAME)
        library = torch.library.Library("_", "IMPL")
        library.fallback(_fallback, "PrivateUse1")
        _library.append(library)
        torch.Tensor.pin_memory, torch.Tensor.is_pinned = pin, is_pinned  # type: ignore[method-assign,assignment]
        for make in ("empty", "zeros", "ones", "full", "tensor"):
            setattr(torch, make, pinning(getattr(torch, make)))
        torch.Stream, torch.Event = Stream, Event  # type: ignore[misc,assignment]
        torch.accelerator.current_stream = current_stream  # type: ignore[assignment]
        torch.accelerator.set_device_index = _set_device
        torch.accelerator.synchronize = lambda device=None: current_stream().synchronize()
    stop(False)
    counts.reset()
    counts.faults.clear()
    return torch.device(NAME, 0)
