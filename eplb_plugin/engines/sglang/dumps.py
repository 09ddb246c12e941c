"""SGLang's own recordings, as `/dump_expert_distribution_record` writes them, as statistics for the planner.

Reads without SGLang, and without running what a file may contain.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import PluginError, mismatch
from ...placement_formats import ExpertMap
from ...statistics import RoutingStatistics
from ...workloads.shared_experts import shared_columns

_FIX = "pass a file written by --expert-distribution-recorder-mode stat, per_pass or per_token"


class EmptyRecording(PluginError):
    """No token was routed while it was made."""


def read_dump(path: str | os.PathLike[str], owner_group_size: int = 1) -> RoutingStatistics:
    """Statistics of one `.pt` file; dense decoder layers, which SGLang counts too, are dropped.

    Mode `stat`: load only. Mode `per_pass`, one rank's file: load only, of what this rank counted. Mode `per_token`,
    one rank's file: load, co-activation and all rows as sample, without fused shared experts.
    owner_group_size: ranks that routed the same token, which SGLang counts as often in mode `stat`: all ranks without
    an all-to-all backend (see the log line of the plugin), else 1.

    Raises EmptyRecording; PluginError for a file that is missing, damaged, of another program or mode, or counted
    otherwise.
    """
    data = _loaded(path)
    try:
        if "logical_count" in data:
            return _from_counts(np.asarray(data["logical_count"]), owner_group_size)
        phy2log = np.asarray(data["last_physical_to_logical_map"])
        if any("topk_ids_of_layer" in record for record in data["records"]):
            return _from_records(data["records"], phy2log)
        return _from_passes(data["records"], phy2log)
    except PluginError as error:
        raise type(error)(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        found = f"no recording of SGLang ({type(error).__name__}: {error})"
        raise mismatch(str(path), found=found, expected="logical_count, or records of tokens", fix=_FIX) from None


def read_torch_map(path: str | os.PathLike[str]) -> ExpertMap:
    """The map of a `.pt` file for `--init-expert-location`. Raises PluginError for any other file."""
    data = _loaded(path)
    try:
        rows = np.asarray(data["physical_to_logical_map"])
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or not rows.size or rows.min() < 0 or rows.max() >= 1 << 31:
            raise ValueError(f"shape {rows.shape} {rows.dtype}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        found, expected = f"no map ({type(error).__name__}: {error})", "physical_to_logical_map [layers, slots]"
        raise mismatch(str(path), found=found, expected=expected, fix="pass a map that SGLang starts from") from None
    return ExpertMap(rows.astype(np.int32), np.arange(len(rows), dtype=np.int32))


def _loaded(path: str | os.PathLike[str]) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch lets many kinds escape, from EOFError to UnpicklingError
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise PluginError(f"{path}: cannot be read as a dump of SGLang ({reason}); fix: {_FIX}") from None


def _from_counts(counts: NDArray[Any], owner_group_size: int) -> RoutingStatistics:
    """counts: [steps, L, E]."""
    if counts.ndim != 3 or counts.dtype.kind not in "iu" or counts.size == 0 or counts.min() < 0:
        found = f"logical_count {counts.shape} {counts.dtype}"
        raise mismatch("counts", found=found, expected="counts [steps, layers, experts]", fix=_FIX)
    load = counts.sum(0, dtype=np.int64)
    if (load % owner_group_size).any():
        fix = "pass the number of ranks that route the same token"
        raise mismatch("owner_group_size", found=owner_group_size, expected="a divisor of all counts", fix=fix)
    layers = np.flatnonzero(load.any(1))
    _refuse_empty(layers)
    return RoutingStatistics(load[layers] // owner_group_size, layer_ids=layers.astype(np.int32))


def _from_passes(records: list[dict[str, Any]], phy2log: NDArray[Any]) -> RoutingStatistics:
    """records: one per pass, each with counts [L, P] of physical experts."""
    if not records:
        _refuse_empty(np.empty(0))
    counts = np.stack([np.asarray(record["global_physical_count"]) for record in records])
    if counts.ndim != 3 or counts.shape[1:] != phy2log.shape or counts.dtype.kind not in "iu" or counts.min() < 0:
        found = f"global_physical_count {counts.shape} {counts.dtype} of a map {phy2log.shape}"
        raise mismatch("records", found=found, expected="counts [layers, slots] of every pass", fix=_FIX)
    load = np.zeros((len(phy2log), int(phy2log.max()) + 1), np.int64)
    np.add.at(load, (np.arange(len(phy2log))[:, None], phy2log), counts.sum(0, dtype=np.int64))
    layers = np.flatnonzero(load.any(1))
    _refuse_empty(layers)
    return RoutingStatistics(load[layers], layer_ids=layers.astype(np.int32))


def _from_records(records: list[dict[str, Any]], phy2log: NDArray[Any]) -> RoutingStatistics:
    """records: of one rank, [L, T, K] physical ids each, -1 = padding; phy2log: [L, P], the same for all of them."""
    blocks = [np.asarray(record["topk_ids_of_layer"]) for record in records]
    if not any(block.size for block in blocks):  # a rank that no request came to
        _refuse_empty(np.empty(0))
    ids = np.concatenate([block for block in blocks if block.size], axis=1).astype(np.int64)
    if ids.ndim == 3:  # fused shared experts have ids beyond the physical experts'
        ids = ids[:, :, ~shared_columns(ids, phy2log.shape[1])]
    if ids.ndim != 3 or len(ids) != len(phy2log) or ids.min() < -1 or ids.max() >= phy2log.shape[1]:
        found = f"ids {ids.shape} of a map {phy2log.shape}"
        raise mismatch("records", found=found, expected="physical ids [layers, tokens, k]", fix=_FIX)
    layers = np.flatnonzero((ids >= 0).any((1, 2)))
    _refuse_empty(layers)
    ids = ids[layers]
    used = (ids >= 0).any((0, 1))  # SGLang reserves eight columns, however few experts a token has
    logical = np.where(ids >= 0, phy2log[layers[:, None, None], ids], -1)[:, :, used]
    return RoutingStatistics.from_topk(logical, int(phy2log.max()) + 1, layers)


def _refuse_empty(layers: NDArray[Any]) -> None:
    if not len(layers):
        raise EmptyRecording("recording: found no token, expected traffic while it was made; fix: record it again")
