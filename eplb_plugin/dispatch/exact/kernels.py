"""One rank's part of a MoE layer's step under `exact`, where the forward pass runs: `count`, then, with what all ranks
counted, `choose`.

On a GPU by Triton (`triton_kernels.py`), on a CPU by compiled loops; all ranks together equal `route_step` bit for bit.
Nothing waits for the device, and nothing is allocated but the slots.
"""

from __future__ import annotations

import numpy as np
import torch

from ...jit import Array, kernel
from .. import kernels
from ..buffers import Counters
from .replicas import Replicas
from .rows import Seen, row_of_source
from .step import count_token, send_token, solve_counts
from .tables import ExactLayer, replicas_in
from .wishes import Wisher, token_wishes


def count(ids: torch.Tensor, layer: ExactLayer) -> torch.Tensor:
    """ids: [T, k] logical, of this rank's batch in order, padding too, for it is mapped; what is no expert's is not.

    -> [payload] int32, `ExactTables.payload`, in a buffer that all layers have in common: what the others must know.
    """
    if kernels.launches(ids):
        from .triton_kernels import launch_count

        launch_count(ids, layer)
    else:
        mine = layer.work.mine.numpy()
        mine[:] = 0
        counts, base = _parted(mine[None], layer)
        _count_rows(ids.numpy(), _wisher(layer), replicas_in(layer), counts[0], base[0])
    return layer.work.mine


def choose(ids: torch.Tensor, layer: ExactLayer, gathered: torch.Tensor, counters: Counters) -> torch.Tensor:
    """Map and record. ids: what was counted; gathered: [sources, payload] int32 of all -> [T, k] slots, same dtype."""
    slots = torch.empty(ids.shape, dtype=ids.dtype, device=ids.device)
    if kernels.launches(ids):
        from .triton_kernels import launch_choose

        launch_choose(ids, layer, gathered, slots, counters)
    else:
        replicas = replicas_in(layer)
        row = own_row(gathered.numpy(), layer, replicas)
        _map_rows(ids.numpy(), _wisher(layer), replicas, row, slots.numpy())
        kernels.count_batch(ids, counters, slots)
    return slots


def own_row(gathered: Array, layer: ExactLayer, replicas: Replicas) -> Array:
    """[S, nodes + 1] of this rank's source, see `row_of_source`."""
    counts, base = _parted(gathered, layer)
    counts = counts[:, : len(replicas.expert)]
    whole, earlier = (part.sum(axis=0, dtype=np.int32) for part in (counts, counts[: layer.source]))
    quota = solve_counts(replicas, whole, base.sum(axis=0, dtype=np.int32), layer.tolerance)
    return row_of_source(replicas, quota, Seen(counts, whole, earlier, layer.source, layer.source_of_rank.numpy()))


def _parted(gathered: Array, layer: ExactLayer) -> tuple[Array, Array]:
    """-> counts: [sources, most experts, nodes + 1]; base: [sources, ranks]; both views."""
    ranks = len(layer.node_of_rank)
    return gathered[:, :-ranks].reshape(len(gathered), -1, layer.num_nodes + 1), gathered[:, -ranks:]


def _wisher(layer: ExactLayer) -> Wisher:
    return Wisher(layer.maps.nodes.numpy(), layer.held, layer.rank, layer.num_nodes, layer.covers)


@kernel
def _known(ids: Array, experts: int, row: Array) -> None:
    """ids: [k] of a token -> row: [k], filled: -1 for what is no expert's."""
    for k in range(ids.shape[0]):
        row[k] = ids[k] if 0 <= ids[k] < experts else -1


@kernel
def _count_rows(ids: Array, wisher: Wisher, replicas: Replicas, counts: Array, base: Array) -> None:
    row, wishes = np.empty(ids.shape[1], np.int32), np.empty(ids.shape[1], np.int32)
    for token in range(ids.shape[0]):
        _known(ids[token], wisher.masks.shape[0], row)
        token_wishes(row, token, wisher, wishes)
        count_token(row, wishes, replicas, counts, base)


@kernel
def _map_rows(ids: Array, wisher: Wisher, replicas: Replicas, left: Array, slots: Array) -> None:
    row, wishes = np.empty(ids.shape[1], np.int32), np.empty(ids.shape[1], np.int32)
    for token in range(ids.shape[0]):
        _known(ids[token], wisher.masks.shape[0], row)
        token_wishes(row, token, wisher, wishes)
        send_token(row, wishes, replicas, left, slots[token])
