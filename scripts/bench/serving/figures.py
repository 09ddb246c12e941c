"""The figures of one arm's part of a round, from the load generator, the interfaces' counters and the routing meter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eplb_cpu_engines.meter import read_meter

from network.namespaces import Traffic

# what is compared between arms, and what a table shows beside it; all else of a round is kept in the file
COMPARED = (
    "bytes_per_output_token", "busiest_link_bytes_per_output_token", "copies_per_token", "balancedness",
    "output_tokens_per_second", "ttft_p50_ms", "tpot_p90_ms", "itl_p95_ms", "itl_p99_ms",
)  # fmt: skip
SHOWN = ("fixed_bytes_per_output_token", "itl_p100_ms", "rebalances", "slots_moved", "seconds")


@dataclass(frozen=True)
class Shape:
    """hidden: numbers of a token's activation; they are float32 in this benchmark."""

    layers: int
    hidden: int

    @property
    def copy_bytes(self) -> int:
        """One token to one other node and its result back, in one layer, without ids, weights and headers."""
        return 2 * 4 * self.hidden


@dataclass(frozen=True)
class MeterMark:
    """Where the meter was when a round began."""

    window: int
    slots_moved: int
    rebalances: int

    @classmethod
    def of(cls, folder: Path) -> MeterMark:
        try:
            meter = read_meter(folder)
        except FileNotFoundError:  # no window has ended yet
            return cls(0, 0, 0)
        window = int(meter["window"][-1]) + 1 if len(meter["window"]) else 0
        return cls(window, meter["slots_moved"], meter["rebalances"])


def metered(folder: Path, since: MeterMark) -> dict[str, float]:
    """Counts of the windows that ended since, all of a round together: loads are summed before they are compared."""
    meter = read_meter(folder)
    ours = meter["window"] >= since.window
    tokens = meter["tokens"][ours]
    if not tokens.sum():
        raise ValueError(f"found no routed token in {folder} since window {since.window}, expected some")
    load = meter["selections"][ours].sum(0)
    return {
        "copies_per_token": float((meter["copies_per_token"][ours] * tokens).sum() / tokens.sum()),
        "balancedness": float((load.mean(1) / load.max(1)).mean()),
        "slots_moved": meter["slots_moved"] - since.slots_moved,
        "rebalances": meter["rebalances"] - since.rebalances,
    }


def crossed(before: Sequence[Traffic], after: Sequence[Traffic]) -> dict[str, float]:
    """bytes: that nodes sent to each other; busiest_link_bytes: the most that one link carried in one direction."""
    passed = [now.since(then) for now, then in zip(after, before, strict=True)]
    busiest = max(max(one.sent, one.received) for one in passed)
    return {"bytes": sum(one.sent for one in passed), "busiest_link_bytes": busiest}


def round_figures(bench: Mapping[str, float], bytes_: Mapping[str, float], counts: Mapping[str, float],
                  shape: Shape) -> dict[str, Any]:  # fmt: skip
    """fixed_bytes_per_output_token: what crossed beside the tokens' own activations, which are computed from the copies
    that were counted: headers, acknowledgements, ids and weights, coordination, and moved experts."""
    tokens = bench["output_tokens"]
    routed = (bench["input_tokens"] + tokens) / tokens
    payload = counts["copies_per_token"] * shape.layers * shape.copy_bytes * routed
    total = bytes_["bytes"] / tokens
    return {
        "bytes_per_output_token": total,
        "busiest_link_bytes_per_output_token": bytes_["busiest_link_bytes"] / tokens,
        "payload_bytes_per_output_token": payload,
        "fixed_bytes_per_output_token": total - payload,
        **counts,
        **bench,
    }
