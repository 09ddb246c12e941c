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

import contextlib
import ctypes
import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "sim"
LAG = 2  # questions to an event before it says yes
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_BY_VALUE = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal", "_local_scalar_dense")
_MOVES_INDEX = (
    "index",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "index_put",
)  # on a GPU too: by a blocking copy
_ALIGNMENT = 256  # as CUDA's allocator


class CaptureError(RuntimeError):
    """What would break the capture of a graph."""


class Counts:
    """What happened since the last `reset`, over all threads.

    host_reads: values that the host asked for, by operation; host_waits: for events and streams; pageable, pinned:
    copies between host and device that wait for the device, and that do not; launches: operations on the device;
    allocations: of device memory; allocated, peak: bytes of it that live now, and lived at most.
    faults: what a GPU would have answered with wrong values. waiting: the threads that waited, and how often.
    """

    def __init__(self) -> None:
        self.allocated = 0
        self.faults: list[str] = []
        self.reset()

    def reset(self) -> None:
        self.host_reads: Counter[str] = Counter()
        self.host_waits = self.pageable = self.pinned = self.allocations = 0
        self.waiting: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.addresses: list[tuple[str, tuple[int, ...]]] = []  # of every launch: its operation and tensors
        self.peak = self.allocated

    @property
    def stops(self) -> int:
        """How often the host waited for the device, whatever for."""
        return sum(self.host_reads.values()) + self.host_waits + self.pageable

    def waited(self) -> None:
        self.waiting[threading.current_thread().name] += 1


counts = Counts()
_thread = threading.local()
_memory: dict[int, torch.Tensor] = {}  # address of a storage -> the host memory that it is made of
_pinned: set[int] = set()
_capturing = False
_stopped = False


# Memory: the host's, given the device's name through DLPack, which is how foreign memory gets into torch.
class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dims", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_alive: dict[int, tuple[Any, ...]] = {}
_EXTENSION, _UNSIGNED = 12, 1  # DLPack's numbers


@_Deleter
def _free(managed: Any) -> None:
    address = ctypes.addressof(managed.contents)
    _, _, _, memory, begin = _alive.pop(address)
    _memory.pop(begin, None)
    counts.allocated -= len(memory)


