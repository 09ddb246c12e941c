"""What stands in for Triton launches on the simulated accelerator: the compiled loops, in the device's memory.

They allocate nothing and ask for no value; that the real ones give the same bits is tested elsewhere.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from eplb_plugin.dispatch import kernels
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from eplb_plugin.dispatch.exact import kernels as exact_kernels
from eplb_plugin.dispatch.exact.tables import ExactLayer, ExactMaps, Work
from simulated_device import counts, host_view


def install() -> None:
    exact = SimpleNamespace(launch_count=launch_count, launch_choose=launch_choose)
    sys.modules["eplb_plugin.dispatch.triton_kernels"] = SimpleNamespace(launch=launch)  # type: ignore[assignment]
    sys.modules["eplb_plugin.dispatch.exact.triton_kernels"] = exact  # type: ignore[assignment]


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


def launch_count(ids: torch.Tensor, layer: ExactLayer) -> None:
    """As `dispatch/exact/triton_kernels.launch_count`; refuses what is not on the device."""
    exact_kernels.count(host_view(ids), _seen("exact count", [ids], layer))


def launch_choose(
    ids: torch.Tensor, layer: ExactLayer, gathered: torch.Tensor, slots: torch.Tensor, counters: Counters
) -> None:
    """As `dispatch/exact/triton_kernels.launch_choose`, likewise."""
    seen = _seen("exact choose", [ids, gathered, *counters[:-1]], layer)
    counted = Counters(*map(host_view, counters[:-1]), counters.chunk)
    host_view(slots).copy_(exact_kernels.choose(host_view(ids), seen, host_view(gathered), counted))


def _seen(name: str, others: list[torch.Tensor], layer: ExactLayer) -> ExactLayer:
    given = [*others, *layer.maps, *layer.work, layer.node_of_rank, layer.source_of_rank]
    assert {one.device.type for one in given} == {"sim"}
    counts.launches[name] += 1
    counts.addresses.append((name, tuple(one.data_ptr() for one in given)))
    return layer._replace(
        maps=ExactMaps(*map(host_view, layer.maps)),
        work=Work(*map(host_view, layer.work)),
        node_of_rank=host_view(layer.node_of_rank),
        source_of_rank=host_view(layer.source_of_rank),
    )
