"""The kernels as operators of torch: what compiles a forward pass takes them as they are, whole.

Traced through, their launches and loops would be the compiler's to take apart. What they count into is declared, so
that nothing is moved across them or left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import mismatch
from . import kernels
from .buffers import Counters, LayerTables

_LIBRARY = torch.library.Library("eplb_plugin", "DEF")  # type: ignore[no-untyped-call]
_COUNTERS = (
    "Tensor(a!) rows, Tensor(b!) load, Tensor(c!) pairs, Tensor(d!) slot_load, Tensor enabled, "
    "Tensor pairs_enabled, Tensor slots_enabled, Tensor real, int chunk"
)
_TABLES = "Tensor nodes, Tensor counts, Tensor copies, int held, int source, int num_nodes"
Chooser = Callable[[torch.Tensor, Counters], torch.Tensor]  # ids: [T, k] -> [T, k] slots
_choosers: dict[int, tuple[torch.Tensor, Chooser]] = {}  # by the address of the key


def cover(ids: torch.Tensor, tables: LayerTables, counters: Counters) -> torch.Tensor:
    """`kernels.cover`; ids: [T, k] with the k of `counters.rows`."""
    slots: torch.Tensor = torch.ops.eplb_plugin.cover(ids, *tables, *counters)
    return slots


def look_up(ids: torch.Tensor, rows: torch.Tensor, counters: Counters) -> torch.Tensor:
    """`kernels.look_up`, likewise."""
    slots: torch.Tensor = torch.ops.eplb_plugin.look_up(ids, rows, *counters)
    return slots


def record(ids: torch.Tensor, counters: Counters, phy2log: torch.Tensor) -> None:
    """`kernels.record` of slots, likewise."""
    torch.ops.eplb_plugin.record(ids, phy2log, *counters)


def key_of(chooser: Chooser, device: torch.device) -> torch.Tensor:
    """What `choose` knows it by, for good. A tensor, whose value a compiler does not look at: layers have graphs in
    common, as they would not by number.
    """
    key = torch.empty(1, device=device)
    _choosers[key.data_ptr()] = key, chooser
    return key


def choose(ids: torch.Tensor, key: torch.Tensor, counters: Counters) -> torch.Tensor:
    """Likewise, by a function that may do on the host what no compiler can trace: branch, and ask other ranks."""
    slots: torch.Tensor = torch.ops.eplb_plugin.choose(ids, key, *counters)
    return slots


def _choose(ids: torch.Tensor, key: torch.Tensor, *parts: object) -> torch.Tensor:
    return _choosers[key.data_ptr()][1](ids, _counters(ids, parts))


def _cover(ids: torch.Tensor, *parts: object) -> torch.Tensor:
    count = len(LayerTables._fields)
    return kernels.cover(ids, LayerTables(*parts[:count]), _counters(ids, parts[count:]))  # type: ignore[arg-type]


def _look_up(ids: torch.Tensor, rows: torch.Tensor, *parts: object) -> torch.Tensor:
    return kernels.look_up(ids, rows, _counters(ids, parts))


def _record(ids: torch.Tensor, phy2log: torch.Tensor, *parts: object) -> None:
    kernels.record(ids, _counters(ids, parts), phy2log)


def _counters(ids: torch.Tensor, parts: tuple[object, ...]) -> Counters:
    counters = Counters(*parts)  # type: ignore[arg-type]
    if ids.shape[1] != counters.rows.shape[1]:  # rows of another length would be counted beyond the buffer's end
        found, expected, fix = ids.shape[1], counters.rows.shape[1], "serve without the plugin, and report this model"
        raise mismatch("experts per token", found=found, expected=expected, fix=fix)
    return counters


def _slots(ids: torch.Tensor, *parts: object) -> torch.Tensor:
    return torch.empty(ids.shape, dtype=ids.dtype, device=ids.device)


def _nothing(*parts: object) -> None:
    """What a trace of an operator without a result needs."""


def _define(name: str, parameters: str, result: str, run: Callable[..., object], fake: Callable[..., object]) -> None:
    _LIBRARY.define(f"{name}({parameters}, {_COUNTERS}) -> {result}")  # type: ignore[no-untyped-call]
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"eplb_plugin::{name}", fake, lib=_LIBRARY)


_define("cover", f"Tensor ids, {_TABLES}", "Tensor", _cover, _slots)
_define("look_up", "Tensor ids, Tensor rows_of_slots", "Tensor", _look_up, _slots)
_define("choose", "Tensor ids, Tensor key", "Tensor", _choose, _slots)
_define("record", "Tensor ids, Tensor phy2log", "()", _record, _nothing)
