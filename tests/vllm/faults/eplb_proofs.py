"""In a server's workers: what was routed, where it went, and by which plan, for a test to predict it from that plan.

Seen where the routing meter counts: real tokens of one layer and forward pass, with the physical ids that the router
gave. Logical ids are read off the map of what lies where, so that nothing here comes from the tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_tables: list[Any] = []
_entries: list[Any] = []


def install(folder: Path) -> None:
    from eplb_cpu_engines.meter import Meter

    from eplb_plugin.engines.vllm.tables import Tables
    from eplb_plugin.runtime.rebalancer import Rebalancer

    folder.mkdir(exist_ok=True)
    made, add, record = Tables.__init__, Rebalancer.add, Meter.record

    def remembered(self: Any, *args: Any) -> None:
        made(self, *args)
        _tables.append(self)

    def added(self: Any, key: str, entry: Any, planning_rank: bool) -> None:
        add(self, key, entry, planning_rank)
        _entries.append(entry)

    def recorded(self: Any, layer: str, physical_ids: np.ndarray, owners: int) -> None:
        before = self._layers[layer].copies if layer in self._layers else 0
        record(self, layer, physical_ids, owners)
        if len(physical_ids) and _tables:
            _write(folder, self.seat.rank, layer, physical_ids, self._layers[layer].copies - before)

    Tables.__init__, Rebalancer.add, Meter.record = remembered, added, recorded


def _write(folder: Path, rank: int, layer: str, physical_ids: np.ndarray, copies: int) -> None:
    from eplb_plugin.dispatch.tables import hashed_maps
    from eplb_plugin.runtime.plan_codec import encode

    tables, plan = _tables[0], _entries[0].plan
    if plan is None or not plan.has_weights or not np.array_equal(tables.rows, hashed_maps(plan, tables.owners)[0]):
        return  # experts are being moved: layers follow one after the other
    row = plan.placement.layer_ids.tolist().index(int(layer.split(".layers.")[1].split(".")[0]))
    kept = folder / f"{plan.digest}.plan"
    if not kept.exists():  # whichever rank has tokens first; the plan is the same on all
        part = folder / f"{plan.digest}.rank{rank}"
        part.write_bytes(encode(plan))
        part.replace(kept)
    ids = tables._state.physical_to_logical_map[row].numpy()[physical_ids]
    line = {"plan": plan.digest, "row": row, "ids": ids.tolist(), "copies": copies}
    with (folder / f"rank{rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
