"""`kernels.cover` as an operator of torch: what compiles a forward pass takes it as it is, whole.

Traced through, its launch and its loop would be the compiler's to take apart. What it counts into is declared, so that
nothing is moved across it or left out.
"""

from __future__ import annotations

import torch

from ..errors import mismatch
from .kernels import Counters, LayerTables, cover

_LIBRARY = torch.library.Library("eplb_plugin", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "cover(Tensor ids, Tensor nodes, Tensor counts, Tensor copies, int held, int source, int num_nodes, "
    "Tensor(a!) rows, Tensor(b!) load, Tensor(c!) pairs, Tensor(d!) slot_load, Tensor enabled, Tensor real, int chunk"
    ") -> Tensor"
)


def cover_op(ids: torch.Tensor, tables: LayerTables, counters: Counters) -> torch.Tensor:
    """`kernels.cover`; ids: [T, k] with the k of `counters.rows`."""
    slots: torch.Tensor = torch.ops.eplb_plugin.cover(ids, *tables, *counters)
    return slots


def _run(ids: torch.Tensor, *parts: object) -> torch.Tensor:
    tables = LayerTables(*parts[: len(LayerTables._fields)])  # type: ignore[arg-type]
    counters = Counters(*parts[len(LayerTables._fields) :])  # type: ignore[arg-type]
    if ids.shape[1] != counters.rows.shape[1]:  # rows of another length would be counted beyond the buffer's end
        found, expected, fix = ids.shape[1], counters.rows.shape[1], "dispatch: weighted, and report this model"
        raise mismatch("experts per token", found=found, expected=expected, fix=fix)
    return cover(ids, tables, counters)


def _shape(ids: torch.Tensor, *parts: object) -> torch.Tensor:
    return torch.empty(ids.shape, dtype=ids.dtype, device=ids.device)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("cover", _run, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("eplb_plugin::cover", _shape, lib=_LIBRARY)
