"""The memory of a simulated accelerator: the host's, under another device's name; and the host's own that is pinned."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from simulated_counts import allocated, counts

NAME = "sim"
_ALIGNMENT = 256  # as CUDA's allocator
_memory: dict[int, torch.Tensor] = {}  # address of a storage -> the host memory that it is made of
_pinned: set[int] = set()


# Given the device's name through DLPack, which is how foreign memory gets into torch.
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
    allocated()
    size = max(-(-nbytes // _ALIGNMENT) * _ALIGNMENT, _ALIGNMENT)
    whole = torch.full((size + _ALIGNMENT,), 0xA5, dtype=torch.uint8)
    skip = -whole.data_ptr() % _ALIGNMENT
    begin = whole.data_ptr() + skip
    managed, shape, strides = _Managed(), (ctypes.c_int64 * 1)(size), (ctypes.c_int64 * 1)(1)
    managed.tensor = _Tensor(begin, _Device(_EXTENSION, 0), 1, _Type(_UNSIGNED, 8, 1), shape, strides, 0)
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


def on_device(value: torch.Tensor) -> torch.Tensor:
    """A copy of a host tensor, laid out as it is."""
    made = empty_strided(value.size(), value.stride(), value.dtype)
    host_view(made).copy_(value)
    return made


def empty_strided(size: Any, stride: Any, dtype: torch.dtype | None) -> torch.Tensor:
    dtype = dtype or torch.get_default_dtype()
    extent = 1 + sum((one - 1) * step for one, step in zip(size, stride, strict=True))
    extent = 0 if 0 in size else extent
    raw = _allocate(extent * dtype.itemsize).view(dtype)
    return torch.ops.aten.as_strided.default(raw, list(size), list(stride), 0)


def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin memory of {tensor.device}")
    made = tensor.clone()
    _pinned.add(made.untyped_storage().data_ptr())
    _kept.append(made)  # an address is not given to other memory while it is known as pinned
    return made


_kept: list[torch.Tensor] = []


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _pinned


def pinning(make: Any) -> Any:
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = make(*args, **kwargs)
        return pin(tensor) if pin_memory else tensor

    return made
