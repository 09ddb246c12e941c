"""What the router did in a window: load, co-activation, and a sample of whole top-k rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .counts import checked_counts, checked_layer_ids, count_rows, count_steps, thinned
from .errors import PluginError, mismatch
from .files import load_arrays, save_arrays
from .limits import MOST_EXPERTS
from .routing_rows import routed

KIND = "statistics"
MOST_PARTS = 64  # beyond, neighbours are added up: a recording of hours keeps what matters of its course

LOGICAL_IDS = "pass logical expert ids, and -1 for padding"


@dataclass(frozen=True, eq=False)
class RoutingStatistics:
    """Routing of one window.

    load: [L, E] selections per window (a token selects k experts), integers or floats >= 0.
    coactivation: [L, E, E] tokens that selected both experts; symmetric, the diagonal is the load; or None.
    sample: [L, S, K] int16 whole top-k rows of logical ids, -1 = empty; or None.
    num_tokens: [L] int64 tokens routed per layer; default: derived from the load and the sample's k when both are
        known, else 0 (unknown).
    layer_ids: [L] int32 decoder-layer numbers; default 0 … L-1.
    parts: [W, L, E] loads of the traffic's phases: of the windows, in order of time, that these statistics were put
        together from; their sum is the load; or None. Ranks that are even in the sum may each be the busiest one for a
        while.
    left_out: [L] int64 rows that named an expert twice, and so are in no other count (`routing_rows`); default 0.
    steps: [S, L, E] loads of single forward steps, a sample of those that were counted; or None. A step waits for its
        own busiest rank, whatever other steps are like.

    Raises PluginError on wrong shapes, negative or non-finite counts, an asymmetric co-activation, ids out of range.
    """

    load: NDArray[Any]
    coactivation: NDArray[Any] | None = None
    sample: NDArray[np.int16] | None = None
    # always arrays once made
    num_tokens: NDArray[np.int64] = None  # type: ignore[assignment]
    layer_ids: NDArray[np.int32] = None  # type: ignore[assignment]
    parts: NDArray[Any] | None = None
    left_out: NDArray[np.int64] = None  # type: ignore[assignment]
    steps: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        load = np.asarray(self.load)
        if load.ndim != 2 or load.shape[1] == 0 or load.shape[0] == 0:
            raise mismatch("load", found=f"shape {load.shape}", expected="[layers, experts]", fix="pass a 2-D array")
        load = checked_counts("load", load)
        if load.shape[1] > MOST_EXPERTS:
            expected = f"at most {MOST_EXPERTS}"
            fix = "pass the counts as [layers, experts]"
            raise mismatch("experts", found=load.shape[1], expected=expected, fix=fix)
        layers, experts = load.shape
        put = object.__setattr__
        put(self, "load", load)
        put(self, "layer_ids", checked_layer_ids(self.layer_ids, layers))
        if self.coactivation is not None:
            pairs = np.asarray(self.coactivation)
            if pairs.shape != (layers, experts, experts):
                expected = f"[{layers}, {experts}, {experts}]"
                fix = "count pairs of every layer"
                raise mismatch("coactivation", found=f"shape {pairs.shape}", expected=expected, fix=fix)
            pairs = checked_counts("coactivation", pairs)
            if not np.allclose(pairs, pairs.transpose(0, 2, 1)):
                fix = "count a pair (a, b) also as (b, a)"
                raise mismatch("coactivation", found="asymmetric", expected="symmetric", fix=fix)
            put(self, "coactivation", pairs)
        if self.sample is not None:
            sample = np.asarray(self.sample)
            if sample.ndim != 3 or sample.shape[0] != layers or sample.dtype.kind not in "iu":
                found = f"shape {sample.shape} {sample.dtype}"
                fix = "pass one block of rows per layer of the load"
                raise mismatch("sample", found=found, expected=f"integers [{layers}, rows, k]", fix=fix)
            if sample.size and (sample.min() < -1 or sample.max() >= experts):
                found = f"ids {sample.min()}..{sample.max()}"
                raise mismatch("sample", found=found, expected=f"-1..{experts - 1}", fix=LOGICAL_IDS)
            put(self, "sample", sample.astype(np.int16, copy=False))
        put(self, "num_tokens", self._checked_num_tokens(layers))
        left_out = np.zeros(layers, np.int64) if self.left_out is None else self.left_out
        put(self, "left_out", _checked_rows("left_out", left_out, layers))
        if self.parts is not None:
            put(self, "parts", self._checked_loads("parts", self.parts))
            self._refuse_another_sum(self.parts)
        if self.steps is not None:
            put(self, "steps", self._checked_loads("steps", self.steps))

    def _refuse_another_sum(self, parts: NDArray[Any]) -> None:
        total = parts.sum(axis=0)
        wrong = np.argwhere(~np.isclose(total, self.load))
        if len(wrong):
            layer, expert = wrong[0]
            what = f"parts of expert {expert} in layer {self.layer_ids[layer]}"
            found, expected = f"a sum of {total[layer, expert]:g}", f"{self.load[layer, expert]:g} as in the load"
            raise mismatch(what, found=found, expected=expected, fix="pass the loads whose sum is the load")

    def _checked_num_tokens(self, layers: int) -> NDArray[np.int64]:
        given: ArrayLike | None = self.num_tokens
        if given is None:
            top_k = self.sample.shape[2] if self.sample is not None else 0
            if not top_k:
                return np.zeros(layers, np.int64)
            return np.rint(self.load.sum(1) / top_k).astype(np.int64)
        return _checked_rows("num_tokens", given, layers)

    def _checked_loads(self, name: str, loads: ArrayLike) -> NDArray[Any]:
        array = np.asarray(loads)
        if array.ndim != 3 or array.shape[1:] != self.load.shape:
            expected = f"[{name}, {self.load.shape[0]}, {self.load.shape[1]}]"
            fix = "pass a stack of loads like `load`"
            raise mismatch(name, found=f"shape {array.shape}", expected=expected, fix=fix)
        return checked_counts(name, array)

    @property
    def num_layers(self) -> int:
        return int(self.load.shape[0])

    @property
    def num_experts(self) -> int:
        return int(self.load.shape[1])

    @classmethod
    def from_topk(
        cls,
        topk_ids: ArrayLike,
        num_experts: int,
        layer_ids: ArrayLike | None = None,
        steps: ArrayLike | None = None,
    ) -> RoutingStatistics:
        """Count `topk_ids: [layers, tokens, k]` (logical ids, -1 = padding) exactly; the sample is every row.

        A row in which an id stands twice is no routing, and is left out (`routing_rows.routed`).
        steps: [tokens] integers, the forward step that a token was routed in; loads of some steps are kept.
        """
        ids = np.asarray(topk_ids)
        if ids.ndim != 3 or ids.dtype.kind not in "iu":
            raise mismatch(
                "topk_ids",
                found=f"shape {ids.shape} {ids.dtype}",
                expected="integers [layers, tokens, k]",
                fix="np.stack the layers' ids, in the order of the layers",
            )
        if ids.size and (ids.min() < -1 or ids.max() >= num_experts):
            raise mismatch(
                "topk_ids", found=f"ids {ids.min()}..{ids.max()}", expected=f"-1..{num_experts - 1}", fix=LOGICAL_IDS
            )
        given, ids = ids, routed(ids, "topk_ids")
        load, pairs = count_rows(ids, num_experts)
        tokens, left_out = (ids >= 0).any(2).sum(1), (given != ids).any(axis=2).sum(axis=1)
        sample, layer_numbers = ids.astype(np.int16), checked_layer_ids(layer_ids, len(ids))
        step_loads = None if steps is None else count_steps(ids, np.asarray(steps), num_experts)
        return cls(load, pairs, sample, tokens, layer_numbers, left_out=left_out, steps=step_loads)

    def merge(self, other: RoutingStatistics) -> RoutingStatistics:
        """Sum of two windows of the same model; the samples are concatenated, and so are parts and steps."""
        if self.load.shape != other.load.shape or not np.array_equal(self.layer_ids, other.layer_ids):
            raise mismatch(
                "merge",
                found=f"layers × experts {other.load.shape}",
                expected=f"{self.load.shape} with equal layer_ids",
                fix="merge statistics of one model",
            )
        pairs = None
        if self.coactivation is not None and other.coactivation is not None:
            pairs = _add(self.coactivation, other.coactivation)
        sample = None
        if self.sample is not None and other.sample is not None:
            sample = np.concatenate([self.sample, other.sample], axis=1)
        return RoutingStatistics(
            _add(self.load, other.load),
            pairs,
            sample,
            self.num_tokens + other.num_tokens,
            self.layer_ids,
            _fewer(np.concatenate([_parts_of(self), _parts_of(other)])),
            self.left_out + other.left_out,
            joined_steps([self, other]),
        )

    def decay(self, factor: float) -> RoutingStatistics:
        """Weigh the past: multiply every count by `factor` in [0, 1]. Samples, also of steps, are kept as they are."""
        if not 0.0 <= factor <= 1.0:
            raise mismatch("decay factor", found=factor, expected="0.0..1.0", fix="pass a factor from 0 to 1")
        pairs = None if self.coactivation is None else self.coactivation * factor
        tokens, left_out = (np.rint(rows * factor).astype(np.int64) for rows in (self.num_tokens, self.left_out))
        parts = None if self.parts is None else self.parts * factor
        load = self.load * factor
        return replace(self, load=load, coactivation=pairs, num_tokens=tokens, parts=parts, left_out=left_out)

    def save(self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None) -> None:
        """Write a safetensors file atomically; `header` adds model, engine, phase … for the reader."""
        arrays = {"load": self.load, "layer_ids": self.layer_ids, "num_tokens": self.num_tokens}
        arrays |= {"left_out": self.left_out} if self.left_out.any() else {}
        if self.coactivation is not None:
            arrays["coactivation"] = self.coactivation
        if self.sample is not None:
            arrays["sample"] = self.sample
        if self.parts is not None:
            arrays["parts"] = self.parts
        if self.steps is not None:
            arrays["steps"] = self.steps
        save_arrays(path, KIND, arrays, header or {})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RoutingStatistics:
        """What `save` wrote. Raises PluginError on any other file."""
        return load_window(path)[0]


def _checked_rows(name: str, given: ArrayLike, layers: int) -> NDArray[np.int64]:
    rows = np.asarray(given)
    if rows.shape != (layers,):
        raise mismatch(name, found=f"shape {rows.shape}", expected=f"[{layers}]", fix="pass one number per layer")
    return checked_counts(name, rows).astype(np.int64)


def _add(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Sum of counts, in a type that holds it whatever the callers' own are."""
    whole = one.dtype.kind in "iu" and other.dtype.kind in "iu"
    return np.add(one, other, dtype=np.int64 if whole else np.float64)


