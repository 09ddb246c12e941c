"""What stands in for the Triton launch on the simulated accelerator: the compiled loops, in the device's memory.

One launch, which allocates nothing and asks for no value; that the real one gives the same bits is tested elsewhere.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from eplb_plugin.dispatch import kernels
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from simulated_device import counts, host_view


def install() -> None:
    sys.modules["eplb_plugin.dispatch.triton_kernels"] = SimpleNamespace(launch=launch)  # type: ignore[assignment]


def launch(
    ids: torch.Tensor, slots: torch.Tensor | None, counters: Counters, *, tables: LayerTables | None = None,
    rows: torch.Tensor | None = None, phy2log: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """As `triton_kernels.launch`; refuses what is not on the device."""
    given = [one for one in (ids, slots, rows, phy2log, *counters[:-1], *(tables or ())[:3]) if one is not None]
    assert {one.device.type for one in given} == {"sim"}
    counts.launches["pass"] += 1
    counts.addresses.append(("pass", tuple(one.data_ptr() for one in given if one is not slots)))
    seen = host_view(ids)
    counted = Counters(*map(host_view, counters[:-1]), counters.chunk)
    mapped = None if slots is None else host_view(slots)
    if mapped is not None and tables is not None:
        maps = tuple(host_view(part).numpy() for part in tables[:3])
        kernels._cover_rows(seen.numpy(), tables.held, tables.source, tables.num_nodes, maps, mapped.numpy())
    elif mapped is not None and rows is not None:
        kernels._look_up_rows(seen.numpy(), host_view(rows).numpy(), mapped.numpy())
    elif phy2log is not None:
        experts = torch.empty_like(seen)
        kernels._expert_rows(seen.numpy(), host_view(phy2log).numpy(), experts.numpy())
        seen = experts
    kernels.count_batch(seen, counted, mapped)
