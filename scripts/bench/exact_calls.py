"""What `exact` costs one rank in one MoE layer: counting, quotas and its row, mapping; and its tables. On a CPU.

Beside it, where SGLang is installed, its LPLB on the same placement and step: balance and copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from eplb_plugin import RoutingStatistics, Topology, plan, route
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.exact.kernels import choose, count, own_row
from eplb_plugin.dispatch.exact.tables import PARTS, ExactTables, replicas_in
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.workloads.routing import ClusteredRouter

from .lplb import Lplb, has_lplb
from .timing import milliseconds

CPU, RANK, TOKENS = torch.device("cpu"), 0, 256  # tokens of a rank in a step
TIMES = 20  # calls of a layer that are timed together
Row = dict[str, Any]


def exact_rows(shapes: Iterable[tuple[int, Topology]], layers: int, top_k: int, times: int) -> list[Row]:
    return [_row(shape, rule, layers, top_k, times) for shape in shapes for rule in ("weighted", "cover")]


def _row(shape: tuple[int, Topology], rule: Any, layers: int, top_k: int, times: int) -> Row:
    """choose_ms: quotas, row and mapping; nothing is recorded."""
    experts, topology = shape
    ranks, router = topology.num_ranks, ClusteredRouter(1, experts, top_k, num_topics=48, strength=2.0, skew=0.6)
    made = plan(RoutingStatistics.from_topk(router.window(32 * TOKENS), experts), topology, dispatch=rule)
    rows = router.window(TOKENS * ranks, 7)[0].astype(np.int64).reshape(ranks, TOKENS, top_k)
    tables = [ExactTables(made, [rank], CPU, 0.0) for rank in range(ranks)]
    ids = [torch.from_numpy(one) for one in rows]
    gathered = torch.stack([count(one, held.layer(0)).clone() for one, held in zip(ids, tables, strict=True)])
    layer = tables[RANK].layer(0)
    replicas, counts = replicas_in(layer), gathered.numpy()
    recorder, off = Recorder(1, experts, top_k, TOKENS, 1, CPU), torch.tensor(False)
    nothing = torch.zeros(topology.num_slots, dtype=torch.int32)
    real = torch.tensor(TOKENS, dtype=torch.int32)
    counters = Counters(*recorder.passing(0), nothing, off, off, off, real, 0)
    slots = torch.cat([choose(one, held.layer(0), gathered, counters) for one, held in zip(ids, tables, strict=True)])
    arms = {"exact": slots.numpy(), "tables": route(rows.reshape(-1, top_k), np.arange(ranks).repeat(TOKENS), made, 0)}
    if has_lplb():
        arms["lplb"] = (solver := Lplb(made)).route(torch.cat(ids), 0)
    calls = {
        "count_ms": lambda: count(ids[RANK], layer),
        "solve_ms": lambda: own_row(counts, layer, replicas),
        "choose_ms": lambda: choose(ids[RANK], layer, gathered, counters),
    }

    def repeated(call: Any) -> None:
        for _ in range(TIMES):
            call()

    if has_lplb():
        total = torch.bincount(torch.cat(ids).flatten(), minlength=experts).float()
        calls["lplb_reference_ms"] = lambda: solver.probabilities(total)
    taken = {name: milliseconds(partial(repeated, call), times) / TIMES for name, call in calls.items()}
    # maps are a layer's, work is a model's: the two sizes are apart
    maps, work = sum(part.nbytes for part in layer.maps), sum(part.nbytes for part in layer.work)
    return {
        "rule": rule, "experts": experts, "ranks": ranks, "nodes": topology.num_nodes, "slots": topology.num_slots,
        "tokens": TOKENS, "replicated": len(replicas.expert), "colours": replicas.colours,
        "arms": {arm: _figures(found, topology) for arm, found in arms.items()}, **taken,
        "layers": layers, "tables_mib": layers * maps / 2**20, "work_mib": work / 2**20, "parts": PARTS,
        "exchanged_bytes": gathered[0].nbytes,
    }  # fmt: skip


def _figures(slots: np.ndarray, topology: Topology) -> Row:
    """slots: [ranks · TOKENS, k] -> mean load over the busiest rank's; nodes beyond its own that a token is sent to."""
    load = np.bincount(slots.ravel() // topology.slots_per_rank, minlength=topology.num_ranks)
    node, own = topology.node_of_slot[slots], topology.node_of_rank.repeat(TOKENS)
    visits = [((node == other).any(axis=1) & (own != other)).sum() for other in range(topology.num_nodes)]
    return {"balancedness": float(load.mean() / load.max()), "copies": float(sum(visits) / len(slots))}


def show_exact(rows: list[Row], console: Console) -> None:
    table = Table(title="exact: one rank, one layer, CPU; nothing recorded")
    for heading in ("wishes", "ranks / nodes / slots", "tokens", "count, µs", "quotas + row, µs", "map, µs",
                    "bytes exchanged", "tables, MiB", "work, MiB"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "wishes" else "right")
    for row in rows:
        mapped = row["choose_ms"] - row["solve_ms"]
        figures = [f"{1e3 * value:.0f}" for value in (row["count_ms"], row["solve_ms"], mapped)]
        size = f"{row['ranks']} / {row['nodes']} / {row['slots']}"
        sizes = [f"{row['exchanged_bytes']:,}", f"{row['tables_mib']:.2f}", f"{row['work_mib']:.2f}"]
        table.add_row(row["rule"], size, str(row["tokens"]), *figures, *sizes)
    console.print(table)
    for row in rows:
        arms = [f"{arm} {found['balancedness']:.3f} / {found['copies']:.3f}" for arm, found in row["arms"].items()]
        console.print(f"{row['rule']}, {row['ranks']} ranks: balancedness / copies per token: {', '.join(arms)}")
    console.print("LPLB: SGLang's references in torch" if has_lplb() else "LPLB: no SGLang here")