def _parts_of(window: RoutingStatistics) -> NDArray[Any]:
    return window.load[None] if window.parts is None else window.parts


def _fewer(parts: NDArray[Any]) -> NDArray[Any]:
    if len(parts) <= MOST_PARTS:
        return parts
    wide = np.int64 if parts.dtype.kind in "iu" else np.float64
    return np.add.reduceat(parts, np.arange(0, len(parts), 2), dtype=wide)


def joined_steps(windows: Sequence[RoutingStatistics]) -> NDArray[Any] | None:
    """[S, L, E] single steps of all windows that know some, evenly thinned."""
    known = [window.steps for window in windows if window.steps is not None]
    return thinned(np.concatenate(known)) if known else None


def load_window(path: str | os.PathLike[str]) -> tuple[RoutingStatistics, dict[str, Any]]:
    """What `save` wrote, and the file's header. Raises PluginError on any other file."""
    arrays, header = load_arrays(path, KIND)
    if "load" not in arrays:
        raise PluginError(f"{path}: a statistics file without a load array; fix: save it with RoutingStatistics.save")
    names = ("load", "coactivation", "sample", "num_tokens", "layer_ids", "parts", "left_out", "steps")
    return RoutingStatistics(**{name: arrays[name] for name in names if name in arrays}), header


# `RoutingStatistics.load(path)` was the name of `read`, and is understood for one more release. It is set here because
# in the class it would be taken for the default of the field `load`, which is what `load` is on every instance.
RoutingStatistics.load = RoutingStatistics.read  # type: ignore[assignment]
