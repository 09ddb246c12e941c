"""Which tensors of a MoE layer belong to single experts, and how the bytes of one expert are laid side by side.

A layer's tensors are refused by name unless it is certain what moving an expert means for them: a tensor that is left
behind gives wrong output without any error (block scales, zero points and alphas have been, in several engines).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..devices import sent
from ..errors import PluginError, mismatch
from .checksum import SEAL_WORDS

ALIGNMENT = 16  # bytes; widest word that kernels load, and a multiple of every dtype's size
_FIX = "use the engine's own EPLB for this model, and report the tensor"


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """The expert tensors of one layer on one rank, as bytes.

    A staging row holds one expert: its bytes of every tensor, each part aligned, then the seal (see checksum.py).
    row_bytes: of such a row. expert_bytes: of these, what belongs to the tensors. signature: equal on all ranks.
    """

    matrices: tuple[torch.Tensor, ...]  # [slots, words] views of the tensors' own memory
    offsets: tuple[int, ...]  # bytes into a row
    row_bytes: int
    expert_bytes: int
    signature: str

    @property
    def num_slots(self) -> int:
        return len(self.matrices[0])

    @property
    def device(self) -> torch.device:
        return self.matrices[0].device

    def read(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """slots: [n] int64. Copy the experts in these slots into rows: [n, row_bytes] uint8.

        Rows in the host's memory are there on return. They are gathered on the device first: one copy crosses.
        """
        slots = sent(slots, self.device)
        here = rows if rows.device == self.device else torch.empty_like(rows, device=self.device)
        for matrix, part in self._parts(here):
            torch.index_select(matrix, 0, slots, out=part)
        if here is not rows:
            rows.copy_(here)

    def write(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Copy rows: [n, row_bytes] uint8 into these slots, in place."""
        slots, rows = sent(slots, self.device), sent(rows, self.device)
        for matrix, part in self._parts(rows):
            matrix.index_copy_(0, slots, part)

    def _parts(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for matrix, offset in zip(self.matrices, self.offsets, strict=True):
            size = matrix.shape[1] * matrix.element_size()
            yield matrix, rows[:, offset : offset + size].view(matrix.dtype)


def expert_rows(tensors: Mapping[str, torch.Tensor], num_slots: int, shared: Collection[str] = ()) -> ExpertRows:
    """Lay out one layer. tensors: its parameters and buffers by name; num_slots: local experts of this rank.

    Every tensor with a leading dimension of `num_slots` moves: weights, block scales, zero points, packed int4, biases.
    Left alone: single values, tensors broadcast over the experts (stride 0), and those named in `shared`, which the
    engine knows to be no expert's. (With one slot a rank, shape and stride cannot tell those from an expert's.)
    Raises PluginError, naming the tensor, for anything else.
    """
    matrices: dict[tuple[int, int], torch.Tensor] = {}
    names = []
    for name, tensor in tensors.items():
        if name in shared or not _moves(name, tensor, num_slots):
            continue
        matrix = _as_matrix(name, tensor.detach())
        key = (matrix.data_ptr(), matrix.shape[1] * matrix.element_size())
        if key not in matrices:  # one tensor under two names moves once
            matrices[key] = matrix
            names.append(f"{name}:{tensor.dtype}{list(tensor.shape[1:])}{list(tensor.stride()[1:])}")
    if not names:
        raise mismatch("MoE layer", found="no tensor of experts", expected=f"[{num_slots}, …]", fix=_FIX)
    devices = {matrix.device for matrix in matrices.values()}
    if len(devices) != 1:
        raise mismatch("expert tensors", found=f"on {sorted(map(str, devices))}", expected="one device", fix=_FIX)
    offsets, end = [], 0
    sizes = [matrix.shape[1] * matrix.element_size() for matrix in matrices.values()]
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return ExpertRows(tuple(matrices.values()), tuple(offsets), end + 8 * SEAL_WORDS, sum(sizes), "; ".join(names))


def _moves(name: str, tensor: torch.Tensor, num_slots: int) -> bool:
    kind = type(tensor).__name__
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped or tensor.layout != torch.strided or tensor.is_meta:
        raise mismatch(name, found=f"{kind}, {tensor.layout}, {tensor.device}", expected="plain memory", fix=_FIX)
    if tensor.numel() == 0:
        return False
    if tensor.dim() > 0 and tensor.shape[0] == num_slots:
        return num_slots == 1 or tensor.stride(0) != 0
    if tensor.numel() == 1:
        return False
    expected = f"[{num_slots}, …], one entry per local expert, or a value that all experts share"
    raise mismatch(name, found=f"{list(tensor.shape)} {tensor.dtype}", expected=expected, fix=_FIX)


def _as_matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[slots, words] view in the order of memory, so that transposed tensors move as they lie."""
    slots, *inner = range(tensor.dim())
    inner = sorted((one for one in inner if tensor.shape[one] > 1), key=tensor.stride, reverse=True)
    extent = 1
    for one in reversed(inner):
        if tensor.stride(one) != extent:
            raise _refused_strides(name, tensor)
        extent *= tensor.shape[one]
    if tensor.shape[slots] > 1 and tensor.stride(slots) < extent:
        raise _refused_strides(name, tensor)
    matrix = tensor.as_strided((tensor.shape[slots], extent), (max(tensor.stride(slots), extent), 1))
    size = tensor.element_size()
    for word in (torch.int64, torch.int32, torch.int16):
        places = (extent * size, matrix.stride(0) * size, tensor.storage_offset() * size, tensor.data_ptr())
        if all(place % word.itemsize == 0 for place in places):
            return matrix.view(word)
    return matrix.view(torch.uint8)


def _refused_strides(name: str, tensor: torch.Tensor) -> PluginError:
    found = f"{list(tensor.shape)} with strides {list(tensor.stride())}"
    return mismatch(name, found=found, expected="every expert in one piece of memory", fix=_FIX)
