"""The tensors at fixed addresses that one pass of one MoE layer reads and writes, whatever maps and counts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LayerTables(NamedTuple):
    """What one layer's choice reads.

    nodes: [E] int64; counts: [E] int32; copies: [E, width] int32, see `CoverMaps`.
    held: mask of the nodes on which this rank's tokens lie; source: rank that stands for all that route them;
    num_nodes: of the topology.
    """

    nodes: torch.Tensor
    counts: torch.Tensor
    copies: torch.Tensor
    held: int
    source: int
    num_nodes: int


class Counters(NamedTuple):
    """Where one layer's routing is counted in one pass.

    rows: [max_tokens, k] int16, the ids themselves; load: [E + 2] int32, then rows counted and rows left out, see
    `routing_rows`; pairs: [(E + 1)²] int32, smaller id first; slot_load: [P] int32, the engine's own count, of all that
    is mapped here; enabled, pairs_enabled, slots_enabled: scalar bool, count load, and rows and pairs with it, and
    slots; real: scalar int32, tokens of the whole batch that are no padding; chunk: under sequence parallelism this
    rank routes the chunk-th run of rows of that batch.
    """

    rows: torch.Tensor
    load: torch.Tensor
    pairs: torch.Tensor
    slot_load: torch.Tensor
    enabled: torch.Tensor
    pairs_enabled: torch.Tensor
    slots_enabled: torch.Tensor
    real: torch.Tensor
    chunk: int