def _allocate(nbytes: int) -> torch.Tensor:
    """[nbytes] uint8 on the device, filled with rubbish as a GPU's is."""
    if _capturing and not getattr(_thread, "pool", False):
        raise CaptureError("memory was allocated")
    size = max(-(-nbytes // _ALIGNMENT) * _ALIGNMENT, _ALIGNMENT)
    whole = torch.full((size + _ALIGNMENT,), 0xA5, dtype=torch.uint8)
    skip = -whole.data_ptr() % _ALIGNMENT
    begin = whole.data_ptr() + skip
    managed, shape, strides = _Managed(), (ctypes.c_int64 * 1)(size), (ctypes.c_int64 * 1)(1)
    managed.tensor = _Tensor(begin, _Device(_EXTENSION, _device()), 1, _Type(_UNSIGNED, 8, 1), shape, strides, 0)
    managed.deleter = _free
    _alive[ctypes.addressof(managed)] = managed, shape, strides, whole, begin
    _memory[begin] = whole[skip : skip + size]
    counts.allocations += 1
    counts.allocated += len(whole)
    counts.peak = max(counts.peak, counts.allocated)
    return torch._C._from_dlpack(_capsule(ctypes.addressof(managed), b"dltensor", None))[:nbytes]


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor on the device, as a tensor of the CPU: for what stands in for a kernel in tests."""
    if not tensor.numel():
        return torch.empty(tensor.size(), dtype=tensor.dtype)
    memory = _memory[tensor.untyped_storage().data_ptr()]
    offset = memory.storage_offset() // tensor.element_size() + tensor.storage_offset()
    with torch.inference_mode(tensor.is_inference()):
        seen = torch.empty(0, dtype=tensor.dtype)
        return seen.set_(memory.untyped_storage(), offset, tensor.size(), tensor.stride())


def _on_device(value: torch.Tensor) -> torch.Tensor:
    """A copy of a host tensor, laid out as it is."""
    made = _empty_strided(value.size(), value.stride(), value.dtype)
    host_view(made).copy_(value)
    return made


def _empty_strided(size: Any, stride: Any, dtype: torch.dtype | None) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    extent = 1 + sum((one - 1) * step for one, step in zip(size, stride, strict=True))
    extent = 0 if 0 in size else extent
    raw = _allocate(extent * dtype.itemsize).view(dtype)
    return torch.ops.aten.as_strided.default(raw, list(size), list(stride), 0)


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
            _host_copy(value, pinned_host=False, why=name)
        return value

    here = tree_map(seen, _with_tensors(op, args)), tree_map(seen, kwargs)
    if name in _BY_VALUE:
        _read(name)
    counts.launches[name] += 1
    counts.addresses.append((name, tuple(one.data_ptr() for one in ours.values())))
    _check_thread(name)
    found = op(*here[0], **here[1])

    def given(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in ours:
            return _on_device(value)
        if value.size() != ours[id(value)].size():  # an empty out= tensor that grew
            made = _on_device(value)
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
    return _empty_strided(size, stride, dtype)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if source.device == target.device:
        counts.launches["copy_"] += 1
        counts.addresses.append(("copy_", (source.data_ptr(), target.data_ptr())))
        _check_thread("copy_")
        host_view(target).copy_(host_view(source))
        return target
    host = source if source.device.type == "cpu" else target
    free = non_blocking and _is_pinned(host)
    _host_copy(host, pinned_host=free, why="copy_")
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
    "empty_strided": lambda size, stride, *, dtype=None, **_: _empty_strided(size, stride, dtype),
    "_copy_from": _copy_from,
    "resize_": _resize,
}


def _read(name: str) -> None:
    if _capturing:
        raise CaptureError(f"{name}: the host read a value")
    counts.host_reads[name] += 1
    counts.waited()


def _host_copy(host: torch.Tensor, *, pinned_host: bool, why: str) -> None:
    if pinned_host:
        counts.pinned += 1
        return
    if _capturing:
        raise CaptureError(f"{why}: a copy between the device and {list(host.shape)} on the host that waits")
    counts.pageable += 1
    counts.waited()


# Streams and events
class Stream:
    """Work is over when it is launched; what crosses to the host arrives with the event that is recorded after it."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.ahead: list[tuple[torch.Tensor, torch.Tensor]] = []  # (host memory, what arrives there)
        self.sources: list[tuple[torch.Tensor, torch.Tensor]] = []  # (pinned memory, what it held)
        self.device_index = 0

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        _wait("stream")
        self.arrive(len(self.ahead), len(self.sources))

    def query(self) -> bool:
        return not self.ahead

    def arrive(self, ahead: int, sources: int) -> None:
        for target, value in self.ahead[:ahead]:
            with torch.inference_mode(target.is_inference()):
                target.copy_(value)
        for source, held in self.sources[:sources]:
            if not torch.equal(source, held):
                counts.faults.append(f"pinned memory {list(source.shape)} was written before its copy was over")
        del self.ahead[:ahead], self.sources[:sources]

    def __enter__(self) -> Stream:
        self._before = current_stream()
        _thread.stream, _thread.has_device = self, True  # torch sets the device with the stream
        return self

    def __exit__(self, *_: object) -> None:
        _thread.stream = self._before


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self._stream: Stream | None = None
        self._asked = 0

    def record(self, stream: Stream | None = None) -> None:
        _check_thread("record")
        self._stream = stream or current_stream()
        self._marks = len(self._stream.ahead), len(self._stream.sources)
        self._asked = 0

    def query(self) -> bool:
        if _capturing:
            raise CaptureError("an event was asked")
        _check_thread("query")
        self._asked += 1
        if self._asked > LAG and not _stopped:
            self._arrive()
            return True
        return self._stream is None

    def wait(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None:
        _check_thread("synchronize")
        _wait("event")
        self._arrive()

    def _arrive(self) -> None:
        if self._stream is not None:
            self._stream.arrive(*self._marks)
            self._stream = None


def _wait(what: str) -> None:
    if _capturing:
        raise CaptureError(f"the host waited for a {what}")
    counts.host_waits += 1
    counts.waited()
    if _stopped:
        raise RuntimeError(f"the host waits for a {what} that never comes: the device has stopped")


_default = Stream()


def current_stream(device: Any = None) -> Stream:
    found: Stream = getattr(_thread, "stream", _default)
    return found


def _check_thread(what: str) -> None:
    """A thread in which no device was set makes a context on device 0, whatever device the process serves with."""
    if threading.current_thread() is not threading.main_thread() and not getattr(_thread, "has_device", False):
        counts.faults.append(f"{what}: thread {threading.current_thread().name} has not set its device")


def _set_device(device: Any) -> None:
    _thread.has_device = True


def _device() -> int:
    return 0


# Pinned memory
def _pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin memory of {tensor.device}")
    made = tensor.clone()
    _pinned.add(made.untyped_storage().data_ptr())
    _kept.append(made)  # an address is not given to other memory while it is known as pinned
    return made


_kept: list[torch.Tensor] = []


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _pinned


def _pinning(make: Any) -> Any:
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = make(*args, **kwargs)
        return _pin(tensor) if pin_memory else tensor

    return made


def stop(stopped: bool = True) -> None:
    """The device does nothing more of what it was given, as behind a message that does not come; or goes on."""
    global _stopped
    _stopped = stopped


def has_stopped() -> bool:
    return _stopped


@contextlib.contextmanager
def capturing(pool: bool = False) -> Iterator[None]:
    """As a graph is captured: host reads, waits, blocking copies and allocations raise CaptureError.

    pool: memory comes from the graph's own, so that this thread may allocate.
    """
    global _capturing
    _capturing, _thread.pool = True, pool
    try:
        yield
    finally:
        _capturing = _thread.pool = False


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
        torch.Tensor.pin_memory, torch.Tensor.is_pinned = _pin, _is_pinned  # type: ignore[method-assign,assignment]
        for make in ("empty", "zeros", "ones", "full", "tensor"):
            setattr(torch, make, _pinning(getattr(torch, make)))
        torch.Stream, torch.Event = Stream, Event  # type: ignore[misc,assignment]
        torch.accelerator.current_stream = current_stream  # type: ignore[assignment]
        torch.accelerator.set_device_index = _set_device
        torch.accelerator.synchronize = lambda device=None: current_stream().synchronize()
    stop(False)
    counts.reset()
    counts.faults.clear()
    return torch.device(NAME, 0)
